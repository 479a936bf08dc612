"""A model that skips speech again when it decodes it again; model and detector are fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import whole
from numpy.typing import NDArray

from parakeet_api.speech.activity import STEP
from parakeet_api.speech.holes import Completed, complete_words
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm, Token, Word

LOUD, QUIET = 20_000, 20
SPOKEN = [
    Word(f"w{n}", n / 2, n / 2 + 0.4, (Token(1, f" w{n}", -0.05),))
    # A pause after each sixth word.
    for n in range(60)
    if n % 6 < 5
]
"""Half a minute of words."""
STUCK = (9.1, 21.1)


class Loudness:
    """A detector that takes what is loud for speech."""

    def probabilities(self, samples: Pcm) -> NDArray[np.float32]:
        steps = np.pad(samples, (0, -len(samples) % STEP)).reshape(-1, STEP)
        is_speech: NDArray[np.bool_] = steps.max(1) > LOUD // 2
        return is_speech.astype(np.float32)


def speech(*, words: Sequence[Word] = SPOKEN) -> Chunk:
    samples = np.full(30 * SAMPLE_RATE, QUIET, np.int16)
    for word in words:
        samples[round(word.start * SAMPLE_RATE) : round(word.end * SAMPLE_RATE)] = LOUD
    return whole(samples)


Sticks = Callable[[Chunk, int], bool]
"""Tells whether a pass skips what is in `STUCK`, from its audio and how many came before it."""


@dataclass
class Model:
    """Returns the words of a pass, without those that it skips."""

    sticks: Sticks
    logprob: float = -0.05
    passes: list[Chunk] = field(default_factory=list)

    def __call__(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        return [self._words(chunk) for chunk in chunks]

    def _words(self, chunk: Chunk) -> list[Word]:
        stuck = self.sticks(chunk, len(self.passes))
        self.passes.append(chunk)
        return [
            Word(word.text, word.start, word.end, (Token(1, word.text, self.logprob),))
            for word in SPOKEN
            if chunk.start <= word.start * SAMPLE_RATE and word.end * SAMPLE_RATE <= chunk.end
            if not (stuck and STUCK[0] <= word.middle < STUCK[1])
        ]


def completed(model: Model, chunk: Chunk) -> Completed:
    left = [word for word in SPOKEN if not STUCK[0] <= word.middle < STUCK[1]]
    return complete_words(chunk, left, detector=Loudness(), recognize=model)


def texts(words: Sequence[Word]) -> list[str]:
    return [word.text for word in words]


@pytest.mark.parametrize(
    "sticks",
    [
        pytest.param(lambda part, _: len(part.samples) > 9.5 * SAMPLE_RATE, id="in long passes"),
        pytest.param(lambda _, before: before < 2, id="in its next two passes"),
        pytest.param(lambda part, _: part.start < 8.8 * SAMPLE_RATE, id="after the words before"),
    ],
)
def test_what_is_skipped_again_comes_back_whole(sticks: Sticks) -> None:
    found = completed(Model(sticks), speech())

    assert texts(found.words) == texts(SPOKEN)
    assert found.without_words == ()


def test_where_every_pass_sticks_that_enters_the_hole_its_first_words_alone_are_lost() -> None:
    def enters(part: Chunk, _: int) -> bool:
        return part.start < STUCK[0] * SAMPLE_RATE

    found = completed(Model(enters), speech())

    lost = [text for text in texts(SPOKEN) if text not in texts(found.words)]
    assert len(lost) <= 1
    assert [text for text in texts(SPOKEN) if text not in lost] == texts(found.words)


def test_words_beside_the_speech_that_the_detector_finds_come_back() -> None:
    """The detector may notice a word late, and miss a quiet one."""
    hidden = [w for w in SPOKEN if 8 < w.middle < 10 or 20 < w.middle < 21.5]
    chunk = speech(words=[word for word in SPOKEN if word not in hidden])

    found = completed(Model(lambda *_: False), chunk)

    assert texts(found.words) == texts(SPOKEN)


def test_what_the_model_does_not_understand_is_decoded_twice_and_no_more() -> None:
    model = Model(lambda *_: False, logprob=-0.9)

    found = completed(model, speech())

    assert found.recovered == 0
    assert found.without_words
    assert len(model.passes) == 2


def test_parts_of_a_hole_are_cut_in_pauses() -> None:
    model = Model(lambda *_: True)

    completed(model, speech())

    assert len(model.passes) > 5
    for part in model.passes:
        assert part.end - part.start > SAMPLE_RATE
    # The third attempt begins 0.15 s before each cut.
    cuts = [part.start / SAMPLE_RATE + 0.15 for part in model.passes[2:4]][1:]
    assert cuts
    assert not [w for w in SPOKEN for cut in cuts if w.start - 0.01 < cut < w.end + 0.01]
