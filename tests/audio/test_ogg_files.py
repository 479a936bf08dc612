"""Ogg files: pages without a position, chained streams."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from audio_helpers import assert_all_is_heard, codes_of
from conftest import Clip, decode, encode

from parakeet_api.audio import ogg_pages, opus_positions
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.media_files import inspect
from parakeet_api.errors import AudioDecodeError
from parakeet_api.transcript import SAMPLE_RATE


def starts_of_pages(content: bytes, serial: bytes = b"") -> list[int]:
    """List the offsets of the pages of an Ogg file, or of one stream in it."""
    starts = [match.start() for match in ogg_pages.PAGE.finditer(content)]
    return [at for at in starts if content[at + 14 : at + 18].startswith(serial)]


def without_positions(
    content: bytes, *, pages: range, serial: bytes = b"", position: int = -1
) -> bytes:
    """Set the granule position of some pages of an Ogg file, to -1 as if no packet ended there."""
    out, starts = bytearray(content), starts_of_pages(content, serial)
    for start in starts[2:][pages.start : pages.stop]:
        with mmap.mmap(-1, len(content)) as data:
            data.write(content)
            end = ogg_pages.page_end(data, start)
        out[start + 6 : start + 14] = position.to_bytes(8, "little", signed=True)
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


@pytest.mark.parametrize("page_us", ["200000", "1000000", "5000000"])
@pytest.mark.parametrize("position", [0, 1, 4800])
def test_a_last_page_with_a_position_of_long_before_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, page_us: str, position: int
) -> None:
    """ffmpeg would discard all of it."""
    options = ("-c:a", "libopus", "-b:a", "16k", "-page_duration", page_us)
    whole = encode(clips[6].path, tmp_path / "whole.ogg", *options)
    file = tmp_path / "a.ogg"
    content = without_positions(whole.read_bytes(), pages=range(-1, 1000), position=position)
    file.write_bytes(content)

    assert_all_is_heard(decoder, file, [whole], within=0.06)
    assert codes_of(decoder, file) == []


def test_what_an_encoder_has_added_at_the_end_is_discarded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[6].path, tmp_path / "a.ogg", "-c:a", "libopus")

    assert inspect(file).parts == ()
    assert len(decode(decoder, file)) == pytest.approx(len(decode(decoder, clips[6].path)), abs=20)


def test_a_link_of_chained_ogg_without_positions_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    opus = ("-c:a", "libopus", "-b:a", "16k", "-page_duration", "200000")
    parts = [encode(clip.path, tmp_path / f"{clip.path.stem}.ogg", *opus) for clip in clips[6:8]]
    joined = tmp_path / "joined.ogg"
    broken = without_positions(parts[1].read_bytes(), pages=range(1000))
    joined.write_bytes(parts[0].read_bytes() + broken + parts[0].read_bytes())

    assert_all_is_heard(decoder, joined, [*parts, parts[0]])


def test_a_later_opus_track_without_positions_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    opus = ("-map", "0", "-map", "1", "-c:a", "libopus", "-b:a", "16k", "-page_duration", "200000")
    whole = encode(
        clips[7].path, tmp_path / "whole.ogg", *opus, before=["-i", str(clips[6].path)]
    ).read_bytes()
    serial = list(dict.fromkeys(whole[at + 14 : at + 18] for at in starts_of_pages(whole)))[1]
    file = tmp_path / "a.ogg"
    file.write_bytes(without_positions(whole, pages=range(1000), serial=serial))

    second = np.concatenate(list(decoder.stream(file, track=2)))

    assert len(second) == pytest.approx(len(decode(decoder, clips[7].path)), abs=0.1 * SAMPLE_RATE)


def test_more_pages_without_a_position_than_are_mended_are_refused(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opus_positions, "_MAX_MENDED", 3)
    opus = ("-c:a", "libopus", "-page_duration", "200000")
    whole = encode(clips[6].path, tmp_path / "whole.ogg", *opus)
    file = tmp_path / "a.ogg"
    file.write_bytes(without_positions(whole.read_bytes(), pages=range(3)))
    assert len(decode(decoder, file)) == pytest.approx(len(decode(decoder, whole)), abs=1000)

    file.write_bytes(without_positions(whole.read_bytes(), pages=range(4)))
    with pytest.raises(AudioDecodeError, match="More than 3 pages"):
        decode(decoder, file)


def test_a_chained_stream_of_short_pages_is_all_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    """Such as of a live stream: 10,000 pages and more precede the second one's first page."""
    opus = ("-c:a", "libopus", "-b:a", "16k", "-frame_duration", "2.5", "-page_duration", "2500")
    long = encode(clips[6].path, tmp_path / "long.ogg", *opus, before=["-stream_loop", "12"])
    other = encode(clips[7].path, tmp_path / "other.ogg", "-c:a", "libvorbis")
    joined = tmp_path / "joined.ogg"
    joined.write_bytes(long.read_bytes() + other.read_bytes())
    assert len(starts_of_pages(long.read_bytes())) > 10_000

    assert_all_is_heard(decoder, joined, [long, other])


def test_only_a_page_that_was_cut_lacks_bytes(clips: list[Clip], tmp_path: Path) -> None:
    file = encode(clips[6].path, tmp_path / "a.ogg", "-c:a", "libopus")
    content = file.read_bytes()

    missing = []
    for changed in (content, content + bytes(1000), content[:-10], content + b"OggS\0\0"):
        file.write_bytes(changed)
        missing.append(inspect(file).missing_bytes)

    assert missing == [0, 0, 10, 1]
