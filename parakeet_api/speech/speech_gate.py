"""Drop words that a model hallucinates where there is no speech.

A transducer trained on speech alone also emits words in silence and hiss. Deleting a real word is
worse than keeping a hallucinated one, so a word is dropped only if two signals agree: the model's
log-probabilities are low, and a voice activity detector finds no speech at its time. In digital
silence a word is always dropped.
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
"""Audio before and after a word that is examined too: word times have a resolution of 80 ms, and a
plosive may precede its token."""
_PROBES = np.arange(-200, 200, 50)
"""Offsets in samples, 3 ms apart: within the margin, and not all at zero crossings of a wave."""
_MARGIN_S = _MARGIN / SAMPLE_RATE
_AROUND_S = 5.0
"""The log-probability of a word is averaged over the words within 5 s: one in ten words that the
demo model hallucinates in hiss has 0.0, but none has neighbours with as much."""
_MIN_SPEECH_S = 3 * STEP / SAMPLE_RATE
"""0.1 s of speech, margins included: less is no word. The onset of a hum counts as 0.03 s."""
DOUBT = -0.25
"""A word is doubtful if that mean is lower. In hiss, hum, dither and applause it is -0.4 to -1.0
with the demo model, -1.2 to -1.9 with the English one, and far lower with random weights. In speech
it is -0.01 (demo) and -0.1 to -0.4 (English); there the detector decides, and finds speech."""


def drop_hallucinations(
    chunk: Chunk, words: Sequence[Word], activity: SpeechActivity | None
) -> list[Word]:
    """Drop the words of a chunk at whose time there is no speech.

    Without a detector, drop only words in digital silence.
    """
    audible = [
        word
        for word, has_audio in zip(words, _have_audio_at_middle(chunk, words), strict=True)
        if has_audio or not _in_digital_silence(chunk, word)
    ]
    if activity is None:
        return audible
    doubtful = [
        word for word, mean in zip(audible, _means_around(audible), strict=True) if mean < DOUBT
    ]
    if not doubtful:
        return audible
    spans = [_search_span(chunk, audible, word) for word in doubtful]
    activity.measure(spans)
    hallucinated = {
        id(word)
        for word, span in zip(doubtful, spans, strict=True)
        if activity.speech_s(*span) < _MIN_SPEECH_S
    }
    return [word for word in audible if id(word) not in hallucinated]


def _search_span(chunk: Chunk, words: Sequence[Word], word: Word) -> tuple[float, float]:
    """Return the span in which to look for a word's speech, in seconds of the recording.

    A transducer may emit the first word at the first frame although it is spoken up to two seconds
    later, just before the second one, so its audio may extend to the end of that one. In 8 of 333
    recordings of people such a word of the English model was doubtful, and its own time was silent.
    """
    end = word.end
    if word is words[0] and word.start * SAMPLE_RATE < chunk.start + FRAME:
        end = max(other.end for other in words[:2])
    return word.start - _MARGIN_S, end + _MARGIN_S


def _have_audio_at_middle(chunk: Chunk, words: Sequence[Word]) -> NDArray[np.bool_]:
    """Tell which words have audio at some samples around their middle, shape `(words,)`.

    Nearly all words pass this test; to examine all samples of each takes five times as long.
    """
    middles = np.array([round(word.middle * SAMPLE_RATE) - chunk.start for word in words], np.int64)
    probes = middles[:, np.newaxis] + _PROBES
    inside = (probes >= 0) & (probes < len(chunk.samples))
    sound = chunk.samples[np.where(inside, probes, 0)] if len(chunk.samples) else np.int16(0)
    return np.asarray((inside & ((sound > _DIGITAL_SILENCE) | (sound < -_DIGITAL_SILENCE))).any(1))


def _in_digital_silence(chunk: Chunk, word: Word) -> bool:
    """Tell whether all samples of a word and its margins are digital silence."""
    start = round(word.start * SAMPLE_RATE) - chunk.start
    end = round(word.end * SAMPLE_RATE) - chunk.start
    around = chunk.samples[max(0, start - _MARGIN) : end + _MARGIN]
    # Not np.abs: the lowest int16 has no positive counterpart.
    return len(around) == 0 or bool(
        around.max() <= _DIGITAL_SILENCE and around.min() >= -_DIGITAL_SILENCE
    )


def _means_around(words: Sequence[Word]) -> NDArray[np.float64]:
    """Average the tokens' log-probabilities over the words near each, shape `(words,)`.

    0 where none is known: beam search gives none.
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
