"""The GPU's memory, errors and lock.

torch is imported inside functions: the import takes seconds, and a GPU must not be used before a
model is loaded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from parakeet_api.model.nemo_internals import release_workspaces

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OUT_OF_MEMORY|ALLOC_FAILED|ALLOCATION_FAILED|cudaErrorMemoryAllocation"
    r"|cublasCreate|NVML_SUCCESS"
)
"""How CUDA and its libraries report a lack of memory: cuBLAS and cuFFT `..._ALLOC_FAILED`, cuDNN 9
`..._DEVICE_ALLOCATION_FAILED`. cuBLAS fails to initialise (`CUBLAS_STATUS_NOT_INITIALIZED`) if
there is no memory for its handle. For its own message torch asks NVML which processes use the GPU,
and where that is forbidden, as in a part of a GPU (MIG), says `NVML_SUCCESS == r` instead (torch
issue 112377)."""
_TRIM_EVERY_S = 10.0
"""Releasing cached memory synchronises with the GPU and costs a new allocation: 20 to 50 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """A GPU's memory in bytes."""

    used: int
    """By all programs."""
    total: int
    allocated: int
    """By this process' tensors."""
    reserved: int
    """By this process: tensors and torch's cache."""


def device_memory(device: str) -> DeviceMemory:
    """Query a GPU's memory."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        used=total - free,
        total=total,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
    )


def known_device_memory(device: str | None) -> DeviceMemory | None:
    """Query the memory of the models' device; `None` if it is unknown.

    It is unknown on a CPU, in a replica elsewhere, before the first load (`device` is `None`),
    before the GPU is opened, and after a GPU has failed, so that reports still work then.
    """
    if device is None or not device.startswith("cuda"):
        return None
    try:
        return device_memory(device)
    except RuntimeError:
        return None


def has_bfloat16(device: str) -> bool:
    """Tell whether a device computes in bf16; a GPU must be the current one.

    GPUs before Ampere emulate it, which is slower than fp32.
    """
    import torch

    return device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def limit_device_memory(device: str, fraction: float) -> None:
    """Limit this process to a share of the GPU's memory."""
    import torch

    torch.cuda.set_per_process_memory_fraction(fraction, device)


def is_memory_shortage(error: BaseException) -> bool:
    """Tell whether an error reports a lack of GPU memory.

    torch has a type for it; its libraries and CUDA itself report it in the message.
    """
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def release_cached_memory(device: str) -> None:
    """Release what torch keeps cached on a GPU, workspaces included.

    Waits for its turn: unmapping memory synchronises streams, one of which may be capturing.
    """
    if device == "cpu":
        return
    import torch

    with turn_on(device):
        release_workspaces()
        torch.cuda.empty_cache()


def context_is_lost(device: str) -> bool:
    """Tell whether the GPU fails for the rest of this process.

    After an illegal memory access, a failed assertion in a kernel or a memory error, every later
    call reports it again; after any other error the GPU remains usable. Waits for its turn: while
    another thread captures, synchronizing is an error, and ends the capture.
    """
    import torch

    if device == "cpu":
        return False
    try:
        with turn_on(device):
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


_kept: list[object] = []


def keep_memory(*owners: object) -> None:
    """Keep what owns memory of a lost GPU until the process ends.

    torch aborts the process if it cannot free a pool of graphs, or pinned memory after a copy from
    it: requests would get no answer, and the next process would not learn that graphs failed. An
    error owns what the functions in its traceback hold.
    """
    _kept.extend(owners)


_turns: defaultdict[str, contextlib.AbstractContextManager[object]] = defaultdict(threading.RLock)
"""One lock per GPU."""


@contextlib.contextmanager
def turn_on(device: str) -> Iterator[None]:
    """Lock the GPU for one forward pass, load or capture; a CPU runs several at a time.

    All kernels of a process run on one stream, one after the other, whichever thread launches
    them: concurrent passes would not be faster, but their memory would add up.
    """
    with contextlib.nullcontext() if device == "cpu" else _turns[device], current(device):
        yield


@contextlib.contextmanager
def current(device: str) -> Iterator[None]:
    """Make a GPU this thread's current one, on which torch and NeMo create their streams."""
    if device == "cpu":
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


class CacheTrimmer:
    """Release torch's unused cached memory from time to time, but not after each pass.

    A pass whose memory is still reserved does not wait for an allocation. So cached memory above
    the limit is released at most every `_TRIM_EVERY_S`, after a pass or else by a timer.
    """

    def __init__(
        self,
        device: str,
        *,
        keep_mb: float | None,
        full_above: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep `keep_mb` MB cached (`None` = any amount) while less than `full_above` is in use."""
        self._device = device
        self._keep_mb = keep_mb
        self._full_above = full_above
        self._clock = clock
        self._next_at = clock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def before_pass(self) -> None:
        """Release cached memory if the GPU is nearly full, whichever process fills it."""
        memory = device_memory(self._device)
        if memory.used > self._full_above * memory.total and self._unused_mb() > 0:
            self._trim_if_due()

    def after_pass(self) -> None:
        """Trim if too much is cached; if the last trim is too recent, start a timer."""
        if self._keep_mb is None or self._unused_mb() <= self._keep_mb:
            return
        if not self._trim_if_due() and self._timer is None and not self._closed:
            self._timer = threading.Timer(self._next_at - self._clock(), self._trim_later)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Cancel the timer and start no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _unused_mb(self) -> float:
        import torch

        reserved = torch.cuda.memory_reserved(self._device)
        return (reserved - torch.cuda.memory_allocated(self._device)) / 1e6

    def _trim_if_due(self) -> bool:
        if self._clock() < self._next_at:
            return False
        import torch

        torch.cuda.empty_cache()
        self._next_at = self._clock() + _TRIM_EVERY_S
        return True

    def _trim_later(self) -> None:
        try:
            with turn_on(self._device):
                self._timer = None
                if not self._closed:
                    self.after_pass()
        # Must not end the timer's thread; if the GPU was lost, the next pass raises.
        except RuntimeError:
            logger.warning("unused GPU memory could not be given back", exc_info=True)


class GraphVerdict:
    """Whether CUDA graphs may be used; persists over a restart.

    A faulty graph can cause an illegal memory access, after which the process must restart; the
    new process must not repeat the fault.
    """

    def __init__(self, path: Path, *, setup: str) -> None:
        """`setup` names what graphs depend on; a stored verdict only counts for the same setup."""
        self._path = path
        self._setup = setup

    def condemn(self, reason: str) -> None:
        """Store that graphs failed."""
        content = json.dumps({"setup": self._setup, "reason": reason})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(content, encoding="utf-8")
        except OSError as error:
            logger.error("that CUDA graphs failed cannot be remembered: %s", error)

    def reason_against(self) -> str | None:
        """Return why graphs must not be used; `None` if they may."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or content.get("setup") != self._setup:
            return None
        return f"{content.get('reason')}; delete {self._path} to try them again"
