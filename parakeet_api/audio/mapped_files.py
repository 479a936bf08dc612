"""Map files into memory and search them."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WINDOW = 1 << 23
"""Bytes searched at once, so that other threads get the GIL in between."""
MAX_CANDIDATES = 10_000
"""Positions that look like a file's first frame; usual files have few."""


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file into memory, to be read; an empty file as a single zero byte."""
    size = path.stat().st_size
    with path.open("rb") as file, _mapped(file.fileno(), size) as data:
        yield data


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    # An empty file cannot be mapped; a single zero byte matches no format either.
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)


def find_all(data: mmap.mmap, *patterns: bytes) -> Iterator[int]:
    """Yield the positions of byte strings of one length, window by window."""
    for start in range(0, len(data), _WINDOW):
        end = start + _WINDOW + len(patterns[0]) - 1
        positions = (at for pattern in patterns for at in _positions(data, pattern, start, end))
        yield from sorted(itertools.islice(positions, MAX_CANDIDATES))


def _positions(data: mmap.mmap, pattern: bytes, start: int, end: int) -> Iterator[int]:
    while (start := data.find(pattern, start, end)) >= 0:
        yield start
        start += 1
