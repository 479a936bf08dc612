"""Read the pages of Ogg files (RFC 3533, 6), and mend the positions of Opus streams.

ffmpeg stops at a page of Opus whose granule position is -1 although a packet ends on it; some
recorders write all of them so. The durations of the packets tell what the position should be.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = re.compile(rb"OggS\x00[\x00-\x07]")
MAGIC = b"OggS\0"
BOS_FLAGS = frozenset({b"\2", b"\3", b"\6", b"\7"})
"""Header flags with the bit "beginning of stream"."""
_HEADER_BYTES = 27
MAX_PAGE = _HEADER_BYTES + 255 + 255 * 255
_MAX_FIRST_PAGE = 4096
"""It holds only the codec's first header, about 100 bytes; a longer one is not a first page."""
_CONTINUED = 1
_NO_POSITION = re.compile(rb"OggS\x00[\x00\x01\x04\x05]\xff{8}")
_POSITION_AT, _CHECKSUM_AT = 6, 22
_MAX_MENDED = 50_000
"""Pages: 14 hours of one page a second."""
_WINDOW = 1 << 23
"""Bytes searched at once, so that other threads get the GIL in between."""
_OPUS_HEADERS = (b"OpusHead", b"OpusTags")
_SILK_FRAMES, _HYBRID_FRAMES, _CELT_FRAMES = (
    (480, 960, 1920, 2880),
    (480, 960),
    (120, 240, 480, 960),
)
"""Samples of a frame at 48 kHz (RFC 6716, 3.1)."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Patch = tuple[int, bytes]
"""Offset in the file, and the bytes that belong there."""


def page_end(data: mmap.mmap, start: int) -> int:
    """Return a page's end by its header; past the end of the file if the header is incomplete."""
    header = data[start : start + _HEADER_BYTES]
    segments = header[-1]
    table = data[start + _HEADER_BYTES : start + _HEADER_BYTES + segments]
    if len(header) < _HEADER_BYTES or len(table) < segments:
        return len(data) + 1
    return start + _HEADER_BYTES + segments + sum(table)


def is_first_page(data: mmap.mmap, start: int, end: int) -> bool:
    """Tell whether a stream's first page is here, and whole."""
    if not _HEADER_BYTES < end - start <= _MAX_FIRST_PAGE or end > len(data):
        return False
    return _is_whole(data[start:end])


def _is_whole(page: bytes) -> bool:
    (declared,) = struct.unpack_from("<I", page, _CHECKSUM_AT)
    return checksum(page) == int(declared)


def checksum(page: bytes) -> int:
    """Compute the CRC-32 of a page: zlib's with the bits reversed, and not inverted."""
    content = page[:_CHECKSUM_AT] + bytes(4) + page[_CHECKSUM_AT + 4 :]
    value = zlib.crc32(content.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def mended_positions(data: mmap.mmap, extent: range) -> list[Patch]:
    """Compute the missing positions of an Opus stream; none for other streams, or if none miss."""
    first = data[extent.start : min(extent.stop, extent.start + _MAX_FIRST_PAGE)]
    if _OPUS_HEADERS[0] not in first or not _lacks_positions(data, extent):
        return []
    stream = _OpusStream(serial=first[14:18])
    patches: list[Patch] = []
    at = extent.start
    while at < extent.stop and len(patches) < 2 * _MAX_MENDED:
        end = page_end(data, at)
        if not PAGE.match(data, at) or end > extent.stop:
            following = PAGE.search(data, at + 1, extent.stop)
            if following is None:
                break
            at = following.start()
            continue
        patches += stream.mended(data[at:end], at)
        at = end
    return patches


def _lacks_positions(data: mmap.mmap, extent: range) -> bool:
    return any(
        _NO_POSITION.search(data, start, min(extent.stop, start + _WINDOW + _HEADER_BYTES))
        for start in range(extent.start, extent.stop, _WINDOW)
    )


@dataclass(slots=True)
class _OpusStream:
    serial: bytes
    position: int = 0
    """Samples at 48 kHz up to the end of the latest packet."""
    _begun: int = 0
    """Samples of the packet that has begun and not ended."""

    def mended(self, page: bytes, at: int) -> Iterator[Patch]:
        """Take a page; yield its position and checksum if the position was missing."""
        if page[14:18] != self.serial:
            return
        ended = list(self._ended(page))
        self.position += sum(ended)
        (declared,) = struct.unpack_from("<q", page, _POSITION_AT)
        if declared >= 0:
            self.position = declared
        elif any(ended) and _is_whole(page):
            position = struct.pack("<q", self.position)
            corrected = page[:_POSITION_AT] + position + page[_POSITION_AT + 8 :]
            yield at + _POSITION_AT, position
            yield at + _CHECKSUM_AT, struct.pack("<I", checksum(corrected))

    def _ended(self, page: bytes) -> Iterator[int]:
        """Yield the samples of each packet that ends on a page."""
        start = _HEADER_BYTES + page[26]
        begins = not page[5] & _CONTINUED
        for length in page[_HEADER_BYTES:start]:
            if begins:
                self._begun = _samples(page[start : start + len(_OPUS_HEADERS[0])])
            start += length
            begins = length < 255  # noqa: PLR2004 - of a longer packet, more follows
            if begins:
                yield self._begun


def _samples(packet: bytes) -> int:
    """Return the duration of an Opus packet by its first bytes (RFC 6716, 3.1 and 3.2)."""
    if not packet or packet in _OPUS_HEADERS:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    frames = _SILK_FRAMES if config < 12 else _HYBRID_FRAMES if config < 16 else _CELT_FRAMES  # noqa: PLR2004
    count = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[code]
    return frames[config % len(frames)] * count
