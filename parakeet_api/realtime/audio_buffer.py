"""The part of a session's audio that may still be needed, addressed by position."""

from __future__ import annotations

import threading

import numpy as np

from parakeet_api.transcript import Pcm

_FIRST_SIZE = 16 * 1024


class AudioBuffer:
    """Samples from `start` to `end`, counted from the start of the session; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: Pcm = np.zeros(_FIRST_SIZE, np.int16)
        self._count = 0
        self._start = 0

    @property
    def start(self) -> int:
        """Position of the first sample in the buffer."""
        return self._start

    @property
    def end(self) -> int:
        """Position after the last sample."""
        with self._lock:
            return self._start + self._count

    def append(self, samples: Pcm) -> None:
        """Append samples."""
        with self._lock:
            needed = self._count + len(samples)
            if needed > len(self._samples):
                grown = np.zeros(max(needed, 2 * len(self._samples)), np.int16)
                grown[: self._count] = self._samples[: self._count]
                self._samples = grown
            self._samples[self._count : needed] = samples
            self._count = needed

    def copy(self, start: int, end: int) -> Pcm:
        """Copy those samples of a range that are in the buffer."""
        with self._lock:
            first = max(0, start - self._start)
            last = min(max(first, end - self._start), self._count)
            return self._samples[first:last].copy()

    def forget_before(self, position: int) -> None:
        """Discard the samples before a position."""
        with self._lock:
            gone = min(max(0, position - self._start), self._count)
            rest = self._samples[gone : self._count]
            size = max(_FIRST_SIZE, 2 * len(rest))
            # Also shrink the buffer after a long turn.
            kept = np.zeros(size, np.int16) if size < len(self._samples) else self._samples
            kept[: len(rest)] = rest.copy()
            self._samples, self._count = kept, len(rest)
            self._start += gone
