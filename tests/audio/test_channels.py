"""Channels apart, from real files through real ffmpeg."""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE_S, PEOPLE, SPEECH, decode, encode

from parakeet_api.audio.channels import MAX_CHANNELS
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import InvalidRequestError
from parakeet_api.transcript import SAMPLE_RATE, ChannelChoice, Pcm

NEST, EGGS, DOCTOR = (PEOPLE / f"{name}.flac" for name in ("nest", "eggs", "doctor"))


def join(
    target: Path, sources: Sequence[Path], graph: str, *options: str, seconds: float = 12
) -> Path:
    """Make a file of several recordings."""
    inputs = [part for source in sources for part in ("-i", str(source))]
    command = [find_ffmpeg(), "-v", "error", "-y", *inputs, "-filter_complex", graph]
    subprocess.run(
        [*command, "-t", str(seconds), *options, str(target)], check=True, timeout=PATIENCE_S
    )
    return target


SIDE_BY_SIDE = "[0]apad[a];[1]apad[b];[a][b]join=inputs=2:channel_layout=stereo"

LEAKING = (
    "[0]apad,asplit[a][c];[1]adelay=4000,apad,asplit[b][d];[c]volume=0.1[e];[d]volume=0.1[f];"
    "[a][f]amix=normalize=0[l];[b][e]amix=normalize=0[r];[l][r]join=inputs=2"
)


def blocks_of(decoder: FfmpegDecoder, path: Path, channels: ChannelChoice) -> Pcm:
    return np.concatenate(list(decoder.stream(path, channels=channels)))


def recorder_file(target: Path, channels: Sequence[Pcm]) -> Path:
    """Write channels as a recorder does: without a speaker layout."""
    length = min(map(len, channels))
    with wave.open(str(target), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.stack([channel[:length] for channel in channels], axis=1).tobytes())
    return target


def difference(one: Pcm, other: Pcm) -> float:
    """Return the largest difference, as a share of full scale, where both have samples."""
    length = min(len(one), len(other))
    return float(np.abs(one[:length].astype(int) - other[:length]).max()) / 32768


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.w64"])
def test_each_channel_has_its_own_samples(
    decoder: FfmpegDecoder, tmp_path: Path, name: str
) -> None:
    call = join(tmp_path / name, [NEST, EGGS], SIDE_BY_SIDE)

    apart = blocks_of(decoder, call, "separate")

    assert apart.shape == (12 * SAMPLE_RATE, 2)
    assert difference(apart[:, 0], decode(decoder, NEST)) < 0.001
    assert difference(apart[:, 1], decode(decoder, EGGS)) < 0.001


def test_a_long_file_is_kept_apart_as_well(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    call = join(tmp_path / "a.wav", [NEST, EGGS], SIDE_BY_SIDE, "-ar", "44100", seconds=90)

    assert blocks_of(decoder, call, "separate").shape == (90 * SAMPLE_RATE, 2)


def test_a_mono_recording_has_one_channel(decoder: FfmpegDecoder) -> None:
    assert blocks_of(decoder, NEST, "separate").shape[1:] == (1,)
    assert blocks_of(decoder, NEST, "auto").ndim == 1


def test_channels_of_a_surround_layout_are_not_mixed(
    decoder: FfmpegDecoder, tmp_path: Path
) -> None:
    surround = encode(NEST, tmp_path / "a.wav", "-ac", "6")

    apart = blocks_of(decoder, surround, "separate")

    assert apart.shape[1] == 6
    assert difference(apart[:, 2], decode(decoder, NEST)) < 0.001
    assert blocks_of(decoder, surround, "auto").ndim == 1


def test_more_channels_than_are_transcribed_apart_are_refused(
    decoder: FfmpegDecoder, tmp_path: Path
) -> None:
    sound = decode(decoder, NEST)
    many = recorder_file(tmp_path / "a.wav", [sound] * (MAX_CHANNELS + 1))

    with pytest.raises(InvalidRequestError) as caught:
        blocks_of(decoder, many, "separate")

    assert caught.value.param == "channels"
    assert blocks_of(decoder, many, "auto").ndim == 1


def test_quiet_floats_are_amplified_by_one_gain(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    graph = "[0]volume=0.0002[a];[1]apad,volume=0.0001[b];[a][b]join=inputs=2"
    call = join(tmp_path / "a.wav", [NEST, EGGS], graph, "-c:a", "pcm_f32le", seconds=3)

    apart = blocks_of(decoder, call, "separate")

    levels = np.abs(apart.astype(int)).max(axis=0)
    assert levels.max() > 3000
    original = (
        np.abs(decode(decoder, EGGS)[: 3 * SAMPLE_RATE].astype(int)).max()
        / np.abs(decode(decoder, NEST)[: 3 * SAMPLE_RATE].astype(int)).max()
    )
    assert levels[1] / levels[0] == pytest.approx(original / 2, rel=0.05)


class TestAuto:
    @pytest.mark.parametrize(
        "graph",
        [
            SIDE_BY_SIDE,
            # One side far quieter.
            "[0]apad[a];[1]volume=0.03,apad[b];[a][b]join=inputs=2",
            # One after the other.
            "[0]apad[a];[1]adelay=4000,apad[b];[a][b]join=inputs=2",
        ],
    )
    def test_a_call_is_apart(self, decoder: FfmpegDecoder, tmp_path: Path, graph: str) -> None:
        call = join(tmp_path / "a.wav", [NEST, EGGS], graph, "-ar", "8000", "-c:a", "pcm_mulaw")

        assert blocks_of(decoder, call, "auto").ndim == 2

    @pytest.mark.parametrize(
        "graph",
        [
            # The same twice; at different levels; a little later; in antiphase.
            "[0][1]amix,asplit[a][b];[a][b]join=inputs=2",
            "[0][1]amix,asplit[a][x];[x]volume=0.1[b];[a][b]join=inputs=2",
            "[0][1]amix,asplit[a][x];[x]adelay=12[b];[a][b]join=inputs=2",
            "[0][1]amix,asplit[a][x];[x]volume=-1[b];[a][b]join=inputs=2",
            # Two microphones, each of which hears the other person 20 dB softer.
            LEAKING,
            # Nothing on the second channel.
            "[0]apad[a];[1]volume=0,apad[b];[a][b]join=inputs=2",
        ],
    )
    def test_what_is_no_call_is_mixed(
        self, decoder: FfmpegDecoder, tmp_path: Path, graph: str
    ) -> None:
        recording = join(tmp_path / "a.wav", [NEST, EGGS], graph)

        assert blocks_of(decoder, recording, "auto").ndim == 1
        assert np.array_equal(
            blocks_of(decoder, recording, "auto"), blocks_of(decoder, recording, "mix")
        )

    def test_four_channels_of_a_recorder_are_compared(
        self, decoder: FfmpegDecoder, tmp_path: Path
    ) -> None:
        voices = [decode(decoder, path) for path in (NEST, EGGS, DOCTOR)]
        recording = recorder_file(tmp_path / "a.wav", [*voices, np.zeros_like(voices[0])])

        assert blocks_of(decoder, recording, "auto").shape[1:] == (4,)

    def test_a_call_that_begins_with_one_side_is_apart(
        self, decoder: FfmpegDecoder, tmp_path: Path
    ) -> None:
        graph = "[0]atrim=0:60[a];[1]adelay=50000,apad[b];[a][b]join=inputs=2"
        dense = SPEECH / "long-dense.ogg"
        call = join(tmp_path / "a.flac", [dense, DOCTOR], graph, seconds=60)

        assert blocks_of(decoder, call, "auto").ndim == 2
