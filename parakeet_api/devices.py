"""Which device there is, and how much audio it takes at once.

Looks at the card through the CUDA driver alone: that takes no memory of it and no import of torch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.settings import Settings

_CPU_CHUNK_S = 30.0
"""Measured on two cores with the demo model: an hour takes 12.9 s in 30 s windows, 13.3 s in 20 s,
16.1 s in 60 s and 39 s in 120 s; attention is quadratic."""
_CUDA_CHUNK_S = 60.0
"""Below it the encoder's memory grows linearly, and a card is busy with a few of them."""
_CPU_BATCH_S = 60.0
"""A CPU gains nothing from batches of long chunks, and others would wait for them."""

_LINEAR_MB_PER_S = 3.3
_QUADRATIC_MB_PER_S2 = 0.019
"""Peak activations of the 0.6 B encoder in half precision for a batch of B chunks padded to S
seconds: max(3.3 MB x B x S, 19 kB x B x S^2). The first term is the subsampling convolution."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The CUDA card that would be used."""

    name: str
    total_gb: float
    """Gigabytes of 1e9 bytes."""


@dataclass(frozen=True, slots=True)
class InferencePlan:
    """How much the model is given at once."""

    longest_chunk_s: float
    """Seconds of audio in one chunk, at most."""
    batch_size: int
    """Chunks in one forward pass, at most."""
    batch_s: float
    """Seconds of audio in one forward pass, padding included, at most; one chunk always fits."""


def detect_gpu(device: str) -> Gpu | None:
    """Look for the CUDA card that `DEVICE` means; `None` where there is none or it is `cpu`."""
    if device == "cpu":
        return None
    ordinal = int(device.partition(":")[2] or 0)
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        _checked(driver.cuInit(0))
        handle = _checked(driver.cuDeviceGet(ordinal))
        name = _checked(driver.cuDeviceGetName(128, handle))
        total = _checked(driver.cuDeviceTotalMem(handle))
    except RuntimeError:
        # Without a driver the bindings raise it themselves.
        return None
    return Gpu(name=name.rstrip(b"\0").decode(), total_gb=int(total) / 1e9)


def _checked(outcome: tuple[Any, ...]) -> Any:
    """Unpack `(CUresult, value)`. Raises `RuntimeError` if the driver reports an error."""
    if int(outcome[0]) != 0:
        raise RuntimeError(str(outcome[0]))
    return outcome[1] if len(outcome) > 1 else None


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


def plan_inference(settings: Settings, gpu: Gpu | None) -> InferencePlan:
    """Choose chunk and batch sizes that are fast on the device and fit its memory."""
    longest_s = settings.chunk_minutes * 60
    if gpu is None:
        return InferencePlan(
            longest_chunk_s=min(longest_s, _CPU_CHUNK_S),
            batch_size=settings.transcribe_batch_size,
            batch_s=_CPU_BATCH_S,
        )
    memory_mb = settings.max_chunk_memory_mb
    fits_s = min(memory_mb / _LINEAR_MB_PER_S, math.sqrt(memory_mb / _QUADRATIC_MB_PER_S2))
    return InferencePlan(
        longest_chunk_s=min(longest_s, _CUDA_CHUNK_S, fits_s),
        batch_size=settings.transcribe_batch_size,
        batch_s=memory_mb / _LINEAR_MB_PER_S,
    )
