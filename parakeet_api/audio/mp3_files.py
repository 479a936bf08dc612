"""Find the mp3 files that a file consists of."""

from __future__ import annotations

import itertools
import mmap

from parakeet_api.audio.file_parts import MAX_PARTS, MediaFile, split_at, too_many
from parakeet_api.audio.mapped_files import MAX_FOUND, find_all, search
from parakeet_api.audio.mp3_frames import (
    FRAME,
    FrameBytes,
    id3_end,
    parse_header,
    side_info_end,
    tags_end,
)

_MAX_TAG = 1 << 24
"""Longest ID3v2 tag that is looked for: tags hold pictures."""


def is_mp3(data: mmap.mmap) -> bool:
    """Tell whether a file begins with an ID3v2 tag or a frame of layer III."""
    return data[:3] == b"ID3" or FRAME.match(data) is not None


def inspect_mp3(data: mmap.mmap) -> MediaFile:
    """Find concatenated mp3 files, each with the encoder delay in its first frame.

    ffmpeg would lose a frame at each joint, and decode the encoder's padding as silence.
    """
    starts = [0]
    found = itertools.islice(find_all(data, b"Xing", b"Info"), MAX_FOUND)
    first_frames = (frame for info in found if (frame := _frame_of(data, info)) is not None)
    for number, frame in enumerate(first_frames):
        if number == 0 and not _has_frames(data, tags_end(data), frame):
            # It is the first file's own, behind tags or padding.
            continue
        start = _tags_start(data, frame, after=starts[-1])
        if start > starts[-1]:
            starts.append(start)
        if len(starts) > MAX_PARTS:
            raise too_many(len(starts))
    return split_at(starts, len(data))


def _frame_of(data: mmap.mmap, info: int) -> int | None:
    """Return the start of the frame whose Xing or Info header is at `info`; `None` = of none."""
    for header_bytes in (36, 21, 13):
        frame = info - header_bytes
        if frame >= 0 and side_info_end(data[frame : frame + 4]) == header_bytes:
            return frame
    return None


def _has_frames(data: mmap.mmap, start: int, stop: int) -> bool:
    """Tell whether there are two successive frames, the first of them within `[start, stop)`."""
    found = search(data, FRAME, start, stop, longest=2)
    return any(_is_followed(data, match.start()) for match in found)


def _is_followed(data: mmap.mmap, frame: int) -> bool:
    head = data[frame : frame + 4]
    header = parse_header(head)
    length = FrameBytes(header)[head] if header else 0
    return length > 0 and FRAME.match(data, frame + length) is not None


def _tags_start(data: mmap.mmap, frame: int, *, after: int) -> int:
    """Return the start of the ID3v2 tags before a frame, or of the frame itself."""
    start = frame
    while (tag := data.rfind(b"ID3", max(after + 1, start - _MAX_TAG), start)) >= 0:
        if id3_end(data, tag) != start:
            break
        start = tag
    return start
