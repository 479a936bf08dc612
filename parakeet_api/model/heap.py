"""Return freed memory from the C library's heap to the system.

A forward pass on a CPU allocates and frees some hundred blocks of all sizes. Longer-lived blocks
between them and per-thread arenas fragment the heap, so the process grows for hours although it
uses no more memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_STATM = Path("/proc/self/statm")
_EVERY_S = 5.0
"""A trim takes 10 to 30 ms, and allocating the memory again takes 0.1 s of system time."""
_GROWTH_BYTES = 64_000_000
"""Occasional clips free less, and need no trim."""


def trim_heap() -> None:
    """Return all freed memory to the system, if the C library supports it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int | None:
    """Return the process' resident memory; `None` if the system does not report it."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class HeapTrimmer:
    """Trim the heap if the process has grown, but not too often."""

    def __init__(
        self,
        *,
        trim: Callable[[], None] = trim_heap,
        resident: Callable[[], int | None] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trim = trim
        self._resident = resident
        self._clock = clock
        self._trimming = threading.Lock()
        self._next_at = clock()
        self._trimmed_bytes = 0
        """Resident memory after the last trim."""

    def trim_if_grown(self) -> None:
        """Trim, unless the last trim is recent or another thread is trimming."""
        if self._clock() < self._next_at or not self._trimming.acquire(blocking=False):
            return
        try:
            resident = self._resident()
            if resident is None or resident - self._trimmed_bytes < _GROWTH_BYTES:
                return
            self._trim()
            self._trimmed_bytes = self._resident() or 0
            self._next_at = self._clock() + _EVERY_S
        finally:
            self._trimming.release()
