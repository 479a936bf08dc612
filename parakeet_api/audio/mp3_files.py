"""Find mp3 files that were joined."""

from __future__ import annotations

import itertools
import mmap

from parakeet_api.audio.file_parts import MAX_PARTS, MediaFile, split_at, too_many
from parakeet_api.audio.mapped_files import MAX_CANDIDATES, find_all
from parakeet_api.audio.mp3_frames import id3_end, side_info_end

_MAX_MP3_TAG = 1 << 24


def inspect_mp3(data: mmap.mmap) -> MediaFile:
    """Find concatenated mp3 files, each with the encoder delay in its first frame.

    ffmpeg would lose a frame at each joint, and decode the encoder's padding as silence.
    """
    starts = [0]
    for info in itertools.islice(find_all(data, b"Xing", b"Info"), MAX_CANDIDATES):
        start = _mp3_file_start(data, info)
        if start is not None and start > starts[-1]:
            starts.append(start)
            if len(starts) > MAX_PARTS:
                raise too_many(len(starts))
    return split_at(starts, len(data))


def _mp3_file_start(data: mmap.mmap, info: int) -> int | None:
    """Return the start of the mp3 file whose first frame has its Xing or Info header at `info`."""
    for header_bytes in (36, 21, 13):
        frame = info - header_bytes
        if frame >= 0 and side_info_end(data[frame : frame + 4]) == header_bytes:
            tag = data.rfind(b"ID3", max(0, frame - _MAX_MP3_TAG), frame)
            return tag if tag >= 0 and id3_end(data, tag) == frame else frame
    return None
