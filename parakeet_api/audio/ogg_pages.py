"""Read the pages of Ogg files (RFC 3533, 6)."""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator

from parakeet_api.audio.mapped_files import search

PAGE = re.compile(rb"OggS\x00[\x00-\x07]")
"""A page's magic number, version and header flags."""
FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")
"""The same with the flag "beginning of stream"."""
MAGIC_BYTES = 6
"""Length of both."""
HEADER_BYTES = 27
"""Length of a page's header without its segment table."""
MAX_PAGE = HEADER_BYTES + 255 + 255 * 255
CONTINUED = 1
"""The header flag "continued packet"."""
POSITION_AT, SERIAL_AT, CHECKSUM_AT, FLAGS_AT, SEGMENTS_AT = 6, 14, 22, 5, 26
"""Offsets of header fields."""
MAX_FIRST_PAGE = 4096
"""A first page holds only a codec's first header, about 100 bytes; a longer one is none."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def pages(data: mmap.mmap, extent: range) -> Iterator[range]:
    """Yield the byte ranges of the pages that begin within an extent.

    Other bytes are skipped. A page that is truncated or damaged may end beyond the extent; the next
    one is then searched for within it.
    """
    at = extent.start
    while (start := _next_page(data, at, extent.stop)) is not None:
        end = page_end(data, start)
        yield range(start, end)
        at = end if end <= extent.stop else start + 1


def _next_page(data: mmap.mmap, at: int, stop: int) -> int | None:
    if PAGE.match(data, at, stop):
        return at
    found = next(search(data, PAGE, at, stop, longest=MAGIC_BYTES), None)
    return found.start() if found else None


def page_end(data: mmap.mmap, start: int) -> int:
    """Return a page's end by its header; past the end of the file if the header is incomplete."""
    header = data[start : start + HEADER_BYTES]
    segments = header[-1]
    table = data[start + HEADER_BYTES : start + HEADER_BYTES + segments]
    if len(header) < HEADER_BYTES or len(table) < segments:
        return len(data) + 1
    return start + HEADER_BYTES + segments + sum(table)


def is_first_page(data: mmap.mmap, start: int, end: int) -> bool:
    """Tell whether these bytes are a complete page that can be a stream's first."""
    if not HEADER_BYTES < end - start <= MAX_FIRST_PAGE or end > len(data):
        return False
    return is_intact(data[start:end])


def is_intact(page: bytes) -> bool:
    """Check a page's checksum."""
    (declared,) = struct.unpack_from("<I", page, CHECKSUM_AT)
    return checksum(page) == int(declared)


def checksum(page: bytes) -> int:
    """Compute a page's CRC-32: zlib's with the bits reversed, and not inverted."""
    content = page[:CHECKSUM_AT] + bytes(4) + page[CHECKSUM_AT + 4 :]
    value = zlib.crc32(content.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)
