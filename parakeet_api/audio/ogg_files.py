"""Inspect Ogg files: chained streams, a truncated last page, Opus without positions."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import replace

from parakeet_api.audio import ogg_pages
from parakeet_api.audio.file_parts import MAX_PARTS, MediaFile, Part, split_at, too_many
from parakeet_api.audio.mapped_files import find_all


def inspect_ogg(data: mmap.mmap) -> MediaFile:
    missing = _missing_of_last_page(data)
    starts = list(_ogg_links(data)) or [0]
    links = split_at(starts, len(data))
    extents = [range(*ends) for ends in zip(starts, [*starts[1:], len(data)], strict=True)]
    patches = [ogg_pages.mended_positions(data, extent) for extent in extents]
    if any(patches):
        parts = map(_patched, extents, patches)
        links = MediaFile(parts=tuple(parts))
    return replace(links, missing_bytes=missing, expected_bytes=len(data) + missing)


def _patched(extent: range, patches: list[ogg_pages.Patch]) -> Part:
    """Replace bytes of a range."""
    ranges: list[range | bytes] = []
    at = extent.start
    for start, content in patches:
        ranges += [range(at, start), content]
        at = start + len(content)
    return Part(b"", (*ranges, range(at, extent.stop)))


def _ogg_links(data: mmap.mmap) -> Iterator[int]:
    """Yield the offsets of a chained stream's links: first pages after later ones (RFC 3533, 4)."""
    end_of_firsts = links = 0
    first_pages = (
        at for at in find_all(data, ogg_pages.MAGIC) if data[at + 5 : at + 6] in ogg_pages.BOS_FLAGS
    )
    for number, start in enumerate(first_pages):
        if number > 2 * MAX_PARTS:
            raise too_many(links)
        end = ogg_pages.page_end(data, start)
        if not ogg_pages.is_first_page(data, start, end):
            continue
        # First pages of multiplexed streams follow each other.
        if start != end_of_firsts or not links:
            links += 1
            yield start if links > 1 else 0
        end_of_firsts = end


def _missing_of_last_page(data: mmap.mmap) -> int:
    """Count the bytes missing from the last page."""
    at = max(0, len(data) - 2 * ogg_pages.MAX_PAGE)
    first = ogg_pages.PAGE.search(data, at)
    at = first.start() if first else len(data)
    while at < len(data):
        if not ogg_pages.PAGE.match(data, at):
            # Not a page, or a damaged one: go to the next.
            following = ogg_pages.PAGE.search(data, at)
            if following is None:
                return 0
            at = following.start()
        at = ogg_pages.page_end(data, at)
    return at - len(data)
