"""The benchmark of who spoke: its conversations have the answer that it counts against."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.conversations import Conversation, read_takes, simulate
from benchmarks.diarization import errors
from parakeet_api.speech.diarization import FloatArray
from parakeet_api.transcript import SAMPLE_RATE

FRAME_S = 0.08


@pytest.fixture(scope="module")
def conversation() -> Conversation:
    takes = read_takes(ROOT / "samples" / "people")
    return simulate(np.random.default_rng(0), takes, people=3, seconds=60)


def answer(conversation: Conversation) -> FloatArray:
    """Return the right probabilities, speakers in no particular order."""
    names = sorted({turn.speaker for turn in conversation.turns})
    frames = np.zeros((round(60 / FRAME_S), 4), np.float32)
    for turn in conversation.turns:
        start, end = round(turn.start / FRAME_S), round(turn.end / FRAME_S)
        frames[start:end, names.index(turn.speaker)] = 1
    return frames


def test_the_right_answer_has_no_errors(conversation: Conversation) -> None:
    counted = errors(conversation, answer(conversation), FRAME_S)
    assert counted["speech"] > 25
    assert counted["missed"] + counted["false"] + counted["confused"] < 0.5


def test_each_kind_of_error_is_counted(conversation: Conversation) -> None:
    right = answer(conversation)
    silent = errors(conversation, np.zeros_like(right), FRAME_S)
    assert silent["missed"] == pytest.approx(silent["speech"])
    one = np.zeros_like(right)
    one[:, 0] = right.any(axis=1)
    assert errors(conversation, one, FRAME_S)["confused"] > 0.2 * silent["speech"]
    assert errors(conversation, np.ones_like(right), FRAME_S)["false"] > 30


def test_speech_is_where_the_answer_says(conversation: Conversation) -> None:
    size = round(FRAME_S * SAMPLE_RATE)
    powers = (conversation.samples.reshape(-1, size) ** 2).mean(axis=1)
    spoken = answer(conversation).any(axis=1)
    assert powers[spoken].mean() > 30 * powers[~spoken].mean()
