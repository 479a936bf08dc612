"""Appended audio is decoded to 16 kHz mono, however it is split into events."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from parakeet_api.errors import InvalidRequestError
from parakeet_api.realtime.audio_buffer import AudioBuffer
from parakeet_api.realtime.audio_input import AudioInput
from parakeet_api.realtime.session_config import AudioFormat, AudioType
from parakeet_api.transcript import SAMPLE_RATE, Pcm


def tone(rate: int, *, seconds: float = 1.0) -> NDArray[np.int16]:
    times = np.arange(round(rate * seconds)) / rate
    return (10_000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)


def decoded(data: bytes, audio_format: AudioFormat, *, size: int) -> Pcm:
    """Decode in pieces of `size` bytes."""
    source = AudioInput(audio_format)
    parts = [
        source.decode(base64.b64encode(data[start : start + size]).decode())
        for start in range(0, len(data), size)
    ]
    return np.concatenate([*parts, source.rest()])


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("size", [333, 4_800, 10**6])
def test_pcm_of_any_rate_and_cut_is_the_same_sound(rate: int, size: int) -> None:
    heard = decoded(tone(rate).tobytes(), AudioFormat(rate=rate), size=size)

    assert len(heard) == pytest.approx(SAMPLE_RATE, abs=2)
    within = slice(1000, 15_000)
    difference = heard[within].astype(int) - tone(SAMPLE_RATE)[within]
    assert np.abs(difference).max() < 100


@pytest.mark.parametrize(
    ("kind", "encoded", "samples"),
    [
        # From ITU-T G.711: the largest, the smallest and some values between, of both signs.
        ("audio/pcmu", [0x80, 0x00, 0xFF, 0x7F, 0xEF], [32124, -32124, 0, 0, 132]),
        ("audio/pcma", [0xAA, 0x2A, 0xD5, 0x55, 0xC5], [32256, -32256, 8, -8, 264]),
    ],
)
def test_g711_is_decoded_by_its_tables(
    kind: AudioType, encoded: list[int], samples: list[int]
) -> None:
    source = AudioInput(AudioFormat(type=kind, rate=SAMPLE_RATE))

    heard = source.decode(base64.b64encode(bytes(encoded)).decode())

    assert heard.tolist() == samples


@pytest.mark.parametrize("audio", [None, 3, "%", "AAA", "A\nAA=", "\u00e9\u00e9\u00e9\u00e9"])
def test_invalid_base64_is_rejected(audio: object) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        AudioInput(AudioFormat()).decode(audio)

    assert refusal.value.param == "audio"


def test_a_buffer_keeps_positions_and_frees_memory() -> None:
    buffer = AudioBuffer()
    heard = np.arange(200_000, dtype=np.int32).astype(np.int16)
    for start in range(0, len(heard), 7_000):
        buffer.append(heard[start : start + 7_000])
    buffer.forget_before(150_000)

    assert (buffer.start, buffer.end) == (150_000, 200_000)
    assert np.array_equal(buffer.copy(160_000, 170_000), heard[160_000:170_000])
    assert np.array_equal(buffer.copy(0, 10**9), heard[150_000:])
    buffer.forget_before(10**9)
    assert (buffer.start, buffer.end) == (200_000, 200_000)
    assert len(buffer._samples) < 50_000
