"""Find concatenated files of one format, of which ffmpeg reads the first alone.

For wav, Ogg and mp3 files, `wav_files`, `ogg_files` and `mp3_files` do so.
"""

from __future__ import annotations

import itertools
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import replace

from parakeet_api.audio import flash_video
from parakeet_api.audio.declared_sizes import ASF_MAGIC, DECLARED_ENDS, shortened
from parakeet_api.audio.file_parts import MediaFile, Part, extents, file_offsets, split_at
from parakeet_api.audio.mapped_files import find_all, search
from parakeet_api.audio.transport_streams import changes_of_audio

_HEADERS = {
    b"fLaC": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b"TTA1": re.compile(rb"TTA1[\x01\x02]\x00[\x01-\x10]\x00"),
    b"#!AMR": re.compile(rb"#!AMR(?:-WB)?\n"),
    b"riff": re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"),
    b"FORM": re.compile(rb"FORM....AIF[FC](?:COMM|FVER)", re.DOTALL),
    b"NIST": re.compile(rb"NIST_1A\n *\d{4,5}\n"),
    ASF_MAGIC: re.compile(re.escape(ASF_MAGIC)),
    b"RIFF": re.compile(rb"RIFF.{4}AVI LIST", re.DOTALL),
    b".RMF": re.compile(rb"\.RMF\x00\x00\x00\x12\x00.{9}PROP", re.DOTALL),
    b".snd": re.compile(rb"\.snd\x00\x00.{6}\x00\x00\x00[\x01-\x1b]\x00.{3}\x00{3}.", re.DOTALL),
    b"Crea": re.compile(rb"Creative Voice File\x1a\x1a\x00"),
    b"nut/": re.compile(rb"nut/multimedia container\x00NM"),
    # The first block of WavPack: of sample 0, not empty as one of tags is, not another channel's.
    b"wvpk": re.compile(
        rb"wvpk.{4}[\x02-\x10]\x04\x00.{5}\x00{4}(?!\x00{4}).{5}[%s]"
        % re.escape(bytes(flags for flags in range(256) if flags & 8)),
        re.DOTALL,
    ),
    # An EBML header (RFC 8794, 11.2) with its document type.
    b"\x1aE\xdf\xa3": re.compile(
        rb"\x1aE\xdf\xa3.{1,80}?\x42\x82.{1,8}?(?:webm|matroska)", re.DOTALL
    ),
}
"""Magic number -> file header. Of such files, concatenated, ffmpeg reads only the first, or the
first two with the first one's description of the tracks."""
_MAX_BOXES = 100_000
"""A fragment takes two: 14 hours of fragments of a second."""
_FRAGMENT = re.compile(rb"\x00.{3}moof\x00\x00\x00\x10mfhd", re.DOTALL)
_FRAGMENT_HEAD = 16
_BOX_HEAD = 16
"""Size, type, and the 64-bit size that some have."""
_MIN_BOX = 8


def has_joinable_header(data: mmap.mmap) -> bool:
    """Tell whether a file begins with one of the magic numbers."""
    return any(data[: len(magic)] == magic for magic in _HEADERS)


def inspect_by_headers(data: mmap.mmap) -> MediaFile:
    """Find concatenated files by their headers; compare the end with what the first declares."""
    magic, header = next(
        (magic, header) for magic, header in _HEADERS.items() if data[: len(magic)] == magic
    )
    starts = (at for at in find_all(data, magic) if header.match(data, at))
    files = split_at(file_offsets(starts), len(data))
    end = DECLARED_ENDS[magic](data) if magic in DECLARED_ENDS else None
    return files if end is None else shortened(files, end, len(data), tolerance=end // 100)


def is_mov(data: mmap.mmap) -> bool:
    """Tell whether a file begins as MP4 and most QuickTime files do."""
    return data[4:8] == b"ftyp"


def inspect_mov(data: mmap.mmap) -> MediaFile:
    """Find concatenated MP4 or QuickTime files: ffmpeg reads only the first index."""
    boxes = list(_boxes(data))
    files = split_at(file_offsets(at for at, _, kind in boxes if kind == b"ftyp"), len(data))
    start, end, kind = boxes[-1] if boxes else (0, 0, b"")
    if end > len(data) and kind == b"moov":
        return replace(files, lacks_index=True)
    if not any(kind == b"moof" for _, _, kind in boxes):
        return files
    # Of fragments, ffmpeg reports neither one that is cut nor those behind a damaged one.
    if kind in (b"moof", b"mdat"):
        return shortened(files, end, len(data), tolerance=0)
    unreached = search(data, _FRAGMENT, start, len(data), longest=_FRAGMENT_HEAD)
    return replace(files, has_damaged_structure=next(unreached, None) is not None)


def _boxes(data: mmap.mmap) -> Iterator[tuple[int, int, bytes]]:
    """Yield start, end and type of the top-level boxes (ISO 14496-12, 4.2)."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + _BOX_HEAD > len(data):
            return
        size, kind, long_size = struct.unpack_from(">I4sQ", data, at)
        length = long_size if size == 1 else size
        yield at, at + length, kind
        # 0 is "to the end of the file", less than a header is damage.
        if length < _MIN_BOX:
            return
        at += length


def inspect_transport_stream(data: mmap.mmap) -> MediaFile:
    """Split a stream where its audio stream changes."""
    return split_at(file_offsets(itertools.chain([0], changes_of_audio(data))), len(data))


def inspect_flash_video(data: mmap.mmap) -> MediaFile:
    """Split an FLV file where its audio codec changes; each part gets a header."""
    starts = file_offsets(itertools.chain([0], flash_video.changes_of_audio(data)))
    parts = [
        Part(flash_video.header_for(data, extent.start), (extent,))
        for extent in extents(starts, len(data))
    ]
    return MediaFile(parts=tuple(parts) if len(parts) > 1 else ())
