"""Both sides of a call, of real voices that often talk at once, against each voice alone."""

from __future__ import annotations

import itertools
import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, REAL_SPEECH, decode, demo_options
from pipeline_helpers import pipeline_of

from benchmarks.english import Recording, word_errors
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, ChannelChoice, Pcm, SpeakerRequest, Transcript

pytestmark = pytest.mark.integration

OVERLAP = 0.3
"""Share of each utterance that falls into the one before, of the other side."""
SECONDS = 150
"""Several chunks of `LONGEST` minutes."""
LONGEST = "0.4"
MOST_POINTS = 0.5


def _recordings() -> list[Recording]:
    entries = json.loads((REAL_SPEECH / "recordings.json").read_text(encoding="utf-8"))
    return [
        Recording(REAL_SPEECH / entry["file"], entry["text"], entry["source"], entry["duration"])
        for entry in entries
        if entry["source"] in {"librispeech", "common_voice", "vctk", "fleurs"}
    ]


def _sides(recordings: Sequence[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Take utterances in turn, until the call is long enough."""
    spoken = itertools.accumulate(recording.duration_s * (1 - OVERLAP) for recording in recordings)
    count = sum(1 for _ in itertools.takewhile(lambda seconds: seconds < SECONDS, spoken))
    return list(recordings[:count:2]), list(recordings[1:count:2])


def _call(
    decoder: FfmpegDecoder, left: Sequence[Recording], right: Sequence[Recording]
) -> tuple[Pcm, float]:
    """Make the call, shape `(samples, 2)`; also return the share of it in which both talk."""
    turns = [turn for pair in itertools.zip_longest(left, right) for turn in pair if turn]
    placed: list[tuple[int, int, Pcm]] = []
    at = 0
    for number, turn in enumerate(turns):
        sound = decode(decoder, turn.path)
        own_end = max(
            (end for n, (_, end, _) in enumerate(placed) if n % 2 == number % 2), default=0
        )
        at = max(at, own_end)
        placed.append((at, at + len(sound), sound))
        at += round(len(sound) * (1 - OVERLAP))
    call = np.zeros((max(end for _, end, _ in placed) + SAMPLE_RATE, 2), np.int16)
    talking = np.zeros(call.shape, bool)
    for number, (begin, end, sound) in enumerate(placed):
        call[begin:end, number % 2] = sound
        talking[begin:end, number % 2] = True
    both = np.count_nonzero(talking.all(axis=1))
    return call, both / np.count_nonzero(talking.any(axis=1))


def _write(path: Path, samples: Pcm) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return path


def test_each_side_of_a_call_is_as_right_as_alone(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    left, right = _sides(_recordings())
    call, overlap = _call(decoder, left, right)
    recognizer = NemoRecognizer.load(ENGLISH_MODEL, demo_options())
    with pipeline_of(recognizer, CHUNK_MINITE=LONGEST) as pipeline:

        def transcribe(samples: Pcm, channels: ChannelChoice) -> Transcript:
            path = _write(tmp_path / "call.wav", samples)
            return pipeline.transcribe(path, speakers=SpeakerRequest(channels=channels))

        apart = transcribe(call, "auto")
        for channel, side in ((1, left), (2, right)):
            reference = [" ".join(turn.text for turn in side)]
            said = [word.text for word in apart.words if word.channel == channel]
            together = word_errors(reference, [" ".join(said)])
            alone = word_errors(reference, [transcribe(call[:, channel - 1].copy(), "mix").text])
            assert together.percent <= alone.percent + MOST_POINTS

    assert overlap == pytest.approx(OVERLAP, abs=0.08)
