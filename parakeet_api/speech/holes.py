"""Find holes, speech without words in a chunk's transcript, and decode them again.

A transducer can emit only blanks for seconds of speech, at any precision. Decoded alone, with a
fresh decoder state and other boundaries, the same audio usually yields its words (FluidAudio issues
909 and 910). A hole that stays empty is reported with its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from parakeet_api.speech.activity import SpeechActivity, SpeechDetector
from parakeet_api.speech.chunking import quietest_moment
from parakeet_api.speech.speech_gate import DOUBT, drop_hallucinations
from parakeet_api.speech.stitching import align
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Word, mean_logprob

MIN_SPEECH_S = 1.0
"""Shorter speech without words is a cough, a breath, or a word with an inaccurate time."""
_LEVEL_FRAME = SAMPLE_RATE * 30 // 1000
_QUIETEST_PERCENT = 10
_ABOVE_FLOOR = 4.0
"""6 dB above the quietest tenth of the chunk; frames below are a pause and are not passed to the
detector. Of 360 s of pauses in 58 minutes of recordings 120 s remain, mostly breath and noise."""
_MIN_FLOOR = 9.0
"""Mean square, int16 units: the dither of a converter."""
_MIN_LOUD_S = 0.5
"""A gap between words with less audio above that level is not passed to the detector."""
_EDGE_S = 0.12
"""Distance by which a recovered word's middle may lie outside the part that was decoded for it."""
_ALIGNED_S = 5.0
"""Words within this distance of a part are aligned with those recovered: more than the audio that
an attempt adds to it."""
_MIN_LOGPROB = -0.5
"""Minimum mean log-probability of the tokens of recovered words if the chunk's other words have
`DOUBT` (-0.25) or more, as nearly all speech has."""
_MIN_LOGPROB_ALONE = -0.25
"""The same if the chunk has no other words."""
_MIN_LOGPROB_AMID_DOUBT = -0.1
"""The same if the other words have less than `DOUBT`. To a minute of three simultaneous voices, the
demo model added 22 words at -0.5, two at -0.25, one at -0.15 and none at -0.08; to eight voices 13
at -0.5 and none at -0.25. The English model added none."""

Recognize = Callable[[Sequence[Chunk]], Iterable[list[Word]]]
"""Return the words of each chunk, in order."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the recording, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Hole:
    """Speech in a gap between two words; times in seconds."""

    gap: Span
    speech: Span
    """From the first speech in the gap to the last."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """How holes are decoded again; all in seconds."""

    longest_s: float
    """A longer hole is decoded in parts."""
    before_s: float
    """Audio before a hole that is decoded with it; negative = it begins within the hole."""
    after_s: float


_ATTEMPTS = (
    _Attempt(longest_s=20.0, before_s=4.0, after_s=4.0),
    _Attempt(longest_s=20.0, before_s=0.3, after_s=1.0),
    _Attempt(longest_s=8.0, before_s=0.15, after_s=1.0),
    _Attempt(longest_s=8.0, before_s=-0.2, after_s=1.0),
    _Attempt(longest_s=4.0, before_s=-0.6, after_s=1.0),
)
"""What makes a model skip speech is not known beforehand: its state after the words before a hole,
the length of the pass, or how the audio is divided into frames. So each attempt changes all three.
The first one has the most context, with which the words agree with the rest of the chunk. The
second begins without the words before the hole, the third decodes shorter parts, cut in pauses. The
last ones begin within the speech: if the model skips it again wherever a pass begins before it, the
first words of the hole are lost instead of all."""
_MAX_DOUBTFUL = 2
"""Attempts with improbable words after which a hole is left: the model does not skip it, but cannot
recognise it, and one of many hypotheses would be probable by chance."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a hole, with the audio to decode for it."""

    chunk: Chunk
    span: Span
    """The part itself, in which recovered words are searched for."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A chunk's words after its holes were decoded again."""

    words: list[Word]
    without_words: tuple[Span, ...] = ()
    """Speech in the chunk's owned range that still has no words."""
    recovered: int = 0
    """Number of words added by decoding again."""


def complete_words(
    chunk: Chunk, words: Sequence[Word], *, detector: SpeechDetector | None, recognize: Recognize
) -> Completed:
    """Drop hallucinated words, and decode speech without words again.

    Without a detector, only words in digital silence are dropped, and nothing is decoded again.
    """
    activity = SpeechActivity(chunk, detector) if detector else None
    words = drop_hallucinations(chunk, words, activity)
    if activity is None:
        return Completed(words)
    before = len(words)
    required = _required_logprob(words)
    doubtful: list[Span] = []
    holes = find_holes(chunk, words, activity)
    for attempt in _ATTEMPTS:
        tried = [hole for hole in holes if _count_within(doubtful, hole.gap) < _MAX_DOUBTFUL]
        if not tried:
            break
        parts = [part for hole in tried for part in _parts(chunk, hole, attempt, activity)]
        decoded = recognize([part.chunk for part in parts])
        for part, candidates in zip(parts, decoded, strict=True):
            recovered = drop_hallucinations(part.chunk, candidates, activity)
            new = _new_words(words, recovered, part.span)
            if _are_likely(new, required):
                words = sorted([*words, *new], key=lambda word: word.middle)
            elif new:
                doubtful.append(part.span)
        holes = find_holes(chunk, words, activity)
    without_words = _owned(chunk, [hole.speech for hole in holes])
    return Completed(words, tuple(without_words), len(words) - before)


def _count_within(spans: Sequence[Span], gap: Span) -> int:
    """Count the spans whose middle lies in a gap."""
    return sum(gap.start <= (span.start + span.end) / 2 <= gap.end for span in spans)


def find_holes(chunk: Chunk, words: Sequence[Word], activity: SpeechActivity) -> list[Hole]:
    """List the holes of a chunk: gaps between words with `MIN_SPEECH_S` of speech or more."""
    gaps = _audible_gaps(chunk, words)
    activity.measure([(gap.start, gap.end) for gap in gaps])
    return [
        Hole(gap, Span(*activity.speech_between(gap.start, gap.end)))
        for gap in gaps
        if activity.speech_s(gap.start, gap.end) >= MIN_SPEECH_S
    ]


def _audible_gaps(chunk: Chunk, words: Sequence[Word]) -> list[Span]:
    """List the gaps between words that are not quiet and overlap the chunk's owned range."""
    owned = Span(chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE)
    starts = [chunk.start / SAMPLE_RATE, *(word.end for word in words)]
    ends = [*(word.start for word in words), chunk.end / SAMPLE_RATE]
    gaps = [
        Span(start, end)
        for start, end in zip(starts, ends, strict=True)
        # A gap in the context alone is owned by a neighbour.
        if min(end, owned.end) - max(start, owned.start) > 0 and end - start >= MIN_SPEECH_S
    ]
    frames = len(chunk.samples) // _LEVEL_FRAME
    if not gaps or not frames:
        return []
    framed = chunk.samples[: frames * _LEVEL_FRAME].reshape(frames, _LEVEL_FRAME)
    level = np.einsum("ij,ij->i", framed, framed, dtype=np.float32) / _LEVEL_FRAME
    loud = level > _ABOVE_FLOOR * max(_MIN_FLOOR, float(np.percentile(level, _QUIETEST_PERCENT)))
    per_s = SAMPLE_RATE / _LEVEL_FRAME
    offset = chunk.start / SAMPLE_RATE

    def is_loud(gap: Span) -> bool:
        within = loud[int((gap.start - offset) * per_s) : math.ceil((gap.end - offset) * per_s)]
        return bool(np.count_nonzero(within) >= _MIN_LOUD_S * per_s)

    return [gap for gap in gaps if is_loud(gap)]


def _parts(chunk: Chunk, hole: Hole, attempt: _Attempt, activity: SpeechActivity) -> list[_Part]:
    """Cut a hole out of a chunk with the audio around it, a long one in parts."""
    cuts = _cuts(chunk, hole.speech, attempt.longest_s, activity)
    spoken = pairwise([hole.speech.start, *cuts, hole.speech.end])
    spans = pairwise([hole.gap.start, *cuts, hole.gap.end])
    return [
        _Part(_audio(chunk, Span(*within), attempt), Span(*span))
        for within, span in zip(spoken, spans, strict=True)
    ]


def _cuts(chunk: Chunk, speech: Span, longest_s: float, activity: SpeechActivity) -> list[float]:
    """Cut a span in its longest pauses, so that no part is longer than `longest_s`; in seconds."""
    cuts: list[float] = []
    begin = speech.start
    while speech.end - begin > longest_s:
        # The last two parts are about equally long.
        latest = min(begin + longest_s, speech.end - longest_s / 4)
        earliest = begin + longest_s / 3
        pause = activity.longest_pause(earliest, latest)
        begin = (pause[0] + pause[1]) / 2 if pause else _quietest(chunk, earliest, latest)
        cuts.append(begin)
    return cuts


def _quietest(chunk: Chunk, start: float, end: float) -> float:
    """Return the quietest moment between two times within a chunk, in seconds."""
    first = round(start * SAMPLE_RATE) - chunk.start
    last = round(end * SAMPLE_RATE) - chunk.start
    return (chunk.start + first + quietest_moment(chunk.samples[first:last])) / SAMPLE_RATE


def _audio(chunk: Chunk, span: Span, attempt: _Attempt) -> Chunk:
    """Cut out a span with as much audio around it as an attempt has."""
    start = max(0, round((span.start - attempt.before_s) * SAMPLE_RATE) - chunk.start)
    if attempt is _ATTEMPTS[0]:
        # On the chunk's grid of encoder frames, so that word times agree.
        start = start // FRAME * FRAME
    end = max(start + 1, round((span.end + attempt.after_s) * SAMPLE_RATE) - chunk.start)
    return chunk.part(start, end)


def _required_logprob(words: Sequence[Word]) -> float:
    """Return the minimum mean log-probability of words to be added to these."""
    mean = mean_logprob(words)
    if mean is None:
        return _MIN_LOGPROB_ALONE if not words else _MIN_LOGPROB
    return _MIN_LOGPROB if mean >= DOUBT else _MIN_LOGPROB_AMID_DOUBT


def _new_words(words: Sequence[Word], recovered: Sequence[Word], part: Span) -> list[Word]:
    """Return the words recovered in a part of a hole that the chunk does not have yet."""
    near = [word for word in words if part.start - _ALIGNED_S < word.middle < part.end + _ALIGNED_S]
    return [
        word
        for span in align(near, recovered)
        if not span.agreed
        for word in span.later
        if part.start - _EDGE_S <= word.middle <= part.end + _EDGE_S
        and not any(_overlap(word, other) for other in near)
    ]


def _are_likely(words: Sequence[Word], required: float) -> bool:
    """Tell whether there are words, and their mean log-probability, if known, suffices."""
    mean = mean_logprob(words)
    return bool(words) and (mean is None or mean >= required)


def _overlap(one: Word, other: Word) -> bool:
    """Tell whether the middle of either word lies within the other."""
    return one.start < other.middle < one.end or other.start < one.middle < other.end


def _owned(chunk: Chunk, holes: Sequence[Span]) -> list[Span]:
    """Clip holes to the chunk's owned range."""
    start_s, end_s = chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE
    cut = [Span(max(hole.start, start_s), min(hole.end, end_s)) for hole in holes]
    return [span for span in cut if span.end > span.start]


class SpeechWithoutWords:
    """The speech without words of a recording, less what neighbouring chunks have words for."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, spans: Iterable[Span]) -> None:
        """Add a chunk's spans of speech without words, in order of time."""
        for span in spans:
            last = self._spans[-1] if self._spans else None
            if last is not None and span.start - last.end < MIN_SPEECH_S / 2:
                self._spans[-1] = Span(last.start, max(last.end, span.end))
            else:
                self._spans.append(span)

    def remove_covered(self, words: Iterable[Word]) -> None:
        """Remove the parts for which the final transcript has words."""
        if not self._spans:
            return
        for word in words:
            self._spans = [
                part
                for span in self._spans
                for part in (
                    (Span(span.start, word.start), Span(word.end, span.end))
                    if span.start < word.middle < span.end
                    else (span,)
                )
            ]

    def spans(self) -> list[Span]:
        """List the remaining spans of `MIN_SPEECH_S` or more."""
        return [span for span in self._spans if span.end - span.start >= MIN_SPEECH_S]
