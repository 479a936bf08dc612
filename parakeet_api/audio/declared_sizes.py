"""Compare the length of a file with the one that its header declares."""

from __future__ import annotations

import mmap
import re
import struct

from parakeet_api.audio.file_parts import ORDINARY, MediaFile

_MAX_CHUNKS = 1000
"""Chunks of a caf file: usual files have a dozen, a hostile one could have millions."""
_MAX_HEADER = 1 << 16
_UNKNOWN_LONG_SIZE = 1 << 48
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_W64_CHUNK_HEAD = 24
_SPHERE_CODINGS = frozenset({b"pcm", b"ulaw", b"alaw", b"mu-law"})
SOX = frozenset({b".SoX", b"XoS."})
_SOX_SAMPLE_BYTES = 4
IRCAM = re.compile(rb"\x64\xa3[\x01-\x04]\x00|\x00[\x01-\x04]\xa3\x64")
IRCAM_HEADER_BYTES = 1024
_IRCAM_SAMPLE_BYTES = 0xFF
"""The bits of an encoding's number that give the size of a sample."""
WTV_HEADER = bytes.fromhex("b7d800203749da11a64e0007e95ead8d")
_WTV_ROOT = 0x38
"""Where the number of the root directory's first sector stands."""
WTV_SECTOR = 4096


def inspect_avi(data: mmap.mmap) -> MediaFile:
    (size,) = struct.unpack_from("<I", data, 4)
    missing = 8 + size - len(data)
    # A recorder that was killed did not write the size; some writers declare a few bytes too many.
    if size in (0, 0xFFFFFFFF) or missing <= 8 + size // 100:
        return ORDINARY
    return MediaFile(missing_bytes=missing, expected_bytes=8 + size)


def w64_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a Sony Wave64 file's samples; `None` if it is unknown."""
    chunk = data.find(_W64_DATA, 0, _MAX_HEADER)
    size = int.from_bytes(data[chunk + 16 : chunk + 24], "little") if chunk >= 0 else 0
    return chunk + size if _W64_CHUNK_HEAD < size < _UNKNOWN_LONG_SIZE else None


def caf_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a Core Audio file's samples; `None` if it is unknown."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            break
        kind, size = struct.unpack_from(">4sq", data, at)
        if kind == b"data" and size < _UNKNOWN_LONG_SIZE:
            return at + 12 + int(size) if size >= 0 else None
        if size < 0:
            break
        at += 12 + size
    return None


def sphere_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a NIST SPHERE file's samples; `None` if it is unknown."""
    lines = data[:_MAX_HEADER].split(b"end_head")[0].split(b"\n")
    fields = {words[0]: words[2] for line in lines[2:] if len(words := line.split()) == 3}  # noqa: PLR2004
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    header = lines[1:2]
    numbers = [*(line.strip() for line in header), *(fields.get(name, b"") for name in names)]
    if (
        not header
        or fields.get(b"sample_coding", b"pcm") not in _SPHERE_CODINGS
        or not all(
            len(number) < 12 and number.isdigit()  # noqa: PLR2004
            for number in numbers
        )
    ):
        return None
    start, count, channels, sample_bytes = map(int, numbers)
    return start + count * channels * sample_bytes


def inspect_sox(data: mmap.mmap) -> MediaFile:
    """Compare the data with the number of samples that the header declares."""
    order = "<" if data[:4] == b".SoX" else ">"
    header, samples, rate, channels = struct.unpack_from(f"{order}IQdI", data, 4)
    expected = 4 + header + samples * _SOX_SAMPLE_BYTES
    is_short = expected - len(data) > _SOX_SAMPLE_BYTES * channels * rate
    missing = expected - len(data) if is_short else 0
    return MediaFile(missing_bytes=missing, expected_bytes=expected)


def inspect_ircam(data: mmap.mmap) -> MediaFile:
    """Find out whether a file that declares no length ends within a sample of all channels."""
    order = "<" if data[3] == 0 else ">"
    channels, encoding = struct.unpack_from(f"{order}II", data, 8)
    frame_bytes = channels * (encoding & _IRCAM_SAMPLE_BYTES)
    rest = (len(data) - IRCAM_HEADER_BYTES) % frame_bytes if frame_bytes else 0
    return MediaFile(ends_within_sample=rest > 0)


def inspect_wtv(data: mmap.mmap) -> MediaFile:
    """Find out whether the root directory, which recorders write at the end, is missing."""
    (sector,) = struct.unpack_from("<I", data, _WTV_ROOT)
    return MediaFile(lacks_index=sector * WTV_SECTOR >= len(data))
