"""What the C library keeps of freed memory, given back to the system.

A forward pass on a CPU takes and frees some hundred blocks of all sizes. What stays allocated
between them, and each thread's own arena, leaves holes that no later pass fits: the process grows
for hours although it uses no more.
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
"""A trim takes 10 to 30 ms, and what it gave back is taken again at 0.1 s of system time."""
_GROWTH_BYTES = 64_000_000
"""Clips now and then leave less: they need no trim."""


def trim_heap() -> None:
    """Give all freed memory back, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int | None:
    """Return the process' resident memory; `None` where the system does not report it."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class HeapTrimmer:
    """Trim when the process has grown and the last trim was a while ago."""

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
        self._left_bytes = 0
        """What was resident after the last trim."""

    def trim_if_grown(self) -> None:
        """Trim, unless that was done lately or is being done by another thread."""
        if self._clock() < self._next_at or not self._trimming.acquire(blocking=False):
            return
        try:
            resident = self._resident()
            if resident is None or resident - self._left_bytes < _GROWTH_BYTES:
                return
            self._trim()
            self._left_bytes = self._resident() or 0
            self._next_at = self._clock() + _EVERY_S
        finally:
            self._trimming.release()
