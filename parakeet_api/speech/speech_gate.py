"""Drop the words that a model imagines where there is nothing to hear.

A transducer trained on speech alone finds words in silence and hiss too. Deleting a real word is
worse than keeping an imagined one, so two witnesses must agree that a word is none: the model's own
doubt, and a voice activity detector that finds no speech at its place. Digital silence alone is
enough to drop a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from parakeet_api.speech.activity import STEP, SpeechActivity
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Word

_DIGITAL_SILENCE = 2
"""Peak in int16 units, -84 dB: below the dither of any recorder."""
_MARGIN = SAMPLE_RATE // 4
"""Words are timed to 80 ms, and a plosive may precede its token."""
_PROBES = np.arange(-200, 200, 50)
"""Samples, 3 ms apart: within the margin, and not all at a wave's crossing of zero."""
_MARGIN_S = _MARGIN / SAMPLE_RATE
_AROUND_S = 5.0
"""A word is as sure as the words within 5 s: of the words that the demo model imagines in hiss, one
in ten has a log-probability of 0.0, and none has neighbours that are as sure."""
_MIN_SPEECH_S = 3 * STEP / SAMPLE_RATE
"""0.1 s within the margins of a word. A hum that sets in is speech to the detector for 0.03 s."""
DOUBT = -0.25
"""Mean log-probability of the tokens of those words, below which all of them are doubtful. In hiss,
hum, dither and applause it is -0.4 to -1.0 with the demo model, -1.2 to -1.9 with the English one,
and far lower with random weights. In speech it is -0.01 (demo) and -0.1 to -0.4 (English): there
the detector decides, and finds speech."""


def drop_hallucinations(
    chunk: Chunk, words: Sequence[Word], activity: SpeechActivity | None
) -> list[Word]:
    """Keep the words that something in the chunk's sound can account for.

    Without a detector, only those in digital silence are dropped.
    """
    audible = [
        word
        for word, is_loud in zip(words, _are_loud_in_the_middle(chunk, words), strict=True)
        if is_loud or not _in_digital_silence(chunk, word)
    ]
    if activity is None:
        return audible
    doubtful = [
        word for word, mean in zip(audible, _means_around(audible), strict=True) if mean < DOUBT
    ]
    if not doubtful:
        return audible
    places = [_place(chunk, audible, word) for word in doubtful]
    activity.measure(places)
    imagined = {
        id(word)
        for word, place in zip(doubtful, places, strict=True)
        if activity.speech_s(*place) < _MIN_SPEECH_S
    }
    return [word for word in audible if id(word) not in imagined]


def _place(chunk: Chunk, words: Sequence[Word], word: Word) -> tuple[float, float]:
    """Give where the sound of a word can be, seconds of the recording.

    A transducer may emit the first word at the first frame although it is spoken up to two seconds
    later, just before the second one: its sound may reach to the end of that. In 8 of 333
    recordings of people the English model doubted such a word, and its own place was silent.
    """
    end = word.end
    if word is words[0] and word.start * SAMPLE_RATE < chunk.start + FRAME:
        end = max(other.end for other in words[:2])
    return word.start - _MARGIN_S, end + _MARGIN_S


def _are_loud_in_the_middle(chunk: Chunk, words: Sequence[Word]) -> NDArray[np.bool_]:
    """Probe the sound of all words at once, shape `(words,)`.

    Nearly always that is enough, and looking at the whole of each takes five times as long.
    """
    middles = np.array([round(word.middle * SAMPLE_RATE) - chunk.start for word in words], np.int64)
    probes = middles[:, np.newaxis] + _PROBES
    inside = (probes >= 0) & (probes < len(chunk.samples))
    sound = chunk.samples[np.where(inside, probes, 0)] if len(chunk.samples) else np.int16(0)
    return np.asarray((inside & ((sound > _DIGITAL_SILENCE) | (sound < -_DIGITAL_SILENCE))).any(1))


def _in_digital_silence(chunk: Chunk, word: Word) -> bool:
    start = round(word.start * SAMPLE_RATE) - chunk.start
    end = round(word.end * SAMPLE_RATE) - chunk.start
    around = chunk.samples[max(0, start - _MARGIN) : end + _MARGIN]
    # Not np.abs: the lowest int16 has no positive counterpart.
    return len(around) == 0 or bool(
        around.max() <= _DIGITAL_SILENCE and around.min() >= -_DIGITAL_SILENCE
    )


def _means_around(words: Sequence[Word]) -> NDArray[np.float64]:
    """Average the tokens' log-probabilities over the words near each; shape `(words,)`.

    0 where none is known: a beam gives none.
    """
    known = [
        [t.logprob for t in word.tokens if t.logprob is not None and not math.isnan(t.logprob)]
        for word in words
    ]
    sums = np.array([0.0, *accumulate(math.fsum(logprobs) for logprobs in known)])
    counts = np.array([0, *accumulate(map(len, known))])
    middles = np.maximum.accumulate(np.array([word.middle for word in words]))
    first = np.searchsorted(middles, middles - _AROUND_S, "left")
    last = np.searchsorted(middles, middles + _AROUND_S, "right")
    means: NDArray[np.float64] = (sums[last] - sums[first]) / np.maximum(
        1, counts[last] - counts[first]
    )
    return means
