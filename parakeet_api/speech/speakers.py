"""Assign a speaker to each word, by the speakers' activity in the word's time.

The contract: every word gets exactly one speaker. If one speaker alone is active, that is the
word's. If several are, or none, the word keeps the neighbours' speaker: a change costs as much as a
frame of speech, less at a pause or the end of a sentence. So a short "yes" of another speaker is
found, and activity in a single frame changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from parakeet_api.speech.diarization import FloatArray
from parakeet_api.transcript import Word

ACTIVE = 0.5
"""Probability from which a speaker is active in a frame."""
_SCALE = 255
"""Stored value of a probability of 1."""
_MIN_CAPACITY = 1024
_MIN_FRAMES = 3
"""Least frames examined for a word: its times are uncertain by a frame."""
_CHANGE = 1.0
"""Cost of a change of speaker inside a phrase, in frames in which one speaker alone is active."""
_CHANGE_AT_BREAK = 0.25
"""The same after the end of a sentence, or a pause of `_BREAK_S`."""
_BREAK_S = 0.3
_SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01", "\u2026")


class SpeakerActivity:
    """How active each speaker is in each frame of a recording: one byte each, 2 MB for ten hours.

    One thread may add while another one reads.
    """

    def __init__(self, *, frame_s: float, speakers: int) -> None:
        self.frame_s = frame_s
        self.speakers = speakers
        self._levels = np.zeros((_MIN_CAPACITY, speakers), np.uint8)
        self._frames = 0
        self._active = np.zeros(speakers, np.int64)
        """Frames in which each speaker is active."""

    @property
    def covered_s(self) -> float:
        """Duration covered so far, in seconds."""
        return self._frames * self.frame_s

    def add(self, probabilities: FloatArray) -> None:
        """Append frames, shape `(frames, speakers)`."""
        end = self._frames + len(probabilities)
        levels = self._levels
        if end > len(levels):
            levels = np.zeros((max(end, 2 * len(levels)), self.speakers), np.uint8)
            levels[: self._frames] = self._levels[: self._frames]
        levels[self._frames : end] = np.rint(np.clip(probabilities, 0, 1) * _SCALE)
        self._active += np.count_nonzero(probabilities >= ACTIVE, axis=0)
        # In this order: a reader takes the count first, then an array that has as many frames.
        self._levels = levels
        self._frames = end

    def of(self, word: Word) -> NDArray[np.float64]:
        """Add up each speaker's activity in a word's time, in frames; shape `(speakers,)`."""
        frames = self._frames
        first = math.floor(word.start / self.frame_s + 1e-6)
        end = max(first + 1, math.ceil(word.end / self.frame_s - 1e-6))
        lacking = max(0, _MIN_FRAMES - (end - first))
        first, end = first - lacking // 2, end + (lacking + 1) // 2
        levels: NDArray[np.float64] = self._levels[max(0, first) : min(end, frames)].sum(
            axis=0, dtype=np.float64
        )
        return levels / _SCALE

    def most_active(self, number: int) -> frozenset[int]:
        """Return the `number` speakers who have spoken longest so far."""
        order = np.argsort(-self._active, kind="stable")
        return frozenset(order[:number].tolist())


def assign_speakers(
    words: Sequence[Word],
    activity: SpeakerActivity,
    *,
    before: Word | None = None,
    speaker_before: int | None = None,
    allowed: Collection[int] | None = None,
) -> list[int]:
    """Return the speaker of each word, in order of time: the most likely sequence (Viterbi).

    `before` and `speaker_before` are the word that precedes these, and its speaker. With `allowed`,
    only these speakers are assigned.
    """
    if not words:
        return []
    speakers = activity.speakers
    barred = [s for s in range(speakers) if allowed is not None and s not in allowed]
    score = np.zeros(speakers)
    if speaker_before is not None:
        score -= _change_cost(before, words[0])
        score[speaker_before] = 0.0
    score[barred] = -np.inf
    arrivals: list[NDArray[np.intp]] = []
    for number, word in enumerate(words):
        if number:
            best = int(np.argmax(score))
            changed = score[best] - _change_cost(words[number - 1], word)
            arrivals.append(np.where(score >= changed, np.arange(speakers), best))
            score = np.maximum(score, changed)
            score[barred] = -np.inf
        score = score + activity.of(word)
    path = [int(np.argmax(score))]
    for arrival in reversed(arrivals):
        path.append(int(arrival[path[-1]]))
    return path[::-1]


def _change_cost(before: Word | None, after: Word) -> float:
    if before is None:
        return 0.0
    is_break = before.text.endswith(_SENTENCE_ENDS) or after.start - before.end >= _BREAK_S
    return _CHANGE_AT_BREAK if is_break else _CHANGE


def letter(number: int) -> str:
    """Name a speaker by number, from 0: A to Z, then AA, AB, ..."""
    quotient, rest = divmod(number, 26)
    return (letter(quotient - 1) if quotient else "") + chr(ord("A") + rest)


def letters(taken: Collection[str]) -> Iterator[str]:
    """Yield the letters of all numbers, without those that are known speakers' names."""
    return (name for name in map(letter, count()) if name not in taken)
