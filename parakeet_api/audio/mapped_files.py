"""Map a file into memory, and search it in windows: other threads get the GIL between them."""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WINDOW = 1 << 23
"""Bytes searched in one call, which holds the GIL: a few milliseconds."""
MAX_FOUND = 10_000
"""Most positions of a byte string in a window: usual files have few of those searched for."""


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file for reading; an empty one as a single zero byte, which no format begins with."""
    size = path.stat().st_size
    with path.open("rb") as file, _mapped(file.fileno(), size) as data:
        yield data


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    # An empty file cannot be mapped.
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)


def find_all(data: mmap.mmap, *patterns: bytes) -> Iterator[int]:
    """Yield the positions of byte strings of equal length, in order; at most `MAX_FOUND` a window.

    Overlapping occurrences count too.
    """
    for start in range(0, len(data), _WINDOW):
        end = start + _WINDOW + len(patterns[0]) - 1
        positions = (at for pattern in patterns for at in _positions(data, pattern, start, end))
        yield from sorted(itertools.islice(positions, MAX_FOUND))


def _positions(data: mmap.mmap, pattern: bytes, start: int, end: int) -> Iterator[int]:
    while (start := data.find(pattern, start, end)) >= 0:
        yield start
        start += 1


def search(
    data: mmap.mmap, pattern: re.Pattern[bytes], start: int, stop: int, *, longest: int
) -> Iterator[re.Match[bytes]]:
    """Yield the matches of a pattern within `[start, stop)`, overlapping ones too.

    None may have more than `longest` bytes.
    """
    for window in range(start, stop, _WINDOW):
        at, end = window, window + _WINDOW
        # Not finditer: while it is suspended, the map cannot be closed.
        while match := pattern.search(data, at, min(stop, end + longest - 1)):
            if match.start() >= end:
                break
            yield match
            at = match.start() + 1
