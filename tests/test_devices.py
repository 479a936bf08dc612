from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.devices import Gpu, InferencePlan, available_cores, detect_gpu, plan_inference
from parakeet_api.settings import Settings

OK, NO_DEVICE, INVALID_DEVICE = 0, 100, 101

WEIGHTS_AND_RESERVE_GB = 1.25 + 0.7
"""The 0.6 B encoder in half precision, and what CUDA and the decoder take beside it."""


def planned(vram_gb: float | None, **environ: str) -> tuple[Settings, InferencePlan]:
    settings = Settings.from_env(environ, detected_vram_gb=vram_gb)
    return settings, plan_inference(settings, Gpu("a card", vram_gb) if vram_gb else None)


def memory_mb(batch: int, seconds: float) -> float:
    """Give the encoder's peak activations, as measured: nemo-notes.md, section 6."""
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
        (24, "speed", (60, 16, 454.5)),
        (24, "balanced", (60, 8, 454.5)),
    ],
)
def test_the_plan_suits_the_card(
    vram_gb: float | None, preset: str, expected: tuple[float, int, float]
) -> None:
    _, plan = planned(vram_gb, PRESET=preset)

    planned_values = (plan.longest_chunk_s, plan.batch_size, plan.batch_s)
    assert planned_values == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("vram_gb", [4, 6, 8, 12, 24])
def test_the_largest_batch_fits_beside_the_weights(vram_gb: float) -> None:
    settings, plan = planned(vram_gb)
    largest = min(plan.batch_size, int(plan.batch_s / plan.longest_chunk_s))

    needed_gb = WEIGHTS_AND_RESERVE_GB + memory_mb(largest, plan.longest_chunk_s) / 1000

    assert largest >= 4
    assert needed_gb <= settings.gpu_memory_fraction * vram_gb


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
def test_chunks_are_never_longer_than_was_asked_for(vram_gb: float | None) -> None:
    assert planned(vram_gb, CHUNK_MINITE="0.2")[1].longest_chunk_s == pytest.approx(12)


# The card


class Driver(ModuleType):
    """Stands for cuda.bindings.driver: every function returns (CUresult, value)."""

    def __init__(self, *, init: int = OK, cards: int = 1) -> None:
        super().__init__("cuda.bindings.driver")
        self._init = init
        self._cards = cards

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        assert flags == 0
        return (self._init,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, str | None]:  # noqa: N802
        return (OK, f"card {ordinal}") if ordinal < self._cards else (INVALID_DEVICE, None)

    def cuDeviceGetName(self, length: int, card: str) -> tuple[int, bytes]:  # noqa: N802
        return OK, f"NVIDIA {card}".encode().ljust(length, b"\0")

    def cuDeviceTotalMem(self, card: str) -> tuple[int, int]:  # noqa: N802
        return OK, 8_589_934_592


InstallDriver = Callable[[ModuleType | None], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> InstallDriver:
    """Give the process another driver; `None` makes its import fail."""

    def install(driver: ModuleType | None) -> None:
        bindings = None if driver is None else ModuleType("cuda.bindings")
        if bindings is not None:
            bindings.__dict__["driver"] = driver
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)

    return install


@pytest.mark.parametrize(
    ("device", "name"), [("auto", "card 0"), ("cuda", "card 0"), ("cuda:1", "card 1")]
)
def test_a_card_is_found_with_its_name_and_memory(
    install: InstallDriver, device: str, name: str
) -> None:
    install(Driver(cards=2))

    assert detect_gpu(device) == Gpu(f"NVIDIA {name}", 8.589934592)


def test_a_cpu_is_no_card_and_nobody_is_asked(install: InstallDriver) -> None:
    install(ModuleType("cuda.bindings.driver"))

    assert detect_gpu("cpu") is None


def test_without_the_bindings_there_is_no_card(install: InstallDriver) -> None:
    install(None)

    assert detect_gpu("auto") is None


@pytest.mark.parametrize("driver", [Driver(init=NO_DEVICE), Driver(cards=0)])
def test_a_driver_without_a_card_is_no_card(install: InstallDriver, driver: Driver) -> None:
    install(driver)

    assert detect_gpu("auto") is None


def test_a_card_that_is_not_there_is_no_card(install: InstallDriver) -> None:
    install(Driver(cards=1))

    assert detect_gpu("cuda:1") is None


def test_bindings_without_a_driver_are_no_card(install: InstallDriver) -> None:
    class Driverless(Driver):
        def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
            raise RuntimeError("libcuda.so.1 could not be found")

    install(Driverless())

    assert detect_gpu("auto") is None


def test_the_real_bindings_tell_or_say_nothing() -> None:
    # On a machine without a card they raise or report; either way this returns.
    gpu = detect_gpu("auto")

    assert gpu is None or (gpu.name and gpu.total_gb > 0.5)


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
