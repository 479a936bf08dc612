"""Ogg files: pages without a position, chained streams."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from audio_helpers import assert_all_is_heard, codes_of
from conftest import Clip, encode

from parakeet_api.audio import ogg_pages
from parakeet_api.audio.decoder import FfmpegDecoder


def without_positions(content: bytes, *, pages: range) -> bytes:
    """Set the granule position of some pages of an Ogg file to -1, as if no packet ended there."""
    out, starts = bytearray(content), [match.start() for match in ogg_pages.PAGE.finditer(content)]
    for start in [*starts[2:]][pages.start : pages.stop]:
        with mmap.mmap(-1, len(content)) as data:
            data.write(content)
            end = ogg_pages.page_end(data, start)
        out[start + 6 : start + 14] = b"\xff" * 8
        out[start + 22 : start + 26] = bytes(4)
        out[start + 22 : start + 26] = ogg_checksum(bytes(out[start:end])).to_bytes(4, "little")
    return bytes(out)


def ogg_checksum(page: bytes) -> int:
    """Return a page's CRC-32, bit by bit (RFC 3533, 6)."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


MISSING = {
    "all": range(1000),
    "the first": range(3),
    "some": range(5, 9),
    "the last": range(-1, 1000),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("codec", ["libopus", "libvorbis"])
def test_ogg_pages_without_a_position_are_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, codec: str, name: str
) -> None:
    options = ("-c:a", codec, "-b:a", "16k", "-page_duration", "200000")
    whole = encode(clips[6].path, tmp_path / "whole.ogg", *options)
    file = tmp_path / "a.ogg"
    file.write_bytes(without_positions(whole.read_bytes(), pages=MISSING[name]))

    assert_all_is_heard(decoder, file, [whole], within=0.06)
    assert codes_of(decoder, file) == []


def test_a_link_of_chained_ogg_without_positions_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    opus = ("-c:a", "libopus", "-b:a", "16k", "-page_duration", "200000")
    parts = [encode(clip.path, tmp_path / f"{clip.path.stem}.ogg", *opus) for clip in clips[6:8]]
    joined = tmp_path / "joined.ogg"
    broken = without_positions(parts[1].read_bytes(), pages=range(1000))
    joined.write_bytes(parts[0].read_bytes() + broken + parts[0].read_bytes())

    assert_all_is_heard(decoder, joined, [*parts, parts[0]])
