"""Compare the length of a file with what its header declares, where ffmpeg does not.

If such a file was truncated between two packets, ffmpeg reports nothing.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import replace

from parakeet_api.audio.file_parts import ORDINARY, MediaFile

ASF_MAGIC = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_BROADCAST = 1
"""Flag of a live stream, whose sizes are not valid."""
_MAX_CHUNKS = 1000
"""Chunks of a Core Audio or RealMedia file: usual ones have a dozen, a hostile one could have
millions."""
_MAX_HEADER = 1 << 16
_UNKNOWN_SIZE = 1 << 48
"""From this on, a 64-bit size is one that a recorder did not know yet."""
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_W64_CHUNK_HEAD = 24
_REAL_DATA_HEAD = 18
_SPHERE_CODINGS = frozenset({b"pcm", b"ulaw", b"alaw", b"mu-law"})
_MAX_DIGITS = 11
_SOX_MAGIC = frozenset({b".SoX", b"XoS."})
_SOX_HEADER_BYTES = 28
_SOX_SAMPLE_BYTES = 4
_IRCAM_MAGIC = re.compile(rb"\x64\xa3[\x01-\x04]\x00|\x00[\x01-\x04]\xa3\x64")
_IRCAM_HEADER_BYTES = 1024
_IRCAM_SAMPLE_BYTES = 0xFF
"""The bits of an encoding's number that give the size of a sample."""
_WTV_MAGIC = bytes.fromhex("b7d800203749da11a64e0007e95ead8d")
_WTV_ROOT_AT = 0x38
"""Offset of the number of the root directory's first sector."""
_WTV_SECTOR = 4096


def shortened(file: MediaFile, end: int, size: int, *, tolerance: int) -> MediaFile:
    """Add the bytes that a file of `size` bytes lacks up to a declared end.

    Some writers declare a little too much: up to `tolerance` bytes may be missing.
    """
    missing = end - size
    if missing <= tolerance:
        return file
    return replace(file, missing_bytes=missing, expected_bytes=end)


def _avi_end(data: mmap.mmap) -> int | None:
    """Return the declared end of an AVI file's first RIFF chunk."""
    size = int.from_bytes(data[4:8], "little")
    # A recorder that was killed did not write the size.
    return None if size in (0, 0xFFFFFFFF) or data[8:12] != b"AVI " else 8 + size


def _real_media_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a RealMedia file's packets."""
    at = 0
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, size = struct.unpack_from(">4sI", data, at)
        if kind == b"DATA":
            # A live stream declares no more than the header.
            return at + int(size) if size > _REAL_DATA_HEAD else None
        if size < 8:  # noqa: PLR2004 - damaged
            break
        at += size
    return None


def _asf_end(data: mmap.mmap) -> int | None:
    """Return the declared end of an ASF file's packets (ASF specification, 3.2 and 5.1)."""
    header_size = int.from_bytes(data[16:24], "little")
    if not 0 < header_size < len(data):
        return None
    properties = data.find(_ASF_FILE, 0, header_size)
    if properties < 0 or data[header_size : header_size + 16] != _ASF_DATA:
        return None
    flags = int.from_bytes(data[properties + 88 : properties + 92], "little")
    size = int.from_bytes(data[header_size + 16 : header_size + 24], "little")
    return None if flags & _ASF_BROADCAST else header_size + size


def _w64_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a Sony Wave64 file's samples."""
    chunk = data.find(_W64_DATA, 0, _MAX_HEADER)
    size = int.from_bytes(data[chunk + 16 : chunk + 24], "little") if chunk >= 0 else 0
    return chunk + size if _W64_CHUNK_HEAD < size < _UNKNOWN_SIZE else None


def _caf_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a Core Audio file's samples."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            break
        kind, size = struct.unpack_from(">4sq", data, at)
        if kind == b"data" and size < _UNKNOWN_SIZE:
            return at + 12 + int(size) if size >= 0 else None
        if size < 0:
            break
        at += 12 + size
    return None


def _sphere_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a NIST SPHERE file's samples."""
    lines = data[:_MAX_HEADER].split(b"end_head")[0].split(b"\n")
    fields = {words[0]: words[2] for line in lines[2:] if len(words := line.split()) == 3}  # noqa: PLR2004
    if fields.get(b"sample_coding", b"pcm") not in _SPHERE_CODINGS:
        return None
    header = lines[1].strip() if len(lines) > 1 else b""
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    numbers = [header, *(fields.get(name, b"") for name in names)]
    if not all(number.isdigit() and len(number) <= _MAX_DIGITS for number in numbers):
        return None
    start, count, channels, sample_bytes = map(int, numbers)
    return start + count * channels * sample_bytes


DECLARED_ENDS = {
    ASF_MAGIC: _asf_end,
    b"riff": _w64_end,
    b"caff": _caf_end,
    b"NIST": _sphere_end,
    b"RIFF": _avi_end,
    b".RMF": _real_media_end,
}
"""Magic number -> function that returns the declared end; `None` if the header declares none."""


def is_sox(data: mmap.mmap) -> bool:
    """Tell whether a file begins with a SoX header."""
    return data[:4] in _SOX_MAGIC and len(data) >= _SOX_HEADER_BYTES


def inspect_sox(data: mmap.mmap) -> MediaFile:
    """Compare the data with the number of samples that the header declares."""
    order = "<" if data[:4] == b".SoX" else ">"
    header, samples, rate, channels = struct.unpack_from(f"{order}IQdI", data, 4)
    end = 4 + header + samples * _SOX_SAMPLE_BYTES
    if not end - len(data) > _SOX_SAMPLE_BYTES * channels * abs(rate):
        return ORDINARY
    return shortened(ORDINARY, end, len(data), tolerance=0)


def is_ircam(data: mmap.mmap) -> bool:
    """Tell whether a file begins with an IRCAM header."""
    return _IRCAM_MAGIC.match(data) is not None and len(data) > _IRCAM_HEADER_BYTES


def inspect_ircam(data: mmap.mmap) -> MediaFile:
    """Tell whether a file, whose format declares no length, ends within a sample."""
    order = "<" if data[3] == 0 else ">"
    channels, encoding = struct.unpack_from(f"{order}II", data, 8)
    frame_bytes = channels * (encoding & _IRCAM_SAMPLE_BYTES)
    rest = (len(data) - _IRCAM_HEADER_BYTES) % frame_bytes if frame_bytes else 0
    return MediaFile(ends_within_sample=rest > 0)


def is_wtv(data: mmap.mmap) -> bool:
    """Tell whether a file begins as a recording of Windows Media Center does."""
    return data[:16] == _WTV_MAGIC and len(data) >= _WTV_SECTOR


def inspect_wtv(data: mmap.mmap) -> MediaFile:
    """Tell whether the root directory, which recorders write at the end, is missing."""
    (sector,) = struct.unpack_from("<I", data, _WTV_ROOT_AT)
    return MediaFile(lacks_index=sector * _WTV_SECTOR >= len(data))
