"""Every kind of checkpoint in the Parakeet family, against NeMo's own `transcribe()`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clip, decode, demo_options, whole
from family_models import FAMILY, floats, heard_by_nemo

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.checkpoints import check_checkpoint
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Pcm, Word, join_words

MARK = re.compile(r"\s*<([a-z]{2}-[A-Z]{2}|EO[UB])>")


@dataclass(frozen=True)
class Family:
    """The checkpoints, and NeMo's transcripts with them."""

    folder: Path
    sounds: list[Pcm]
    reports: dict[str, Any]


@pytest.fixture(scope="module")
def family(
    tmp_path_factory: pytest.TempPathFactory, clips: list[Clip], decoder: FfmpegDecoder
) -> Family:
    """Write them all in a separate process, since `transcribe()` modifies models."""
    folder = tmp_path_factory.mktemp("family")
    sounds = [decode(decoder, clip.path) for clip in clips[:3]]
    reports = heard_by_nemo(folder, {str(n): floats(sound) for n, sound in enumerate(sounds)})
    return Family(folder, sounds, reports)


@pytest.fixture(scope="module", params=FAMILY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def recognizer(family: Family, name: str) -> Iterator[NemoRecognizer]:
    loaded = NemoRecognizer.load(family.folder / f"{name}.nemo", demo_options())
    yield loaded
    loaded.close()


def spoken(chunk: Chunk, prompt: str) -> Chunk:
    """Set the language that corresponds to one of NeMo's prompts."""
    language = {"": None, "auto": None, "de-DE": "de"}[prompt]
    return Chunk(0, chunk.start, chunk.samples, chunk.owned_start, chunk.owned_end, language)


def ids(words: list[Word]) -> list[int]:
    return [token.id for word in words for token in word.tokens]


def test_tokens_times_and_text_are_those_of_nemo(
    family: Family, recognizer: NemoRecognizer, name: str
) -> None:
    marks = recognizer._vocabulary.marks
    found = 0
    for prompt, expected in family.reports[name]["heard"].items():
        for sound, heard in zip(family.sounds, expected, strict=True):
            [words] = recognizer.recognize([spoken(whole(sound), prompt)])
            found += len(words)
            assert join_words(words).split() == MARK.sub("", heard["text"]).split()
            if not heard["ids"]:
                continue
            kept = [
                (token, frame)
                for token, frame in zip(heard["ids"], heard["frames"], strict=True)
                if token not in marks
            ]
            assert ids(words) == [token for token, _ in kept]
            frames = dict(zip(np.cumsum([0, *(len(w.tokens) for w in words)]), words, strict=False))
            for place, word in frames.items():
                spoken_at = [
                    frame
                    for (token, frame) in kept[place : place + len(word.tokens)]
                    if recognizer._vocabulary.is_spoken[token]
                ] or [kept[place][1]]
                assert word.start == pytest.approx(spoken_at[0] * FRAME / SAMPLE_RATE)
    assert found


def test_a_padded_batch_gives_what_each_gives_alone(
    family: Family, recognizer: NemoRecognizer, name: str
) -> None:
    prompts = ["de-DE", "", "de-DE"] if len(family.reports[name]["heard"]) > 1 else [""] * 3
    chunks = [
        spoken(whole(sound), prompt) for sound, prompt in zip(family.sounds, prompts, strict=True)
    ]

    together = recognizer.recognize(chunks)

    for words, chunk in zip(together, chunks, strict=True):
        [alone] = recognizer.recognize([chunk])
        assert [(w.text, w.start, w.end, w.language) for w in words] == [
            (w.text, w.start, w.end, w.language) for w in alone
        ]
        logprobs = [token.logprob for word in alone for token in word.tokens]
        assert [t.logprob for w in words for t in w.tokens] == pytest.approx(logprobs, abs=1e-4)
        assert all(logprob is not None and logprob <= 0 for logprob in logprobs)


def test_words_end_before_the_next_begins(family: Family, recognizer: NemoRecognizer) -> None:
    for sound in family.sounds:
        [words] = recognizer.recognize([whole(sound)])
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)


def test_size_and_kind_are_known_before_the_load(
    family: Family, recognizer: NemoRecognizer, name: str
) -> None:
    architecture = check_checkpoint(family.folder / f"{name}.nemo")

    report = family.reports[name]
    assert architecture.encoder_parameters == report["encoder"]
    assert architecture.parameters == report["parameters"] == recognizer.info.parameters
    assert architecture.decoder == ("ctc" if name[9:] == "ctc-0.6b" else architecture.decoder)
    assert (architecture.decoder == "tdt") == bool(FAMILY[name].durations)
    assert len(architecture.pieces) == FAMILY[name].vocabulary
