"""Compute the granule positions that the pages of an Opus stream lack (RFC 7845, 4).

ffmpeg stops at a page whose position is -1 although a packet ends on it; some recorders write all
of them so. What a stream's last page has beyond its position, ffmpeg discards, all of it if the
position is wrong. The durations of the packets tell what the position should be.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from parakeet_api.audio.mapped_files import search
from parakeet_api.audio.ogg_pages import (
    CHECKSUM_AT,
    CONTINUED,
    FIRST_PAGE,
    FLAGS_AT,
    HEADER_BYTES,
    MAGIC_BYTES,
    MAX_FIRST_PAGE,
    POSITION_AT,
    SEGMENTS_AT,
    SERIAL_AT,
    checksum,
    is_intact,
    page_end,
    pages,
)
from parakeet_api.errors import AudioDecodeError

_NO_POSITION = re.compile(rb"OggS\x00[\x00\x01\x04\x05]\xff{8}")
_PAGE_MAGIC = b"OggS"
_LAST_PAGE = re.compile(rb"OggS\x00[\x04-\x07]")
_LAST = 4
"""The header flag "end of stream"."""
_MAX_TRIMMED = 48_000
"""Samples at 48 kHz. An encoder fills up the last packet, of at most 0.12 s, and declares that."""
_MAX_INTERLEAVED = 1000
"""Pages of other streams before the last one of a stream: a page of audio lasts a second or so."""
_MAX_MENDED = 50_000
"""Pages: 14 hours of one page a second. Their patches are kept in memory."""
_IDENTIFICATION, _COMMENTS = b"OpusHead", b"OpusTags"
"""How the two header packets begin."""
_SILK_FRAMES, _HYBRID_FRAMES, _CELT_FRAMES = (
    (480, 960, 1920, 2880),
    (480, 960),
    (120, 240, 480, 960),
)
"""Samples of a frame at 48 kHz (RFC 6716, 3.1)."""

Patch = tuple[int, bytes]
"""Offset in the file, and the bytes that belong there."""


def missing_positions(data: mmap.mmap, extent: range) -> list[Patch]:
    """Compute the missing positions, and the checksums with them; none for streams without Opus.

    Raises `AudioDecodeError` for more pages than can be mended.
    """
    first = data[extent.start : min(extent.stop, extent.start + MAX_FIRST_PAGE)]
    if _IDENTIFICATION not in first:
        return []
    if not (_lacks_positions(data, extent) or _ends_wrong(data, extent)):
        return []
    streams: dict[bytes, _OpusStream] = {}
    patches: list[Patch] = []
    for extent_of_page in pages(data, extent):
        if extent_of_page.stop > extent.stop:
            continue
        page = data[extent_of_page.start : extent_of_page.stop]
        serial = page[SERIAL_AT : SERIAL_AT + 4]
        if FIRST_PAGE.match(page) and _payload(page).startswith(_IDENTIFICATION):
            streams[serial] = _OpusStream()
        if serial in streams:
            patches += streams[serial].mended(page, extent_of_page.start)
        if len(patches) > 2 * _MAX_MENDED:
            raise AudioDecodeError(
                f"More than {_MAX_MENDED} pages of the file have no position. Convert it first, for"
                " example to flac."
            )
    return patches


def _lacks_positions(data: mmap.mmap, extent: range) -> bool:
    found = search(data, _NO_POSITION, extent.start, extent.stop, longest=HEADER_BYTES)
    return next(found, None) is not None


def _ends_wrong(data: mmap.mmap, extent: range) -> bool:
    """Tell whether the position of any stream's last page discards more than an encoder adds."""
    found = search(data, _LAST_PAGE, extent.start, extent.stop, longest=MAGIC_BYTES)
    for at in (match.start() for match in found):
        last = data[at : page_end(data, at)]
        before = _page_before(data, extent, at, last[SERIAL_AT : SERIAL_AT + 4])
        if not (_is_whole(last) and _is_whole(before)):
            continue
        stream = _OpusStream()
        if not any(stream.mended(before, 0)) and any(stream.mended(last, at)):
            return True
    return False


def _is_whole(page: bytes) -> bool:
    return len(page) >= HEADER_BYTES and is_intact(page)


def _page_before(data: mmap.mmap, extent: range, at: int, serial: bytes) -> bytes:
    """Return the latest page of a stream before an offset; nothing if it is far away."""
    for _ in range(_MAX_INTERLEAVED):
        at = data.rfind(_PAGE_MAGIC, extent.start, at)
        if at < 0:
            break
        if data[at + SERIAL_AT : at + SERIAL_AT + 4] == serial:
            return data[at : page_end(data, at)]
    return b""


def _payload(page: bytes) -> bytes:
    return page[HEADER_BYTES + page[SEGMENTS_AT] :]


@dataclass(slots=True)
class _OpusStream:
    position: int = 0
    """Samples at 48 kHz up to the end of the latest packet."""
    _begun: int = 0
    """Samples of the latest packet that has begun."""

    def mended(self, page: bytes, at: int) -> Iterator[Patch]:
        """Take the next page, at an offset; yield its position and checksum if they are missing."""
        ended = list(self._ended(page))
        before = self.position
        self.position += sum(ended)
        (declared,) = struct.unpack_from("<q", page, POSITION_AT)
        is_wrong = (
            any(ended)
            and page[FLAGS_AT] & _LAST
            and (declared <= before or self.position - declared > _MAX_TRIMMED)
        )
        if declared >= 0 and not is_wrong:
            self.position = declared
        elif any(ended) and is_intact(page):
            position = struct.pack("<q", self.position)
            corrected = page[:POSITION_AT] + position + page[POSITION_AT + 8 :]
            yield at + POSITION_AT, position
            yield at + CHECKSUM_AT, struct.pack("<I", checksum(corrected))

    def _ended(self, page: bytes) -> Iterator[int]:
        """Yield the samples of each packet that ends on a page."""
        start = HEADER_BYTES + page[SEGMENTS_AT]
        begins = not page[FLAGS_AT] & CONTINUED
        for length in page[HEADER_BYTES:start]:
            if begins:
                self._begun = _samples(page[start : start + min(length, len(_IDENTIFICATION))])
            start += length
            begins = length < 255  # noqa: PLR2004 - of a longer packet, more follows
            if begins:
                yield self._begun


def _samples(packet: bytes) -> int:
    """Return the duration of an Opus packet by its first bytes (RFC 6716, 3.1 and 3.2)."""
    if not packet or packet in (_IDENTIFICATION, _COMMENTS):
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    frames = _SILK_FRAMES if config < 12 else _HYBRID_FRAMES if config < 16 else _CELT_FRAMES  # noqa: PLR2004
    count = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[code]
    return frames[config % len(frames)] * count
