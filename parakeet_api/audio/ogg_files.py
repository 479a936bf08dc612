"""Inspect Ogg files: chained streams, a truncated last page, Opus pages without a position."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import replace

from parakeet_api.audio import ogg_pages
from parakeet_api.audio.file_parts import (
    MAX_PARTS,
    MediaFile,
    Part,
    extents,
    file_offsets,
    split_at,
    too_many,
)
from parakeet_api.audio.mapped_files import search
from parakeet_api.audio.opus_positions import Patch, missing_positions


def is_ogg(data: mmap.mmap) -> bool:
    """Tell whether a file begins with a page."""
    return data[:4] == b"OggS"


def inspect_ogg(data: mmap.mmap) -> MediaFile:
    """Find the links of a chained stream: ffmpeg reads the first one alone."""
    missing = _missing_of_last_page(data)
    starts = file_offsets(_links(data))
    links = extents(starts, len(data))
    patches = [missing_positions(data, link) for link in links]
    if any(patches):
        file = MediaFile(parts=tuple(map(_patched, links, patches)))
    else:
        file = split_at(starts, len(data))
    return replace(file, missing_bytes=missing, expected_bytes=len(data) + missing)


def _patched(extent: range, patches: list[Patch]) -> Part:
    """Replace bytes of an extent."""
    ranges: list[range | bytes] = []
    at = extent.start
    for start, content in patches:
        ranges += [range(at, start), content]
        at = start + len(content)
    return Part(b"", (*ranges, range(at, extent.stop)))


def _links(data: mmap.mmap) -> Iterator[int]:
    """Yield the offsets of a chained stream's links: first pages after others (RFC 3533, 4)."""
    end_of_firsts, links = None, 0
    found = search(data, ogg_pages.FIRST_PAGE, 0, len(data), longest=ogg_pages.MAGIC_BYTES)
    for number, start in enumerate(match.start() for match in found):
        if number > 2 * MAX_PARTS:
            raise too_many(links)
        end = ogg_pages.page_end(data, start)
        if not ogg_pages.is_first_page(data, start, end):
            continue
        # First pages of multiplexed streams follow each other.
        if start != end_of_firsts:
            links += 1
            yield start
        end_of_firsts = end


def _missing_of_last_page(data: mmap.mmap) -> int:
    """Count the bytes that the last page lacks."""
    end = 0
    for page in ogg_pages.pages(data, range(max(0, len(data) - 2 * ogg_pages.MAX_PAGE), len(data))):
        end = page.stop
    return max(0, end - len(data))
