"""Tell whether a recording's end is complete, where ffmpeg does not know or reports a wrong error.

A recording ends with its file, or before another one that was concatenated.
"""

from __future__ import annotations

import re
from pathlib import Path

from parakeet_api.audio.mapped_files import mapped

_FLV_TAG_HEAD = 11
_FLV_LENGTH_BYTES = 4
_GXF_END = bytes.fromhex("0000000001fb0000001000000000e1e2")
"""A packet that ends the stream (SMPTE 360M)."""
_MAX_FLAC_FRAME = 1 << 17
"""Upper bound in practice: 8 channels of 24 bits in blocks of 4608 samples take 110 KB."""
_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_TRIES = 16
"""Sync codes checked: at random, the last 128 KB hold four beside those of frames."""


def flac_ends_with_a_frame(path: Path, end: int) -> bool:
    """Tell whether the flac frame before `end` is complete: it was trimmed then, not truncated.

    Checks the frame's CRC (RFC 9639, 9.3). The header is not reliable: a stream copy keeps the
    length of its source.
    """
    with mapped(path) as data:
        tail = data[max(0, end - _MAX_FLAC_FRAME) : end]
    starts = [match.start() for match in _FLAC_SYNC.finditer(tail)]
    # The CRC over a frame that includes its own CRC is 0.
    return any(_crc16(tail[start:]) == 0 for start in reversed(starts[-_FLAC_TRIES:]))


def flv_ends_with_a_tag(path: Path, end: int) -> bool:
    """Tell whether the FLV tag before `end` is complete, by the length that follows each tag.

    ffmpeg reports no error for a file that ends inside a tag's header.
    """
    with path.open("rb") as file:
        file.seek(max(0, end - _FLV_LENGTH_BYTES))
        tag_bytes = int.from_bytes(file.read(_FLV_LENGTH_BYTES))
        if not _FLV_TAG_HEAD <= tag_bytes <= end - _FLV_LENGTH_BYTES:
            return False
        file.seek(end - _FLV_LENGTH_BYTES - tag_bytes + 1)
        return int.from_bytes(file.read(3)) + _FLV_TAG_HEAD == tag_bytes


def gxf_ends_with_its_last_packet(path: Path) -> bool:
    """Tell whether a GXF file is complete: at the end of every one, ffmpeg reports an error."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_GXF_END)))
        return file.read() == _GXF_END


def _crc16_table() -> list[int]:
    """Return the CRC-16 of each byte, by the polynomial of RFC 9639, 9.3."""
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = value << 1 ^ (0x8005 if value >> 15 else 0)
            value &= 0xFFFF
        table.append(value)
    return table


_CRC16 = _crc16_table()


def _crc16(data: bytes) -> int:
    """Return the CRC-16 of a flac frame."""
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFF ^ _CRC16[value >> 8 ^ byte]
    return value
