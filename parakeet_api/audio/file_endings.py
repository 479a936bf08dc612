"""Tell whether the end of a file is complete, where ffmpeg does not know or reports an error."""

from __future__ import annotations

import os
import re
from pathlib import Path

from parakeet_api.audio.mapped_files import mapped

_FLV_TAG_HEAD = 11
_GXF_END = bytes.fromhex("0000000001fb0000001000000000e1e2")
"""A packet that ends the stream (SMPTE 360M)."""
_MAX_FLAC_FRAME = 1 << 17
"""Upper bound in practice: 8 channels of 24 bits in blocks of 4608 samples take 110 KB."""
_FLAC_TRIES = 16
"""128 KB hold the sync code about eight times at frames, and four times by chance."""


def flac_ends_with_a_frame(path: Path) -> bool:
    """Tell whether a flac file's last frame is complete: then it was trimmed, not truncated.

    Checks the frame's CRC (RFC 9639, 9.3). The header does not tell: a stream copy keeps the old
    length there.
    """
    with mapped(path) as data:
        tail = data[max(0, len(data) - _MAX_FLAC_FRAME) :]
    starts = [match.start() for match in re.finditer(rb"\xff[\xf8\xf9]", tail)]
    # The CRC over a frame that includes its own CRC is 0.
    return any(_crc16(tail[start:]) == 0 for start in reversed(starts[-_FLAC_TRIES:]))


def flv_ends_with_a_tag(path: Path) -> bool:
    """Tell whether an FLV file's last tag is complete: its size follows each tag.

    ffmpeg reports no error for a file that ends inside a tag's header.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))
        tag_bytes = int.from_bytes(file.read(4))
        if not _FLV_TAG_HEAD <= tag_bytes <= size - 4:
            return False
        file.seek(size - 4 - tag_bytes + 1)
        return int.from_bytes(file.read(3)) + _FLV_TAG_HEAD == tag_bytes


def gxf_ends_with_its_last_packet(path: Path) -> bool:
    """Tell whether a GXF file is complete: behind its last packet, ffmpeg reports an error."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_GXF_END)))
        return file.read() == _GXF_END


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = value << 1 ^ (0x8005 if value >> 15 else 0)
            value &= 0xFFFF
        table.append(value)
    return table


_CRC16 = _table()


def _crc16(data: bytes) -> int:
    """Return the CRC-16 of a flac frame."""
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFF ^ _CRC16[value >> 8 ^ byte]
    return value
