"""Recordings of people: a sample of what `make accuracy` measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import whole

from benchmarks.accuracy import (
    ENGLISH_MODEL,
    REAL_SPEECH,
    Recording,
    error_rate,
    load,
    plain,
    read_recordings,
    rows,
)
from benchmarks.fidelity import DETECTOR, Policy
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.speech.activity import SpeechActivity
from parakeet_api.speech.speech_gate import drop_hallucinations
from parakeet_api.transcript import SAMPLE_RATE, Word

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]
"""A single pass over three minutes takes 10 s of one core, and minutes on a busy machine."""


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return read_recordings(REAL_SPEECH)


@pytest.fixture(scope="module")
def english() -> NemoRecognizer:
    return load(ENGLISH_MODEL, longest_s=300)


def test_every_recording_has_a_licence_that_allows_redistribution() -> None:
    entries = json.loads((REAL_SPEECH / "recordings.json").read_text(encoding="utf-8"))
    allowed = ("CC0", "CC BY 4.0", "Apache 2.0", "BSD / public domain")

    assert {entry["file"] for entry in entries} == {path.name for path in REAL_SPEECH.glob("*.ogg")}
    assert [entry["file"] for entry in entries if not entry["licence"].startswith(allowed)] == []


def test_error_rates_count_substitutions_deletions_and_insertions() -> None:
    recording = Recording("a", "One two-three four.", np.zeros(0, np.int16))
    words = [Word(text, 0, 0) for text in ("one", "Two", "tree", "for", "ever")]

    rate = error_rate([recording], [words])

    assert (rate.errors.changed, rate.errors.lost, rate.errors.doubled) == (2, 0, 1)
    assert rate.words == 4
    assert plain("Don\u2019t \u2014 stop!") == "don't stop"


def test_chunks_of_a_long_recording_lose_nothing_against_a_single_pass(
    english: NemoRecognizer, recordings: list[Recording]
) -> None:
    long = [recording for recording in recordings if recording.source == "librispeech_long"]
    assert [len(recording.samples) > 180 * SAMPLE_RATE for recording in long] == [True]

    (_, single), (_, cut) = rows(english, long, [Policy(0.5, 5, align=True)])

    assert single.percent < 15
    # Two of its 620 words.
    assert cut.percent <= single.percent + 0.33
    assert cut.errors.lost <= single.errors.lost + 2


def test_the_speech_gate_drops_no_word_of_people(
    english: NemoRecognizer, recordings: list[Recording]
) -> None:
    """Two of these have a first word that is timed a second before its sound."""
    chunks = [whole(r.samples) for r in recordings if r.source != "librispeech_long"]
    recognized = [english.recognize([chunk])[0] for chunk in chunks]

    assert sum(map(len, recognized)) > 500
    for chunk, words in zip(chunks, recognized, strict=True):
        assert drop_hallucinations(chunk, words, SpeechActivity(chunk, DETECTOR)) == words


@pytest.mark.parametrize("source", ["librispeech", "common_voice"])
def test_clips_are_recognised_as_well_in_one_recording_as_alone(
    source: str, english: NemoRecognizer, recordings: list[Recording]
) -> None:
    own = [recording for recording in recordings if recording.source == source]

    found = dict(rows(english, own, [Policy(0.5, 5, align=True)]))

    alone = found["single pass, each recording"]
    cut = found["chunks of 30 s, overlap 5 s"]
    assert alone.percent < {"librispeech": 25, "common_voice": 50}[source]
    # Here the only context of a clip is unrelated clips.
    assert cut.errors.total <= 1.15 * alone.errors.total + 2
