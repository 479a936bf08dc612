"""Half precision that overflows at run time, on a clip that the self-test has not seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from conftest import DEMO_MODEL, Clip, decode, demo_options, whole

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import Chunk, join_words


@pytest.fixture
def chunks(clips: list[Clip], decoder: FfmpegDecoder) -> list[Chunk]:
    return [whole(decode(decoder, clip.path)) for clip in clips[:4]]


@pytest.fixture
def half() -> NemoRecognizer:
    return NemoRecognizer.load(DEMO_MODEL, demo_options(precision="fp16"))


def texts(recognizer: NemoRecognizer, chunks: Sequence[Chunk]) -> list[str]:
    return [join_words(words) for words in recognizer.recognize(chunks)]


def make_overflow(recognizer: NemoRecognizer) -> None:
    """Make a layer's inner values 65,536 times larger, and its output the same."""
    attention = recognizer._model.encoder.layers[0].self_attn
    attention.linear_v.weight.mul_(2.0**16)
    attention.linear_out.weight.div_(2.0**16)


def test_fp16_that_overflows_is_repeated_in_bf16(
    half: NemoRecognizer,
    recognizer: NemoRecognizer,
    chunks: list[Chunk],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = texts(recognizer, chunks)
    assert texts(half, chunks) == expected
    assert caplog.records == []
    with torch.inference_mode():
        make_overflow(half)

    with caplog.at_level(logging.WARNING):
        repeated = texts(half, chunks)

    assert repeated == expected
    assert "of 4 chunks is not finite: encoded again in bfloat16" in caplog.text
    assert "float32" not in caplog.text


def test_a_device_without_bf16_repeats_in_fp32(
    half: NemoRecognizer,
    recognizer: NemoRecognizer,
    chunks: list[Chunk],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("parakeet_api.model.encoder.has_bfloat16", lambda _: False)
    with torch.inference_mode():
        make_overflow(half)

    assert texts(half, chunks) == texts(recognizer, chunks)
    assert "of 4 chunks is not finite: encoded again in float32" in caplog.text
    assert "bfloat16" not in caplog.text


def test_what_overflows_in_every_precision_is_an_error_and_no_empty_text(
    half: NemoRecognizer, chunks: list[Chunk]
) -> None:
    with torch.inference_mode():
        half._model.encoder.layers[0].norm_out.weight.fill_(float("nan"))

    with pytest.raises(ArithmeticError, match="not finite"):
        half.recognize(chunks)
