"""The parts of a file that are recordings of their own, and what is missing from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from parakeet_api.errors import AudioDecodeError

MAX_PARTS = 1000
"""Each takes an ffmpeg process, 25 ms."""


@dataclass(frozen=True, slots=True)
class Part:
    """A section of an upload that is a recording of its own."""

    head: bytes
    """A header to send before the ranges."""
    ranges: tuple[range | bytes, ...]
    """Byte ranges of the upload; bytes replace some of it."""


@dataclass(frozen=True, slots=True)
class MediaFile:
    """The result of inspecting a file."""

    parts: tuple[Part, ...] = ()
    """To be decoded one after the other; empty = decode the file as it is."""
    missing_bytes: int = 0
    """Bytes that the structure declares beyond the end of the file."""
    expected_bytes: int = 0
    """Length of the file with the missing bytes."""
    ends_within_sample: bool = False
    """Whether the last sample of a format that declares no length is incomplete."""
    lacks_index: bool = False
    """Whether an index, without which nothing can be decoded, is beyond the end of the file."""


ORDINARY = MediaFile()


def file_offsets(starts: Iterable[int]) -> list[int]:
    """List the offsets of files, the first at 0. Raises `AudioDecodeError` for too many."""
    offsets = list(itertools.islice(starts, MAX_PARTS + 1))
    if len(offsets) > MAX_PARTS:
        raise too_many(len(offsets))
    return [0, *offsets[1:]]


def split_at(starts: list[int], size: int) -> MediaFile:
    ends = [*starts[1:], size]
    parts = tuple(Part(b"", (range(*ends_at),)) for ends_at in zip(starts, ends, strict=True))
    return MediaFile(parts=parts) if len(parts) > 1 else ORDINARY


def too_many(number: int) -> AudioDecodeError:
    return AudioDecodeError(
        f"The file is {number} recordings or more, one behind the other. Convert it first, for"
        " example to flac."
    )
