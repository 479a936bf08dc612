from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import SettingsError
from parakeet_api.model import devices, gpu_check, loading, recognizer
from parakeet_api.model.devices import (
    Gpu,
    InferencePlan,
    available_cores,
    decoding_workers,
    find_gpu,
    main_permits,
    missing_gpu,
    plan_inference,
)
from parakeet_api.model.gpu_check import GpuReport, check_gpu
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.settings import Settings

OK, NO_DEVICE, INVALID_DEVICE = 0, 100, 101

WEIGHTS_GB = 1.253544472
"""The 0.6 B model, its encoder in half precision."""
RESERVE_GB = 0.7
"""Memory of CUDA and the decoder."""


def graphs_gb(plan: InferencePlan) -> float:
    """Return the memory of graphs: buffers of the decoder's largest batch, and encoder passes."""
    of_decoder = 34e-6 * plan.batch_size * 60
    return of_decoder + (0.25 + 3.3e-3 * plan.graphed_s if plan.graphed_s else 0)


def planned(vram_gb: float | None, **environ: str) -> tuple[Settings, InferencePlan]:
    settings = Settings.from_env(environ, detected_vram_gb=vram_gb)
    return settings, plan_inference(settings, Gpu("a GPU", vram_gb) if vram_gb else None)


def memory_mb(batch: int, seconds: float) -> float:
    """Return the encoder's peak activations, as measured."""
    return max(3.3 * batch * seconds, 0.019 * batch * seconds**2)


# The plan


@pytest.mark.parametrize(
    ("vram_gb", "preset", "expected"),
    [
        (None, "speed", (30, 16, 60)),
        (None, "balanced", (30, 8, 60)),
        (None, "quality", (30, 4, 60)),
        (4, "speed", (60, 8, 454.5)),
        (4, "balanced", (60, 4, 454.5)),
        (6, "balanced", (60, 4, 454.5)),
        (8, "balanced", (60, 8, 454.5)),
        (12, "balanced", (60, 8, 454.5)),
        (12, "quality", (60, 4, 454.5)),
        (16, "balanced", (60, 32, 1212.1)),
        (24, "speed", (60, 128, 1818.2)),
        (24, "balanced", (60, 64, 1818.2)),
        (80, "balanced", (60, 256, 4848.5)),
        (141, "balanced", (60, 256, 4848.5)),
    ],
)
def test_the_plan_suits_the_gpu(
    vram_gb: float | None, preset: str, expected: tuple[float, int, float]
) -> None:
    _, plan = planned(vram_gb, PRESET=preset)

    planned_values = (plan.longest_chunk_s, plan.batch_size, plan.batch_s)
    assert planned_values == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("vram_gb", [4, 6, 8, 12, 16, 24, 48, 80, 141])
def test_the_largest_batch_fits_beside_the_weights(vram_gb: float) -> None:
    settings, plan = planned(vram_gb)
    largest = min(plan.batch_size, int(plan.batch_s / plan.longest_chunk_s))

    resident_gb = WEIGHTS_GB + RESERVE_GB + graphs_gb(plan)
    needed_gb = resident_gb + memory_mb(largest, plan.longest_chunk_s) / 1000

    assert largest >= 4
    assert needed_gb <= settings.gpu_memory_fraction * vram_gb


@pytest.mark.parametrize(
    ("sold_as_gb", "row"),
    [
        (4, {"PRESET": "speed", "CHUNK_MINITE": "3"}),
        (6, {"PRESET": "speed", "CHUNK_MINITE": "3"}),
        (8, {"PRESET": "balanced", "CHUNK_MINITE": "5"}),
        (12, {"PRESET": "balanced"}),
        (12, {"PRESET": "quality"}),
        (24, {"PRESET": "balanced"}),
        (24, {"PRESET": "quality"}),
    ],
)
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_recommended_rows_fit_their_gpus(
    sold_as_gb: int, row: dict[str, str], precision: str
) -> None:
    """Weights, reserve and the largest batch stay below the share of the GPU."""
    if (sold_as_gb, precision) == (4, "fp32"):
        pytest.skip("2.5 GB of weights are for larger GPUs")
    settings, plan = planned(sold_as_gb, PRECISION=precision, **row)
    scale = 2 if precision == "fp32" else 1
    largest = min(plan.batch_size, int(plan.batch_s / plan.longest_chunk_s))
    batch_gb = scale * memory_mb(largest, plan.longest_chunk_s) / 1000

    assert largest >= 3
    assert plan.longest_chunk_s == 60
    needed_gb = scale * WEIGHTS_GB + RESERVE_GB + graphs_gb(plan) + batch_gb
    assert needed_gb <= settings.gpu_memory_fraction * sold_as_gb


def test_a_gpu_that_others_use_is_given_less_at_once() -> None:
    settings = Settings.from_env({}, detected_vram_gb=24)

    plan = plan_inference(settings, Gpu("a GPU", 24.0, free_gb=3.0))

    resident_gb = WEIGHTS_GB + RESERVE_GB + graphs_gb(plan)
    assert plan.batch_s == pytest.approx(max(64, 0.8 * (3.0 - resident_gb) * 1000) / 3.3), (
        "and the encoder's graphs are planned for"
    )
    assert plan.memory_limit == "80% of what is free, less the model"


def test_a_small_share_of_the_gpu_bounds_the_batch() -> None:
    _, plan = planned(12, GPU_MEMORY_FRACTION="0.25")

    resident_gb = WEIGHTS_GB + RESERVE_GB + graphs_gb(plan)
    assert plan.batch_s == pytest.approx((0.25 * 12 - resident_gb) * 1000 / 3.3)
    assert plan.memory_limit == "GPU_MEMORY_FRACTION of the GPU, less the model"


def test_memory_for_the_speaker_model_is_left_free() -> None:
    settings = Settings.from_env({"GPU_MEMORY_FRACTION": "0.3"}, detected_vram_gb=12)

    alone, beside = (
        plan_inference(settings, Gpu("a GPU", 12), beside_mb=megabytes) for megabytes in (0, 500)
    )

    assert alone.memory_mb is not None
    assert beside.memory_mb == pytest.approx(alone.memory_mb - 500)


def test_passes_follow_each_other_and_so_do_not_share_what_is_free() -> None:
    _, alone = planned(5)
    _, beside = planned(5, MAX_CONCURRENT_INFERENCES="2")

    assert alone.batch_s * 3.3 == beside.batch_s * 3.3 == pytest.approx(1500)


@pytest.mark.parametrize(
    ("vram_gb", "graphed_s"), [(4, 0), (6.44, 0), (8.36, 31), (12, 31), (16, 123), (24, 246)]
)
def test_small_gpus_have_no_memory_for_graphs_of_the_encoder(
    vram_gb: float, graphed_s: float
) -> None:
    assert planned(vram_gb)[1].graphed_s == graphed_s
    assert planned(vram_gb, ENABLE_CUDA_GRAPHS="false")[1].graphed_s == 0


def test_a_gpu_without_room_for_the_model_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.from_env({}, detected_vram_gb=24)

    plan = plan_inference(settings, Gpu("a GPU", 24.0, free_gb=1.0))

    assert plan.batch_s * 3.3 == pytest.approx(64)
    assert "a GPU has 1.0 of 24.0 GB free" in caplog.text


def test_full_precision_takes_twice_the_memory() -> None:
    assert planned(24, PRECISION="fp32")[1].batch_s == planned(24)[1].batch_s / 2


@given(st.floats(64, 100_000), st.floats(0.05, 1440), st.integers(1, 256))
def test_no_batch_of_the_plan_needs_more_memory_than_allowed(
    limit_mb: float, minutes: float, batch_size: int
) -> None:
    _, plan = planned(
        24,
        MAX_CHUNK_MEMORY_MB=str(limit_mb),
        CHUNK_MINITE=str(minutes),
        TRANSCRIBE_BATCH_SIZE=str(batch_size),
    )

    assert 0 < plan.longest_chunk_s <= minutes * 60 + 1e-6
    assert plan.longest_chunk_s <= plan.batch_s * (1 + 1e-9), "one chunk always fits"
    for seconds in (plan.longest_chunk_s, plan.longest_chunk_s / 2, 1.0):
        most = min(plan.batch_size, int(plan.batch_s / seconds))
        assert memory_mb(most, seconds) <= limit_mb * (1 + 1e-6)
        assert memory_mb(1, min(seconds, plan.longest_chunk_s)) <= limit_mb * (1 + 1e-6)


def test_little_memory_makes_chunks_shorter_and_batches_smaller() -> None:
    _, ample = planned(24)
    _, scarce = planned(24, MAX_CHUNK_MEMORY_MB="100")

    assert scarce.longest_chunk_s == pytest.approx(100 / 3.3)
    assert scarce.longest_chunk_s < ample.longest_chunk_s
    assert scarce.batch_s < ample.batch_s


@pytest.mark.parametrize("vram_gb", [None, 24])
def test_chunks_are_never_longer_than_configured(vram_gb: float | None) -> None:
    assert planned(vram_gb, CHUNK_MINITE="0.2")[1].longest_chunk_s == pytest.approx(12)


# The GPU


class Driver(ModuleType):
    """A fake of cuda.bindings.driver: every function returns (CUresult, value)."""

    def __init__(self, *, init: int = OK, gpus: int = 1) -> None:
        super().__init__("cuda.bindings.driver")
        self._init = init
        self._gpus = gpus

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        assert flags == 0
        return (self._init,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, str | None]:  # noqa: N802
        return (OK, f"GPU {ordinal}") if ordinal < self._gpus else (INVALID_DEVICE, None)


class Driverless(Driver):
    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        raise RuntimeError("libcuda.so.1 could not be found")


REPORT = GpuReport(
    name="NVIDIA A10",
    total_bytes=24_000_000_000,
    free_bytes=20_000_000_000,
    capability="sm_86",
    architectures=("sm_80", "sm_90"),
    cuda="13.0",
    driver="580.65.06",
)

InstallDriver = Callable[[ModuleType | None], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> InstallDriver:
    """Return the process another driver; `None` makes its import fail."""

    def install(driver: ModuleType | None) -> None:
        bindings = None if driver is None else ModuleType("cuda.bindings")
        if bindings is not None:
            bindings.__dict__["driver"] = driver
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)

    return install


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, install: InstallDriver) -> Callable[[str], None]:
    """Let a driver have two GPUs, and a program of the test's try them."""

    def check(program: str) -> None:
        install(Driver(gpus=2))
        monkeypatch.setattr(devices, "_CHECK", (sys.executable, "-c", program))

    return check


def printing(report: GpuReport) -> str:
    return f"print({json.dumps(asdict(report))!r})"


@pytest.mark.parametrize(
    ("device", "used"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_gpu_on_which_a_kernel_ran_is_used(
    check: Callable[[str], None], device: str, used: str
) -> None:
    check(printing(REPORT))

    assert find_gpu(device) == Gpu("NVIDIA A10", 24.0, 20.0, used, "580.65.06")


def test_the_configured_gpu_is_the_one_that_is_checked(check: Callable[[str], None]) -> None:
    report = json.dumps(asdict(REPORT))
    check(f"import json, sys; print(json.dumps(json.loads({report!r}) | {{'name': sys.argv[1]}}))")

    found = find_gpu("cuda:1")

    assert found is not None
    assert found.name == "cuda:1"


def test_device_cpu_runs_no_check(install: InstallDriver) -> None:
    install(ModuleType("cuda.bindings.driver"))

    assert find_gpu("cpu") is None


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (None, "cuda-python is missing"),
        (Driverless(), "there is no NVIDIA driver"),
        (Driver(init=NO_DEVICE), "the NVIDIA driver sees no GPU"),
        (Driver(gpus=0), "has no GPU number 0"),
    ],
)
def test_without_a_gpu_in_the_driver_no_check_is_started(
    install: InstallDriver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: Driver | None,
    message: str,
) -> None:
    install(driver)
    monkeypatch.setattr(subprocess, "run", None)

    assert find_gpu("auto") is None
    assert caplog.text == "", "a machine without a GPU is nothing to warn about"
    with pytest.raises(SettingsError, match=f"DEVICE='cuda' cannot be used: .*{message}"):
        find_gpu("cuda")


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driverless(), "there is no NVIDIA driver: install it"),
        (Driver(init=NO_DEVICE), "the NVIDIA driver sees no GPU"),
        (Driver(gpus=1), None),
        (Driver(init=803), None),
    ],
)
def test_why_there_is_no_gpu_can_be_said(
    install: InstallDriver, driver: Driver, reason: str | None
) -> None:
    install(driver)

    found = missing_gpu()

    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_a_gpu_that_is_not_there_is_named(install: InstallDriver) -> None:
    install(Driver(gpus=1))

    with pytest.raises(SettingsError, match=r"DEVICE='cuda:1' cannot be used: .* GPU number 1"):
        find_gpu("cuda:1")


def test_a_driver_that_does_not_start_is_worth_a_warning(
    install: InstallDriver, caplog: pytest.LogCaptureFixture
) -> None:
    system_driver_mismatch = 803
    install(Driver(init=system_driver_mismatch))

    assert find_gpu("auto") is None
    assert "does not start (CUDA error 803): restart the machine" in caplog.text


FAILURES = [
    ("Found no NVIDIA driver on your system. Please check that", "needs `--gpus all`"),
    (
        "The NVIDIA driver on your system is too old (found version 12020).",
        r"driver \(580.65.06\) is too old for CUDA 13.0: install a newer one .*12020",
    ),
    (
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        r"too old for CUDA 13.0",
    ),
    (
        "CUDA error: no kernel image is available for execution on the device",
        r"no kernels for NVIDIA A10 \(sm_86\), only for sm_80, sm_90",
    ),
    (
        "CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling `cublasGemmEx`",
        "cuBLAS has no kernels for NVIDIA A10",
    ),
    (
        "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity",
        "NVIDIA A10 is full: `nvidia-smi` lists",
    ),
    ("CUDA error: out of memory", "NVIDIA A10 is full"),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "NVIDIA A10 is full"),
    ("No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES"),
    ("CUDA error: invalid device ordinal", "no GPU of that number"),
    ("CUDA error: all CUDA-capable devices are busy or unavailable", "nvidia-smi -c DEFAULT"),
    ("CUDA error: uncorrectable ECC error encountered", "uncorrectable ECC error .*nvidia-smi"),
]
"""Messages of torch 2.13, and the message for the operator."""


@pytest.mark.parametrize(("error", "message"), FAILURES)
def test_an_unusable_gpu_is_reported_in_one_line_with_advice(
    check: Callable[[str], None], caplog: pytest.LogCaptureFixture, error: str, message: str
) -> None:
    check(printing(replace(REPORT, error=error)))

    assert find_gpu("auto") is None
    assert re.search(message, caplog.text)
    assert caplog.text.count("\n") == 1
    with pytest.raises(SettingsError, match=f"DEVICE='cuda:0' cannot be used: .*{message}"):
        find_gpu("cuda:0")


def test_a_gpu_that_does_not_answer_is_not_waited_for(
    check: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check("import time; time.sleep(60)")
    monkeypatch.setattr(devices, "_CHECK_LIMIT_S", 0.2)

    with pytest.raises(SettingsError, match="no kernel ran on it within"):
        find_gpu("cuda")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.abort()", "ended with status -6 and said: nothing"),
        ("import sys; sys.exit('libcudart.so.13: no such file')", "status 1 .*libcudart"),
        ("print('[]')", "ended with status 0"),
        ("print('{}')", "ended with status 0"),
    ],
)
def test_a_check_that_crashes_is_a_gpu_that_cannot_be_used(
    check: Callable[[str], None], program: str, message: str
) -> None:
    check(program)

    with pytest.raises(SettingsError, match=message):
        find_gpu("cuda")


def test_the_real_check_agrees_with_torch(
    install: InstallDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of its own imports torch; here that was built for CPUs."""
    if torch.version.cuda is not None:
        pytest.skip("this torch knows CUDA")
    install(Driver())

    assert find_gpu("auto") is None
    assert "this torch was built for CPUs: install the one of requirements.txt" in caplog.text


def test_the_check_multiplies_matrices_and_looks_at_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU: only the calls to the GPU itself are replaced."""
    properties = SimpleNamespace(name="NVIDIA A10", total_memory=24_000, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20_000, 24_000))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)

    report = check_gpu("cpu")
    assert (report.error, report.name, report.capability) == (None, "NVIDIA A10", "sm_86")
    assert (report.free_bytes, report.total_bytes) == (20_000, 24_000)
    assert GpuReport.from_json(json.dumps(asdict(report))) == report

    monkeypatch.setattr(gpu_check, "_product_error", lambda *_: float("nan"))
    assert check_gpu("cpu").error == "a matrix product is wrong by nan"


def test_what_is_known_before_the_error_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA GTX 1060", total_memory=6, major=6, minor=1)

    def no_kernel(_: object) -> None:
        raise torch.AcceleratorError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel"
        )

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5, 6))
    monkeypatch.setattr(torch.cuda, "synchronize", no_kernel)

    report = check_gpu("cpu")

    assert report.error == "CUDA error: no kernel image is available for execution on the device"
    assert (report.name, report.capability, report.free_bytes) == ("NVIDIA GTX 1060", "sm_61", 5)


# The processor


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("nonsense\n", 16),
        (None, 16),
    ],
)
def test_cores_are_those_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    def read(self: Path, encoding: str) -> str:
        assert str(self) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError(str(self))
        return quota

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(Path, "read_text", read)

    assert available_cores() == cores


# The model


@pytest.mark.parametrize(("permits", "for_everything"), [(1, 1), (2, 2), (3, 2), (16, 15)])
def test_of_three_permits_or_more_one_is_kept_for_clips(permits: int, for_everything: int) -> None:
    assert main_permits(permits) == for_everything


@pytest.mark.parametrize(
    ("permits", "cores", "threads"), [("3", 8, 4), ("2", 8, 4), ("1", 8, 8), ("3", 1, 1)]
)
def test_passes_over_long_chunks_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, permits: str, cores: int, threads: int
) -> None:
    loaded: list[ModelOptions] = []
    monkeypatch.setattr(recognizer, "import_libraries", lambda: None)
    monkeypatch.setattr(loading, "available_cores", lambda: cores)
    monkeypatch.setattr(NemoRecognizer, "load", lambda _, options: loaded.append(options))
    settings = Settings.from_env({"MAX_CONCURRENT_INFERENCES": permits})

    recognizer.load_recognizer(
        Path("a.nemo"),
        lambda _: None,
        settings=settings,
        gpu=None,
        plan=plan_inference(settings, None),
    )

    assert [options.cpu_threads for options in loaded] == [threads]


def test_what_is_set_for_a_gpu_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[float, str]] = []
    loaded: list[ModelOptions] = []
    monkeypatch.setattr(recognizer, "import_libraries", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *share: shares.append(share)
    )
    monkeypatch.setattr(NemoRecognizer, "load", lambda _, options: loaded.append(options))
    environ = {
        "GPU_MEMORY_FRACTION": "0.5",
        "AGGRESSIVE_MEMORY_CLEANUP": "false",
        "FORCE_CLEANUP_THRESHOLD": "0.7",
        "ENABLE_CUDA_GRAPHS": "false",
    }
    settings, plan = planned(24, **environ)
    gpu = Gpu("a GPU", 24.0, 24.0, "cuda:1")

    recognizer.load_recognizer(
        Path("a.nemo"), lambda _: None, settings=settings, gpu=gpu, plan=plan
    )

    assert shares == [(0.5, "cuda:1")]
    (options,) = loaded
    assert options.device == "cuda:1"
    assert options.keep_cached_mb is None
    assert options.cleanup_above == 0.7
    assert not options.cuda_graphs
    assert (options.largest_batch, options.longest_s) == (plan.batch_size, plan.longest_chunk_s)


@pytest.mark.parametrize(
    ("has_gpu", "cores", "workers"),
    [
        (False, 1, 1),
        (False, 2, 1),
        (False, 4, 2),
        (False, 32, 4),
        (True, 1, 1),
        (True, 2, 1),
        (True, 6, 3),
        (True, 64, 4),
    ],
)
def test_a_recording_is_decoded_by_half_the_cores(has_gpu: bool, cores: int, workers: int) -> None:
    assert decoding_workers(Gpu("a GPU", 24) if has_gpu else None, cores) == workers
