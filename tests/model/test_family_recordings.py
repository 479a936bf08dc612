"""Recordings of several chunks, by every kind of checkpoint, against NeMo's own `transcribe()`.

NeMo gets the samples of each chunk. Further from a seam than the audio that two chunks share, the
service's words are those of NeMo: tokens, times and text. Where attention and features are limited
to the neighbourhood, NeMo also gets the whole recording: there the words agree from as far behind a
chunk's start as the encoder's layers look back together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clip, decode, demo_options
from family_models import FAMILY, floats, heard_by_nemo
from pipeline_helpers import pipeline_of

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.architecture import Architecture
from parakeet_api.model.checkpoints import check_checkpoint
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.model.vocabulary import Vocabulary
from parakeet_api.settings import Settings
from parakeet_api.speech.chunking import ChunkPolicy, plan_chunks
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Pcm, Word

MARK = re.compile(r"\s*<([a-z]{2}-[A-Z]{2}|EO[UB])>")
CLIPS = 14
"""41 s: two chunks, the second of 20 s."""
LONGEST_S = 30.0
"""Of a chunk, without a GPU."""
ATTENDED = {
    "nemotron-speech-streaming-en-0.6b": 14,
    "nemotron-3.5-asr-streaming-0.6b": 4,
    "parakeet_realtime_eou_120m-v1": 2,
}
"""Frames that see each other, of the checkpoints with limited attention."""
LAYERS = 2
SETTLED_S = 1.5
"""Beyond what the layers look back: convolutions, and the decoder's memory of earlier tokens."""

Span = tuple[float, float]
Spoken = tuple[int, tuple[int, ...], str]
"""A word: the frame at which it begins, its tokens, its text."""


@dataclass(frozen=True)
class Heard:
    """What NeMo heard, by checkpoint: in the whole recording, and in each chunk."""

    folder: Path
    samples: Pcm
    reports: dict[str, Any]


def chunks_of(samples: Pcm, name: str) -> list[Chunk]:
    policy = ChunkPolicy.from_settings(Settings(), longest_s=LONGEST_S)
    return list(plan_chunks([samples], policy.on_grid(FRAME * ATTENDED.get(name, 1))))


@pytest.fixture(scope="module")
def nemo(
    tmp_path_factory: pytest.TempPathFactory, clips: list[Clip], decoder: FfmpegDecoder
) -> Heard:
    """Write all checkpoints in a process of its own, where NeMo transcribes too."""
    folder = tmp_path_factory.mktemp("recordings")
    samples = np.concatenate([decode(decoder, clip.path) for clip in clips[:CLIPS]])
    parts = {
        f"{name}:{number}": floats(part)
        for name in FAMILY
        for number, part in enumerate(
            [*(chunk.samples for chunk in chunks_of(samples, name)), samples]
        )
        if name in ATTENDED or part is not samples
    }
    return Heard(folder, samples, heard_by_nemo(folder, parts))


@pytest.fixture(scope="module", params=FAMILY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def architecture(nemo: Heard, name: str) -> Architecture:
    return check_checkpoint(nemo.folder / f"{name}.nemo")


@pytest.fixture(scope="module")
def recognizer(nemo: Heard, name: str) -> Iterator[NemoRecognizer]:
    loaded = NemoRecognizer.load(nemo.folder / f"{name}.nemo", demo_options())
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def words(nemo: Heard, recognizer: NemoRecognizer, architecture: Architecture) -> list[Word]:
    """Return the words of the service's pipeline."""
    with pipeline_of(recognizer, grid=lambda: architecture.chunk_grid) as pipeline:
        return pipeline.words_of(nemo.samples, languages=frozenset({"en", "de"}))


def by_nemo(heard: dict[str, Any], vocabulary: Vocabulary, start: int) -> list[Spoken]:
    """Group NeMo's tokens into words, whose texts are those of its own text."""
    groups: list[list[tuple[int, int]]] = []
    for token, frame in zip(heard["ids"], heard["frames"], strict=True):
        if token in vocabulary.marks:
            continue
        if not groups or vocabulary.begins_word[token]:
            groups.append([])
        groups[-1].append((token, start // FRAME + frame))
    texts = MARK.sub("", heard["text"]).split()
    starts = [
        next((frame for token, frame in group if vocabulary.is_spoken[token]), group[0][1])
        for group in groups
    ]
    return [
        (begin, tuple(token for token, _ in group), text)
        for begin, group, text in zip(starts, groups, texts, strict=True)
    ]


def by_service(words: Sequence[Word]) -> list[Spoken]:
    return [
        (round(word.start * SAMPLE_RATE / FRAME), tuple(t.id for t in word.tokens), word.text)
        for word in words
    ]


def within(spoken: Sequence[Spoken], span: Span) -> list[Spoken]:
    return [word for word in spoken if span[0] <= word[0] * FRAME / SAMPLE_RATE < span[1]]


def away_from_seams(chunk: Chunk, samples: Pcm, after_start_s: float = 0.0) -> Span:
    """Give the span of a chunk, in seconds, that only it has heard."""
    shared_s = LONGEST_S / 12
    begin, end = chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE
    is_first, is_last = chunk.start == 0, chunk.end == len(samples)
    return (
        0.0 if is_first else max(begin + shared_s, chunk.start / SAMPLE_RATE + after_start_s),
        end if is_last else end - shared_s,
    )


def test_chunks_are_heard_as_nemo_hears_them(
    nemo: Heard, recognizer: NemoRecognizer, words: list[Word], name: str
) -> None:
    heard, *_ = nemo.reports[name]["heard"].values()
    chunks = chunks_of(nemo.samples, name)
    assert len(chunks) > 1
    for chunk, expected in zip(chunks, heard, strict=False):
        span = away_from_seams(chunk, nemo.samples)
        found = within(by_service(words), span)
        assert found == within(by_nemo(expected, recognizer._vocabulary, chunk.start), span)
        assert found


def test_limited_attention_hears_what_it_hears_in_the_whole(
    nemo: Heard,
    recognizer: NemoRecognizer,
    architecture: Architecture,
    words: list[Word],
    name: str,
) -> None:
    assert architecture.frames.attended == ATTENDED.get(name, 1)
    if name not in ATTENDED:
        # Its attention, or the normalisation of its features, is that of a whole chunk.
        return
    assert architecture.streaming is not None
    [[*_, whole], *_] = nemo.reports[name]["heard"].values()
    reach_s = LAYERS * architecture.streaming.left_s + SETTLED_S
    expected = by_nemo(whole, recognizer._vocabulary, 0)
    for chunk in chunks_of(nemo.samples, name):
        span = away_from_seams(chunk, nemo.samples, reach_s)
        assert within(by_service(words), span) == within(expected, span)


def test_no_mark_reaches_a_transcript(words: list[Word]) -> None:
    assert not [word for word in words if "<" in word.text]
    assert not [token for word in words for token in word.tokens if "<" in token.text]
