"""Query free memory, and check whether one more model fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parakeet_api.model.cuda import device_memory
from parakeet_api.settings import Settings

_PROC = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_CPU_PEAK = 1.1
"""Peak of a load on a CPU, relative to the file: 1.03 measured, as weights are cast in place."""
_RESERVE_BYTES = 300_000_000
"""Not counted elsewhere: CUDA's workspaces, decoders, uploads in progress."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory of the machine or the container, in bytes."""

    available: int
    total: int


def host_memory(*, meminfo: Path = _PROC, cgroup: Path = _CGROUP) -> HostMemory | None:
    """Query the machine's memory and the cgroup's limit; `None` if neither can be read."""
    known = [memory for memory in (_machine(meminfo), _container(cgroup)) if memory is not None]
    return min(known, key=lambda memory: memory.available, default=None)


def has_room(checkpoint: Path, device: str, *, settings: Settings) -> bool:
    """Tell whether a checkpoint fits into the free memory of `device`.

    Return true if the file or the memory cannot be read: the load then reports the error.
    """
    try:
        size = checkpoint.stat().st_size
    except OSError:
        return True
    if device == "cpu":
        memory = host_memory()
        return memory is None or memory.available >= _CPU_PEAK * size + _RESERVE_BYTES
    weights = size if settings.precision == "fp32" else size / 2
    one_pass = settings.max_chunk_memory_mb * 1e6
    return _free_on_gpu(device, settings) >= weights + one_pass + _RESERVE_BYTES


def _free_on_gpu(device: str, settings: Settings) -> float:
    """Return the bytes that this process may still allocate on the GPU, torch's cache included."""
    memory = device_memory(device)
    free = memory.total - memory.used + memory.reserved - memory.allocated
    return min(free, settings.gpu_memory_fraction * memory.total - memory.allocated)


def _machine(meminfo: Path) -> HostMemory | None:
    try:
        lines = [line.partition(":") for line in meminfo.read_text("ascii").splitlines()]
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in lines}
        return HostMemory(1024 * kilobytes["MemAvailable"], 1024 * kilobytes["MemTotal"])
    except (OSError, ValueError, IndexError, KeyError):
        return None


def _container(cgroup: Path) -> HostMemory | None:
    """Read the limit of cgroup v2; inactive file cache counts as available."""
    try:
        # "max", no limit, is no number.
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
        files = int(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
    return HostMemory(max(0, limit - used + files), limit)
