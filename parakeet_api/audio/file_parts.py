"""The result of inspecting a file: the recordings that it consists of, and the bytes it lacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from parakeet_api.errors import AudioDecodeError

MAX_PARTS = 1000
"""Each is decoded by an ffmpeg process of its own, whose start takes 25 ms."""


@dataclass(frozen=True, slots=True)
class Part:
    """A section of a file that is decoded as a recording of its own."""

    head: bytes
    """A header to send to ffmpeg before the ranges."""
    ranges: tuple[range | bytes, ...]
    """Byte ranges of the file, and bytes that replace those between two ranges."""


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
    has_damaged_structure: bool = False
    """Whether audio follows that cannot be reached, as what precedes it is damaged."""


ORDINARY = MediaFile()
"""A single recording, as far as its structure tells complete."""


def file_offsets(starts: Iterable[int]) -> list[int]:
    """List the offsets of concatenated files; the first is 0, whatever precedes its header.

    Raises `AudioDecodeError` for more than `MAX_PARTS`.
    """
    offsets = list(itertools.islice(starts, MAX_PARTS + 1))
    if len(offsets) > MAX_PARTS:
        raise too_many(len(offsets))
    return [0, *offsets[1:]]


def extents(starts: list[int], size: int) -> list[range]:
    """Return the byte ranges between the offsets of concatenated files of `size` bytes."""
    return [range(*ends) for ends in zip(starts, [*starts[1:], size], strict=True)]


def split_at(starts: list[int], size: int) -> MediaFile:
    """Make a part of each of the concatenated files; none of a single file."""
    parts = tuple(Part(b"", (extent,)) for extent in extents(starts, size))
    return MediaFile(parts=parts) if len(parts) > 1 else ORDINARY


def too_many(number: int) -> AudioDecodeError:
    """Return the error for a file of more recordings than are decoded."""
    return AudioDecodeError(
        f"The file is {number} recordings or more, one behind the other. Convert it first, for"
        " example to flac."
    )
