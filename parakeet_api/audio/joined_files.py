"""Find files of one format that were joined, of which ffmpeg would read the first alone."""

from __future__ import annotations

import itertools
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import replace

from parakeet_api.audio import declared_sizes, flash_video
from parakeet_api.audio.file_parts import ORDINARY, MediaFile, file_offsets, split_at
from parakeet_api.audio.mapped_files import find_all
from parakeet_api.audio.transport_streams import changes_of_audio

_MAX_BOXES = 100_000


ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
FILE_HEADERS = {
    b"fLaC": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b"TTA1": re.compile(rb"TTA1[\x01\x02]\x00[\x01-\x10]\x00"),
    b"#!AMR": re.compile(rb"#!AMR(?:-WB)?\n"),
    b"riff": re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"),
    b"FORM": re.compile(rb"FORM....AIF[FC](?:COMM|FVER)", re.DOTALL),
    b"NIST": re.compile(rb"NIST_1A\n *\d{4,5}\n"),
    ASF_HEADER: re.compile(re.escape(ASF_HEADER)),
    # An EBML header (RFC 8794, 11.2) with its document type.
    b"\x1aE\xdf\xa3": re.compile(
        rb"\x1aE\xdf\xa3.{1,80}?\x42\x82.{1,8}?(?:webm|matroska)", re.DOTALL
    ),
}
"""Magic number -> file header. Of such files, concatenated, ffmpeg reads only the first, or the
first two with the first one's description of the tracks."""
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def inspect_concatenated(data: mmap.mmap) -> MediaFile:
    """Find concatenated files of one format by their headers."""
    magic, head = next(
        (magic, head) for magic, head in FILE_HEADERS.items() if data[: len(magic)] == magic
    )
    starts = (at for at in find_all(data, magic) if head.match(data, at))
    files = split_at(file_offsets(starts), len(data))
    end = _ENDS[magic](data) if magic in _ENDS else None
    # Some writers declare a few bytes too many.
    missing = 0 if end is None else end - len(data)
    if end is None or missing <= end // 100:
        return files
    return replace(files, missing_bytes=missing, expected_bytes=end)


_ENDS = {
    b"riff": declared_sizes.w64_end,
    b"caff": declared_sizes.caf_end,
    b"NIST": declared_sizes.sphere_end,
}
"""Magic number -> declared end: where such a file is cut between two packets, ffmpeg reports
nothing."""


def inspect_mov(data: mmap.mmap) -> MediaFile:
    """Find concatenated MP4 or QuickTime files: ffmpeg reads only the first index."""
    boxes = list(_boxes(data))
    files = split_at(file_offsets(at for at, _, kind in boxes if kind == b"ftyp"), len(data))
    _, end, kind = boxes[-1] if boxes else (0, 0, b"")
    return replace(files, lacks_index=kind == b"moov" and end > len(data))


def _boxes(data: mmap.mmap) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, end and type of the top-level boxes (ISO 14496-12, 4.2)."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 16 > len(data):
            return
        size, kind, long_size = struct.unpack_from(">I4sQ", data, at)
        length = long_size if size == 1 else size
        yield at, at + length, kind
        if length < 8:  # noqa: PLR2004 - 0 is "to the end", less is broken
            return
        at += length


def inspect_transport_stream(data: mmap.mmap) -> MediaFile:
    return split_at(file_offsets(itertools.chain([0], changes_of_audio(data))), len(data))


def inspect_flash_video(data: mmap.mmap) -> MediaFile:
    starts = file_offsets(itertools.chain([0], flash_video.changes_of_audio(data)))
    files = split_at(starts, len(data))
    heads = (flash_video.header_for(data, start) for start in starts)
    return MediaFile(
        parts=tuple(
            replace(part, head=head) for part, head in zip(files.parts, heads, strict=False)
        )
    )


def inspect_asf(data: mmap.mmap) -> MediaFile:
    """Compare the data with the size that its object declares (ASF specification, 3.2 and 5.1)."""
    (header_size,) = struct.unpack_from("<Q", data, 16)
    properties = data.find(_ASF_FILE, 0, header_size)
    if properties < 0 or data[header_size : header_size + 16] != _ASF_DATA:
        return ORDINARY
    flags = int.from_bytes(data[properties + 88 : properties + 92], "little")
    size = int.from_bytes(data[header_size + 16 : header_size + 24], "little")
    missing = header_size + size - len(data)
    is_broadcast = flags & 1
    if is_broadcast or missing <= size // 100:
        return inspect_concatenated(data)
    return MediaFile(missing_bytes=missing, expected_bytes=header_size + size)
