"""The bundled speaker model tells two people apart, over HTTP and without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REAL_SPEECH
from http_helpers import transcribe
from in_process import served

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.transcript import SAMPLE_RATE

pytestmark = pytest.mark.integration

TURNS = (
    ("librispeech_dev_clean_mp3-0057.ogg", "2078"),
    ("misc-0095.ogg", "spk1"),
    ("librispeech_dev_clean_mp3-0058.ogg", "2078"),
    ("misc-0096.ogg", "spk1"),
)
"""Recordings and their readers, neither of whom the model was trained on."""
PAUSE = np.zeros(SAMPLE_RATE // 2, np.int16)


def test_two_people_are_told_apart(tmp_path: Path, decoder: FfmpegDecoder) -> None:
    talk, ends, position = tmp_path / "talk.wav", [], 0
    parts = []
    for file, _ in TURNS:
        samples = np.concatenate([*decoder.stream(REAL_SPEECH / file), PAUSE])
        position += len(samples)
        ends.append(position / SAMPLE_RATE)
        parts.append(samples)
    soundfile.write(talk, np.concatenate(parts), SAMPLE_RATE)

    with served(tmp_path / "served", DEMO_MODEL="always") as running:
        answer = transcribe(running.server, talk, {"response_format": "diarized_json"})

    assert answer.status_code == 200, answer.text
    given: dict[str, dict[str, float]] = {"2078": {}, "spk1": {}}
    for segment in answer.json()["segments"]:
        middle = (segment["start"] + segment["end"]) / 2
        reader = next(reader for (_, reader), end in zip(TURNS, ends, strict=True) if middle < end)
        seconds = given[reader].setdefault(segment["speaker"], 0.0)
        given[reader][segment["speaker"]] = seconds + segment["end"] - segment["start"]
    labels = {reader: max(parts, key=lambda label: parts[label]) for reader, parts in given.items()}
    assert labels == {"2078": "A", "spk1": "B"}, given
    for reader, label in labels.items():
        assert given[reader][label] > 0.8 * sum(given[reader].values()), given
