from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Clip, decode, encode

from parakeet_api.audio import FfmpegDecoder
from parakeet_api.errors import AudioTooLongError
from parakeet_api.transcript import SAMPLE_RATE


def test_raw_samples_are_taken_as_they_are(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    samples = np.random.default_rng(5).integers(-32768, 32767, 3_000_001, dtype=np.int16)
    file = tmp_path / "samples"
    file.write_bytes(samples.astype("<i2").tobytes())

    stream = decoder.stream(file, raw_pcm=True)

    assert stream.expected_s == pytest.approx(3_000_001 / SAMPLE_RATE)
    assert np.array_equal(np.concatenate(list(stream)), samples)


@pytest.mark.parametrize(("size", "samples"), [(1, 0), (2, 1), (3, 1)])
def test_half_a_raw_sample_is_not_sound(
    decoder: FfmpegDecoder, tmp_path: Path, size: int, samples: int
) -> None:
    file = tmp_path / "samples"
    file.write_bytes(bytes(size))

    assert sum(len(block) for block in decoder.stream(file, raw_pcm=True)) == samples


def test_raw_samples_beyond_the_limit_are_refused(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    file = tmp_path / "samples"
    file.write_bytes(bytes(2 * 2 * SAMPLE_RATE))

    with pytest.raises(AudioTooLongError):
        list(replace(decoder, max_seconds=1.9).stream(file, raw_pcm=True))


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", "a.mkv", "a.wav", "a.m4a"])
def test_the_header_tells_how_long_the_recording_will_be(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    file = encode(clips[3].path, tmp_path / name)
    stream = decoder.stream(file)

    assert stream.expected_s is None
    blocks = list(stream)

    assert stream.expected_s == pytest.approx(clips[3].duration_s, abs=0.15)
    assert sum(map(len, blocks)) / SAMPLE_RATE == pytest.approx(clips[3].duration_s, abs=0.15)


def test_a_file_that_does_not_tell_its_length_is_decoded_all_the_same(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[3].path, tmp_path / "a.aac", "-f", "adts")
    # Written to a pipe, matroska has no length in its header.
    piped = encode(clips[3].path, tmp_path / "b.mkv", "-f", "matroska", "-live", "1")

    streams = [decoder.stream(file), decoder.stream(piped)]
    lengths = [sum(map(len, stream)) for stream in streams]

    assert streams[1].expected_s is None
    assert all(n / SAMPLE_RATE == pytest.approx(clips[3].duration_s, abs=0.2) for n in lengths)


def test_closing_a_stream_early_ends_it(decoder: FfmpegDecoder, clips: list[Clip]) -> None:
    stream = decoder.stream(clips[3].path)
    assert len(next(stream))
    stream.close()

    assert list(stream) == []


def test_decoding_twice_gives_the_same(decoder: FfmpegDecoder, clips: list[Clip]) -> None:
    once, twice = (decode(decoder, clips[3].path) for _ in range(2))

    assert np.array_equal(once, twice)
