"""The GPU's memory, its errors and its turns: what torch's CUDA runtime needs done around it.

torch is imported inside functions: that takes seconds, and a GPU is not touched before a model is
loaded.
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

logger = logging.getLogger(__name__)

_SHORTAGE = re.compile(
    r"out of memory|OUT_OF_MEMORY|ALLOC_FAILED|ALLOCATION_FAILED|cudaErrorMemoryAllocation"
    r"|cublasCreate"
)
"""How CUDA and its libraries say that memory is short: cuBLAS and cuFFT `..._ALLOC_FAILED`, cuDNN 9
`..._DEVICE_ALLOCATION_FAILED`. cuBLAS cannot even be created (`CUBLAS_STATUS_NOT_INITIALIZED`)
where there is no room for its handle."""
_TRIM_EVERY_S = 10.0
"""Giving memory back waits for the GPU and costs its allocation anew, 20 to 50 ms in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """A GPU's memory, bytes."""

    used: int
    """By all programs."""
    total: int
    allocated: int
    """By this process' tensors."""
    reserved: int
    """By this process, tensors and what torch keeps for the next ones."""


def device_memory(device: str) -> DeviceMemory:
    """Look at a GPU's memory."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        used=total - free,
        total=total,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
    )


def known_device_memory(device: str | None) -> DeviceMemory | None:
    """Look at the memory of the device that models are on; `None` where there is nothing to tell.

    That is on a CPU, before the first load (`None`), when the GPU is not opened yet, and for a GPU
    that has failed, which answers no query: reports go on without it.
    """
    if device is None or device == "cpu":
        return None
    try:
        return device_memory(device)
    except RuntimeError:
        return None


def limit_device_memory(device: str, fraction: float) -> None:
    """Let this process take at most a share of the GPU's memory."""
    import torch

    torch.cuda.set_per_process_memory_fraction(fraction, device)


def is_memory_shortage(error: BaseException) -> bool:
    """Tell whether an error says that the GPU's memory does not suffice.

    torch has a type for it; libraries that it calls, and CUDA itself, say it in words.
    """
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None
    )


def context_is_lost(device: str) -> bool:
    """Tell whether the GPU refuses all further work of this process.

    After an illegal memory access, a failed assertion in a kernel or an error of the memory, every
    later call reports it again; after any other error the GPU goes on.
    """
    import torch

    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


_turns: defaultdict[str, contextlib.AbstractContextManager[object]] = defaultdict(threading.RLock)
"""One lock a GPU."""


@contextlib.contextmanager
def turn_on(device: str) -> Iterator[None]:
    """Hold the GPU for one forward pass, one load or one capture; a CPU takes several at a time.

    All kernels of a process run on one stream, one after the other, whichever thread launches
    them: passes of several threads would gain nothing and add up in memory.
    """
    with contextlib.nullcontext() if device == "cpu" else _turns[device], current(device):
        yield


@contextlib.contextmanager
def current(device: str) -> Iterator[None]:
    """Make a GPU this thread's current one, on which torch and NeMo make their streams."""
    if device == "cpu":
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


class CacheTrimmer:
    """Give memory back that torch keeps but does not use, now and then and never after each pass.

    A pass that finds its memory still reserved does not wait for it. So what exceeds the limit
    goes back `_TRIM_EVERY_S` after the last time, by the pass that ends then or, where none does,
    by a timer.
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
        """Release cached memory where the GPU is nearly full, also if other processes fill it."""
        memory = device_memory(self._device)
        if memory.used > self._full_above * memory.total and self._unused_mb() > 0:
            self._trim_if_due()

    def after_pass(self) -> None:
        """Trim if too much is kept; if it is too early for that, later."""
        if self._keep_mb is None or self._unused_mb() <= self._keep_mb:
            return
        if not self._trim_if_due() and self._timer is None and not self._closed:
            self._timer = threading.Timer(self._next_at - self._clock(), self._trim_later)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Start no more timers, and end the one that runs."""
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
        # A thread's border: if the GPU was lost meanwhile, the next pass raises.
        except RuntimeError:
            logger.warning("unused GPU memory could not be given back", exc_info=True)


class GraphVerdict:
    """Whether CUDA graphs may be tried, remembered over a restart.

    A faulty graph can end in an illegal memory access, after which the process can only be
    restarted: it must not meet the same fault again.
    """

    def __init__(self, path: Path, *, setup: str) -> None:
        """`setup` names what graphs depend on: a verdict counts for the same one alone."""
        self._path = path
        self._setup = setup

    def condemn(self, reason: str) -> None:
        """Remember that graphs failed."""
        content = json.dumps({"setup": self._setup, "reason": reason})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(content, encoding="utf-8")
        except OSError as error:
            logger.error("that CUDA graphs failed cannot be remembered: %s", error)

    def reason_against(self) -> str | None:
        """Tell why graphs must not be tried, if they must not."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or content.get("setup") != self._setup:
            return None
        return f"{content.get('reason')}; delete {self._path} to try them again"
