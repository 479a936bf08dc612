"""Select the device, and derive how much audio it can process at once.

Asks the CUDA driver first, which takes no memory and no import of torch. If there is a GPU, a
separate process tries it, so that the serving process does not use the GPU before it loads a
model. From then on it keeps a CUDA context, some hundreds of megabytes, even with no model loaded.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from parakeet_api.errors import SettingsError
from parakeet_api.model.architecture import FULL_SIZE, Architecture
from parakeet_api.model.gpu_check import GpuReport
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_NO_DEVICE = 100
"""The driver's CUDA_ERROR_NO_DEVICE."""
_CHECK = (sys.executable, "-m", "parakeet_api.model.gpu_check")
_CHECK_LIMIT_S = 90.0
"""Importing torch takes 2 s, and up to a minute from a slow disk."""
_ADVICE = {
    "Found no NVIDIA driver": (
        "torch finds no NVIDIA driver: install one; a container needs `--gpus all`"
    ),
    "driver on your system is too old": (
        "the NVIDIA driver ({driver}) is too old for CUDA {cuda}: install a newer one ({said})"
    ),
    "driver version is insufficient": (
        "the NVIDIA driver ({driver}) is too old for CUDA {cuda}: install a newer one"
    ),
    "no kernel image": (
        "torch has no kernels for {name} ({capability}), only for {architectures}: install a torch"
        " that has, or use DEVICE=cpu"
    ),
    "ARCH_MISMATCH": (
        "cuBLAS has no kernels for {name} ({capability}): install a torch that has, or use"
        " DEVICE=cpu"
    ),
    "out of memory": "{name} is full: `nvidia-smi` lists the programs that fill it ({said})",
    "ALLOC_FAILED": "{name} is full: `nvidia-smi` lists the programs that fill it ({said})",
    "No CUDA GPUs are available": (
        "torch sees no GPU: look at CUDA_VISIBLE_DEVICES and `nvidia-smi -L`"
    ),
    "invalid device ordinal": (
        "torch has no GPU of that number: look at CUDA_VISIBLE_DEVICES and `nvidia-smi -L`"
    ),
    "busy or unavailable": (
        "{name} is taken by another program alone: `nvidia-smi -c DEFAULT` lets programs share it"
    ),
}
"""Parts of torch's error messages, each with advice; the first match is used."""

_CPU_CHUNK_S = 30.0
"""Measured on two cores with the demo model: an hour takes 12.9 s in 30 s windows, 13.3 s in 20 s,
16.1 s in 60 s and 39 s in 120 s; attention is quadratic."""
_CUDA_CHUNK_S = 60.0
"""Up to this length the encoder's memory grows linearly, and a few chunks saturate a GPU."""
_CPU_BATCH_S = 60.0
"""A CPU gains nothing from batches of long chunks, and other requests would wait for them."""

_RESERVE_GB = 0.7
"""CUDA's context, the decoder, and fragmentation of torch's allocator."""
_DECODER_GB_PER_S = 34e-6
"""Memory of the token decoder's graphs per second of the largest batch: 12.5 frames of 640 floats,
and ten tokens with their frames per frame."""
_GRAPHED_S = ((22.0, 246.0), (15.0, 123.0), (8.0, 31.0))
"""Minimum GB of the GPU, and the seconds of audio up to which a batch's encoder pass is a graph: 4
chunks of a minute, 2, or one of half a minute. Smaller GPUs have no memory to spare."""
_GRAPHS_GB = 0.25
"""The encoder's graphs themselves: up to 54 of 2,000 kernels each."""
_SHARE_OF_FREE = 0.8
"""The rest is for other programs, and for what the estimate leaves out."""
_MAX_DECODERS = 4
"""For one recording: four processes decode an hour in about 1.5 s."""
_MANY_CORES = 4
_MIN_PASS_MB = 64.0
"""19 s of audio: shorter chunks would have too little context."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU on which a kernel has run."""

    name: str
    total_gb: float
    """Gigabytes of 1e9 bytes."""
    free_gb: float | None = None
    """When tested, not counting the test's CUDA context; `None` = all of it."""
    device: str = "cuda:0"
    driver: str | None = None
    """The NVIDIA driver's version, where the system reports it."""


@dataclass(frozen=True, slots=True)
class InferencePlan:
    """Limits on the audio per forward pass."""

    longest_chunk_s: float
    """Maximum seconds of audio in one chunk."""
    batch_size: int
    """Maximum number of chunks in one forward pass."""
    batch_s: float
    """Maximum seconds of audio in one forward pass, padding included; one chunk always fits."""
    memory_mb: float | None = None
    """MB of GPU memory that a pass may use, from which the rest follows; `None` on a CPU."""
    memory_limit: str | None = None
    """What determines `memory_mb`, for the log."""
    graphed_s: float = 0.0
    """Seconds of audio in a batch, padding included, up to which its encoder pass is a graph."""


class GpuError(Exception):
    """The GPU cannot be used; the message says in one line why, and what to do."""


class NoGpuError(GpuError):
    """There is no GPU or no driver."""


def find_gpu(device: str) -> Gpu | None:
    """Find the GPU that `DEVICE` means and run a kernel on it; `None` = use the CPU.

    Takes seconds if there is a GPU, and no time if there is none. Raises `SettingsError`
    if `DEVICE` names a GPU that cannot be used.
    """
    if device == "cpu":
        return None
    ordinal = int(device.partition(":")[2] or 0)
    try:
        _look_for_gpu(ordinal)
        return _try_gpu(f"cuda:{ordinal}")
    except GpuError as error:
        if device != "auto":
            raise SettingsError(f"DEVICE={device!r} cannot be used: {error}") from error
        if not isinstance(error, NoGpuError):
            logger.warning("the CPU takes over, the GPU cannot be used: %s", error)
        return None


def missing_gpu() -> str | None:
    """Return why this machine has no GPU; `None` if it has one."""
    try:
        _look_for_gpu(0)
    except NoGpuError as error:
        return str(error)
    except GpuError:
        # There is one, and `find_gpu` has said what is wrong with it.
        pass
    return None


def _look_for_gpu(ordinal: int) -> None:
    """Ask the driver whether it has a GPU of that number. Raises `GpuError`."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise NoGpuError("the package cuda-python is missing: install requirements.txt") from error
    try:
        outcome = int(driver.cuInit(0)[0])
    except RuntimeError as error:
        # The bindings raise this if they find no libcuda.
        raise NoGpuError(
            "there is no NVIDIA driver: install it; a container needs the NVIDIA Container Toolkit"
            " and `--gpus all`"
        ) from error
    if outcome == _NO_DEVICE:
        raise NoGpuError("the NVIDIA driver sees no GPU: `nvidia-smi` should list it")
    if outcome != 0:
        raise GpuError(
            f"the NVIDIA driver does not start (CUDA error {outcome}): restart the machine after an"
            " update of the driver, and see what `nvidia-smi` says"
        )
    if int(driver.cuDeviceGet(ordinal)[0]) != 0:
        raise NoGpuError(f"the NVIDIA driver has no GPU number {ordinal}: see `nvidia-smi -L`")


def _try_gpu(device: str) -> Gpu:
    """Run a kernel on the GPU in a separate process. Raises `GpuError`."""
    report = _run_check(device)
    if report.error is not None:
        raise GpuError(advice(report))
    gpu = Gpu(report.name, report.total_bytes / 1e9, report.free_bytes / 1e9, device, report.driver)
    logger.info(
        "a kernel ran on %s: %s (%s), %.1f of %.1f GB free, driver %s",
        device,
        gpu.name,
        report.capability,
        gpu.free_gb,
        gpu.total_gb,
        report.driver or "unknown",
    )
    return gpu


def _run_check(device: str) -> GpuReport:
    try:
        done = subprocess.run(
            [*_CHECK, device],
            # So that `-m` finds the package from any working directory.
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GpuError(
            f"no kernel ran on it within {_CHECK_LIMIT_S:.0f} s: see what `nvidia-smi` says, and"
            " restart the machine if that hangs too"
        ) from error
    try:
        return GpuReport.from_json(done.stdout)
    except (ValueError, TypeError, KeyError) as error:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise GpuError(
            f"the program that tries it ended with status {done.returncode} and said: {said}"
        ) from error


def advice(report: GpuReport) -> str:
    """Explain in one line why a GPU cannot be used, and what to do."""
    said = report.error or ""
    if report.cuda is None:
        return "this torch was built for CPUs: install the one of requirements.txt from PyPI"
    for part, text in _ADVICE.items():
        if part in said:
            return text.format(
                said=said,
                name=report.name,
                cuda=report.cuda,
                driver=report.driver or "unknown",
                capability=report.capability,
                architectures=", ".join(report.architectures),
            )
    return f"{said}: see what `nvidia-smi` says"


def available_cores() -> int:
    """Count the processor cores that this process may use: its affinity and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        share = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        # No cgroup v2, or "max": no quota.
        share = cores or 1
    return max(1, min(cores or 1, share))


def decoding_workers(gpu: Gpu | None, cores: int) -> int:
    """Return how many ffmpeg processes may decode one recording: at most half the cores.

    A GPU recognises an hour faster than one core decodes it. A CPU does not, and needs its cores.
    """
    is_worth_it = gpu is not None or cores >= _MANY_CORES
    return max(1, min(_MAX_DECODERS, cores // 2)) if is_worth_it else 1


def main_permits(permits: int) -> int:
    """Return how many permits may run any chunk: of three or more, one is reserved for clips."""
    return permits if permits < 3 else permits - 1  # noqa: PLR2004


def plan_inference(
    settings: Settings,
    gpu: Gpu | None,
    architecture: Architecture = FULL_SIZE,
    *,
    beside_mb: float = 0.0,
) -> InferencePlan:
    """Choose chunk and batch sizes that are fast on the device and fit its memory with a model.

    The default architecture is that of a 0.6 B model. `beside_mb` are kept free on the GPU for the
    speaker model.
    """
    longest_s = settings.chunk_minutes * 60
    if gpu is None:
        return InferencePlan(
            longest_chunk_s=min(longest_s, _CPU_CHUNK_S),
            batch_size=settings.transcribe_batch_size,
            batch_s=_CPU_BATCH_S,
        )
    memory_mb, limit = _pass_memory(settings, gpu, architecture, beside_mb)
    scale = _bytes_scale(settings)
    batch_s = memory_mb / (architecture.linear_mb_per_s * scale)
    fits_s = batch_s
    if architecture.quadratic_mb_per_s2:
        fits_s = min(fits_s, math.sqrt(memory_mb / (architecture.quadratic_mb_per_s2 * scale)))
    return InferencePlan(
        longest_chunk_s=min(longest_s, _CUDA_CHUNK_S, fits_s),
        batch_size=settings.transcribe_batch_size,
        batch_s=batch_s,
        memory_mb=memory_mb,
        memory_limit=limit,
        graphed_s=_graphed_s(settings, gpu),
    )


def _pass_memory(
    settings: Settings, gpu: Gpu, architecture: Architecture, beside_mb: float
) -> tuple[float, str]:
    """Return the MB of GPU memory that one forward pass may use, and which limit determines it."""
    resident_gb = _resident_gb(settings, gpu, architecture) + beside_mb / 1000
    free_gb = gpu.total_gb if gpu.free_gb is None else gpu.free_gb
    limits_mb = {
        "MAX_CHUNK_MEMORY_MB": settings.max_chunk_memory_mb,
        "GPU_MEMORY_FRACTION of the GPU, less the model": 1000
        * (settings.gpu_memory_fraction * gpu.total_gb - resident_gb),
        f"{_SHARE_OF_FREE:.0%} of what is free, less the model": 1000
        * (_SHARE_OF_FREE * (free_gb - resident_gb)),
    }
    reason = min(limits_mb, key=limits_mb.__getitem__)
    if limits_mb[reason] < _MIN_PASS_MB:
        logger.warning(
            "%s has %.1f of %.1f GB free; a %.1f B model takes %.1f GB, and %.0f MB for a pass",
            gpu.name,
            free_gb,
            gpu.total_gb,
            architecture.parameters / 1e9,
            resident_gb,
            _MIN_PASS_MB,
        )
    return max(limits_mb[reason], _MIN_PASS_MB), reason


def _resident_gb(settings: Settings, gpu: Gpu, architecture: Architecture) -> float:
    """Return the GB that stay on the GPU between passes: the weights and the graphs."""
    weights_mb = architecture.weights_mb(2 * _bytes_scale(settings))
    resident_gb = weights_mb / 1000 + _RESERVE_GB
    if settings.enable_cuda_graphs:
        resident_gb += _DECODER_GB_PER_S * settings.transcribe_batch_size * _CUDA_CHUNK_S
    if graphed_s := _graphed_s(settings, gpu):
        resident_gb += _GRAPHS_GB + architecture.linear_mb_per_s * graphed_s / 1000
    return resident_gb


def _graphed_s(settings: Settings, gpu: Gpu) -> float:
    if not settings.enable_cuda_graphs:
        return 0.0
    return next((seconds for from_gb, seconds in _GRAPHED_S if gpu.total_gb >= from_gb), 0.0)


def _bytes_scale(settings: Settings) -> int:
    """Return the encoder's memory as a multiple of half precision's."""
    return 2 if settings.precision == "fp32" else 1
