"""Drop the words that a model imagines where there is nothing to hear.

A transducer trained on speech alone finds words in silence and hiss too. Deleting a real word is
worse than keeping an imagined one, so two witnesses must agree: the sound itself, and the model's
own doubt. Only digital silence convicts alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm, Word

_DIGITAL_SILENCE = 2
"""Peak in int16 units, -84 dB: below the dither of any recorder."""
_MARGIN = SAMPLE_RATE // 4
"""Words are timed to 80 ms, and a plosive may precede its token."""
_PROBES = np.arange(-200, 200, 50)
"""Samples, 3 ms apart: within the margin, and not all at a wave's crossing of zero."""
_LEVEL_FRAME = SAMPLE_RATE * 30 // 1000
_STEADY_DB = 3.0
"""5th to 95th percentile of the level. White noise measures 1 dB, a hum 0.5; speech 20 or more,
and still 6 in noise as loud as itself."""
_DOUBT = -0.25
"""Mean log-probability of the tokens. Imagined text measured -0.3 to -2.5, speech -0.01 (-0.13 at
worst)."""


def heard_words(chunk: Chunk, words: Sequence[Word]) -> list[Word]:
    """Keep the words that something in the chunk's sound can account for."""
    audible = [
        word
        for word, is_loud in zip(words, _are_loud_in_the_middle(chunk, words), strict=True)
        if is_loud or not _in_digital_silence(chunk, word)
    ]
    if audible and _mean_logprob(audible) < _DOUBT and _is_steady(chunk.samples):
        return []
    return audible


def _are_loud_in_the_middle(chunk: Chunk, words: Sequence[Word]) -> NDArray[np.bool_]:
    """Probe the sound of all words at once, shape `(words,)`.

    Nearly always that tells, and looking at the whole of each takes five times as long.
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


def _mean_logprob(words: Sequence[Word]) -> float:
    known = [t.logprob for word in words for t in word.tokens if t.logprob is not None]
    return sum(known) / len(known) if known else 0.0


def _is_steady(samples: Pcm) -> bool:
    """Tell whether the level hardly changes: silence, hiss, a hum or a tone."""
    frames = len(samples) // _LEVEL_FRAME
    if frames == 0:
        return True
    framed = samples[: frames * _LEVEL_FRAME].reshape(frames, _LEVEL_FRAME).astype(np.float32)
    level = 10 * np.log10(np.mean(framed**2, axis=1) + 1.0)
    low, high = np.percentile(level, (5, 95))
    return bool(high - low < _STEADY_DB)
