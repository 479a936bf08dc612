from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import PATIENCE_S, Clip, decode, encode
from pipeline_helpers import ffmpegs

from parakeet_api.audio import ffmpeg
from parakeet_api.audio.decoder import AudioStream, FfmpegDecoder
from parakeet_api.audio.ffmpeg import check_filter, find_ffmpeg
from parakeet_api.errors import (
    AudioDecodeError,
    AudioTooLongError,
    ServiceUnavailableError,
    SettingsError,
)
from parakeet_api.transcript import SAMPLE_RATE, Pcm


def test_raw_samples_are_taken_as_they_are(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    samples = np.random.default_rng(5).integers(-32768, 32767, 3_000_001, dtype=np.int16)
    file = tmp_path / "samples"
    file.write_bytes(samples.astype("<i2").tobytes())

    stream = decoder.stream(file, raw_pcm=True)

    assert stream.expected_s == pytest.approx(3_000_001 / SAMPLE_RATE)
    assert np.array_equal(np.concatenate(list(stream)), samples)


@pytest.mark.parametrize(("size", "samples"), [(1, 0), (2, 1), (3, 1)])
def test_an_odd_byte_is_not_a_sample(
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
def test_the_duration_is_taken_from_the_header(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    file = encode(clips[3].path, tmp_path / name)
    stream = decoder.stream(file)

    # For files that ffmpeg decodes it is known once the first block has arrived.
    assert (stream.expected_s is None) == (name not in ("a.flac", "a.wav"))
    blocks = list(stream)

    assert stream.expected_s == pytest.approx(clips[3].duration_s, abs=0.15)
    assert sum(map(len, blocks)) / SAMPLE_RATE == pytest.approx(clips[3].duration_s, abs=0.15)


def test_a_file_without_a_duration_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[3].path, tmp_path / "a.aac", "-f", "adts")
    # Written to a pipe, matroska has no length in its header.
    piped = encode(clips[3].path, tmp_path / "b.mkv", "-f", "matroska", "-live", "1")

    streams = [decoder.stream(file), decoder.stream(piped)]
    lengths = [sum(map(len, stream)) for stream in streams]

    assert streams[1].expected_s is None
    assert all(n / SAMPLE_RATE == pytest.approx(clips[3].duration_s, abs=0.2) for n in lengths)


def test_closing_a_stream_early_stops_it(decoder: FfmpegDecoder, clips: list[Clip]) -> None:
    stream = decoder.stream(clips[3].path)
    assert len(next(stream))
    stream.close()

    assert list(stream) == []


def test_decoding_twice_gives_the_same(decoder: FfmpegDecoder, clips: list[Clip]) -> None:
    once, twice = (decode(decoder, clips[3].path) for _ in range(2))

    assert np.array_equal(once, twice)


def jump(clip: Clip, target: Path, *, after_s: float, by_s: float) -> Path:
    """Add an offset to the timestamps after a given time."""
    moved = f"asetpts='PTS+if(gt(T,{after_s}),{by_s}/TB,0)'"
    return encode(clip.path, target, "-af", moved, "-c:a", "libopus")


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mka"])
def test_a_gap_is_filled_with_silence_of_its_length(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    samples = decode(decoder, jump(clips[0], tmp_path / name, after_s=1, by_s=100))

    assert len(samples) / SAMPLE_RATE == pytest.approx(100 + clips[0].duration_s, abs=0.1)
    assert not samples[2 * SAMPLE_RATE : 100 * SAMPLE_RATE].any()
    assert samples[: 2 * SAMPLE_RATE].any()
    assert samples[101 * SAMPLE_RATE :].any()


@pytest.mark.parametrize("after_s", [-1, 1], ids=["late start", "later"])
@pytest.mark.parametrize("hours", [3, 10])
def test_a_gap_of_hours_is_rejected_before_it_is_filled(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, hours: int, after_s: float
) -> None:
    file = tmp_path / "a.mkv"
    # After two seconds of other audio, or the container would begin with the gap.
    options = ["-i", str(clips[0].path), "-map", "0", "-map", "1"] if after_s < 0 else []
    moved = f"asetpts='PTS+if(gt(T,{after_s}),{hours * 3600}/TB,0)'"
    encode(clips[0].path, file, *options, "-filter:a:0", moved, "-c:a", "libopus")

    blocks: list[Pcm] = []
    with pytest.raises(AudioDecodeError, match="hole of more than 2 hours"):
        blocks.extend(decoder.stream(file))

    assert sum(map(len, blocks)) < 60 * SAMPLE_RATE


def test_ffmpeg_has_resource_limits(decoder: FfmpegDecoder, tone: Path) -> None:
    stream = replace(decoder, max_seconds=3600).stream(tone)
    next(stream)
    (process,) = ffmpegs()
    bounds = {
        name: process.rlimit(getattr(psutil, f"RLIMIT_{name}"))
        for name in ("CPU", "DATA", "NOFILE", "FSIZE", "CORE")
    }
    stream.close()

    assert bounds == {
        "CPU": (960, 960),
        "DATA": (1 << 30, 1 << 30),
        "NOFILE": (32, 32),
        "FSIZE": (0, 0),
        "CORE": (0, 0),
    }


def test_a_system_that_cannot_limit_a_process_decodes_without_limits(
    decoder: FfmpegDecoder, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac; simulated, by taking away what only Linux has."""
    expected = np.concatenate(list(decoder.stream(tone)))
    monkeypatch.delattr(resource, "prlimit")
    monkeypatch.delattr(fcntl, "F_SETPIPE_SZ")

    assert np.array_equal(np.concatenate(list(decoder.stream(tone))), expected)


def signalled(decoder: FfmpegDecoder, file: Path, number: signal.Signals) -> AudioStream:
    """Begin to decode a file, and send its ffmpeg a signal."""
    stream = decoder.stream(file)
    next(stream)
    (process,) = ffmpegs()
    process.send_signal(number)
    return stream


HANG_UP = pytest.param(
    signal.SIGHUP,
    marks=pytest.mark.skipif(
        signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="ignored, as under nohup"
    ),
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, HANG_UP])
def test_a_killed_decoder_does_not_complete_a_recording(
    decoder: FfmpegDecoder, tone: Path, number: signal.Signals
) -> None:
    """The file is not the cause, so the request may be retried."""
    stream = signalled(decoder, tone, number)

    with pytest.raises(ServiceUnavailableError, match="ended before its time"):
        list(stream)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_file_that_crashes_the_decoder_is_refused(
    decoder: FfmpegDecoder, tone: Path, number: signal.Signals
) -> None:
    stream = signalled(decoder, tone, number)

    with pytest.raises(AudioDecodeError, match="not be decoded to its end"):
        list(stream)


def test_a_file_that_takes_too_much_time_is_refused(
    decoder: FfmpegDecoder, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel kills it with SIGKILL.
    monkeypatch.setattr(FfmpegDecoder, "_cpu_s", lambda _: 0)
    slow = replace(decoder, audio_filter=",".join(["afftdn"] * 20))

    with pytest.raises(AudioDecodeError, match="not be decoded to its end"):
        list(slow.stream(tone))


def test_a_file_that_exits_with_the_status_of_a_signal_is_rejected(
    decoder: FfmpegDecoder, tone: Path, tmp_path: Path
) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho Operation not permitted >&2\nexit 255\n")
    script.chmod(0o755)

    with pytest.raises(AudioDecodeError, match="no sound"):
        list(replace(decoder, executable=str(script)).stream(tone))


def test_ctrl_c_in_a_terminal_does_not_reach_the_decoder(
    decoder: FfmpegDecoder, tone: Path
) -> None:
    stream = decoder.stream(tone)
    next(stream)
    (process,) = ffmpegs()
    group = os.getpgid(process.pid)
    stream.close()

    assert group != os.getpgrp()


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 20 minutes of audio, more than fits in a pipe."""
    target = tmp_path_factory.mktemp("tone") / "tone.flac"
    command = [find_ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i"]
    subprocess.run(
        [*command, "sine=f=220:r=16000:d=1200", str(target)], check=True, timeout=PATIENCE_S
    )
    return target


def test_a_filter_that_does_not_end_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "_FILTER_CHECK_S", 0.5)

    with pytest.raises(SettingsError, match=r"^DENOISE_FILTER='aloop=-1:1600' .* does not end$"):
        check_filter(find_ffmpeg(), "aloop=-1:1600")

    assert ffmpegs() == []
