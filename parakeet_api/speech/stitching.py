"""Join the words of overlapping chunks: nothing lost, nothing twice.

A word belongs to the chunk that owns its middle. That alone is nearly enough; but both chunks
time a word a little differently, so one that lies on a seam could fall on both sides of it, or on
neither. So the later chunk takes over not at the seam but at a moment near it that lies clear of
every word in both versions, and where both versions agree on the words before and after.

The contract: if the two timings of each word differ by less than half the distance to its
neighbours, and by less than 0.24 s, every word comes out exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word

_WINDOW_S = 1.0
"""How far from the seam the hand-over may lie."""
_CLEAR_S = 0.12
"""A hand-over this far from the middle of any word is clear: two timings of one word, a frame or
two (0.16 s) apart, then lie on the same side of it."""
_SENTENCE_ENDS = (".", "?", "!")


class Stitcher:
    """Join chunks as they come; give each word out once no later chunk can change it."""

    def __init__(self, *, sentence_boundary_threshold_s: float) -> None:
        self._sentence_window_s = sentence_boundary_threshold_s
        self._previous: Chunk | None = None
        self._held: list[Word] = []
        """The previous chunk's words near its end and beyond."""
        self._last_end = 0.0
        """Seconds; where the last word that was given out ends."""

    def add(self, chunk: Chunk, words: Sequence[Word]) -> Iterator[Word]:
        """Take the next chunk of the recording; yield the words that are now final.

        `words` are all that the chunk heard, context included, in order of time.
        """
        kept = list(words)
        if self._previous is not None:
            seam = _Seam.between(self._previous, chunk, sentence_window_s=self._sentence_window_s)
            final, kept = hand_over(self._held, kept, seam)
            yield from self._in_order(final)
        self._previous = chunk
        settled = _settled_before(chunk)
        self._held = [word for word in kept if word.middle >= settled]
        yield from self._in_order(word for word in kept if word.middle < settled)

    def finish(self) -> Iterator[Word]:
        """Yield what is left after the last chunk."""
        yield from self._in_order(self._held)
        self._held = []
        self._previous = None

    def _in_order(self, words: Iterable[Word]) -> Iterator[Word]:
        """Move a start that lies, by another chunk's timing, before the end of the last word."""
        for word in words:
            start = max(word.start, self._last_end)
            end = max(word.end, start)
            self._last_end = end
            moved = (start, end) != (word.start, word.end)
            yield replace(word, start=start, end=end) if moved else word


@dataclass(frozen=True, slots=True)
class _Seam:
    """Where one chunk's answer ends and the next one's begins; seconds."""

    at: float
    window: float
    """How far from the seam the hand-over may lie; 0 where the chunks share no audio."""
    sentence_window: float
    """How near the seam a sentence end is preferred."""

    @classmethod
    def between(cls, earlier: Chunk, later: Chunk, *, sentence_window_s: float) -> _Seam:
        context = min(earlier.end - later.owned_start, later.owned_start - later.start)
        return cls(
            at=later.owned_start / SAMPLE_RATE,
            window=_window_s(context),
            sentence_window=sentence_window_s,
        )


def _window_s(context: int) -> float:
    """Leave the outer half of the context out: words cut by a chunk's edge are unreliable."""
    return min(_WINDOW_S, context / 2 / SAMPLE_RATE)


def _settled_before(chunk: Chunk) -> float:
    """Give the moment, in seconds, before which the next chunk has no say.

    One more window than the hand-over needs: the words there tell whether the versions agree.
    """
    return chunk.owned_end / SAMPLE_RATE - 2 * _window_s(chunk.end - chunk.owned_end)


def hand_over(
    earlier: Sequence[Word], later: Sequence[Word], seam: _Seam
) -> tuple[list[Word], list[Word]]:
    """Choose a moment near the seam; keep what `earlier` heard before it and `later` after it.

    First choice is a moment at which both versions agree on the neighbouring words; then one that
    is clear of words; then one that keeps the version which the model doubts less; then the end of
    a sentence; then the nearest to the seam.
    """
    if seam.window == 0:
        # No shared audio: each chunk is the only witness of what it heard.
        return list(earlier), list(later)
    later, rest = _part_behind(later, seam.at + seam.window + _CLEAR_S)
    middles = sorted(
        word.middle for word in (*earlier, *later) if abs(word.middle - seam.at) < seam.window
    )
    edges = [seam.at - seam.window, *middles, seam.at + seam.window]
    cuts = [_Cut.between(left, right, earlier, later, seam) for left, right in pairwise(edges)]
    best = min(cuts, key=lambda cut: cut.reluctance(seam))
    return best.before_earlier, [*best.from_later, *rest]


def _part_behind(words: Sequence[Word], moment: float) -> tuple[Sequence[Word], Sequence[Word]]:
    """Part words behind the first one whose successors all lie after a moment.

    These are kept wherever the hand-over lies, and looking at them for each cut takes long.
    """
    last = max((n for n, word in enumerate(words) if word.middle < moment), default=-1)
    return words[: last + 2], words[last + 2 :]


@dataclass(frozen=True, slots=True)
class _Cut:
    """One possible hand-over: both versions, parted at a moment between two words."""

    moment: float
    """Seconds."""
    clearance: float
    """Seconds to the nearest middle of a word in either version."""
    before_earlier: list[Word]
    from_earlier: list[Word]
    before_later: list[Word]
    from_later: list[Word]

    @classmethod
    def between(
        cls,
        left: float,
        right: float,
        earlier: Sequence[Word],
        later: Sequence[Word],
        seam: _Seam,
    ) -> _Cut:
        moment = _nearest_within(left, right, seam.at)
        return cls(
            moment=moment,
            clearance=min(moment - left, right - moment),
            before_earlier=[word for word in earlier if word.middle < moment],
            from_earlier=[word for word in earlier if word.middle >= moment],
            before_later=[word for word in later if word.middle < moment],
            from_later=[word for word in later if word.middle >= moment],
        )

    def reluctance(self, seam: _Seam) -> tuple[int, float, float, bool, float]:
        """Rank a hand-over: smaller is better."""
        agreements = _agree(self.before_earlier[-1:], self.before_later[-1:]) + _agree(
            self.from_earlier[:1], self.from_later[:1]
        )
        distance = abs(self.moment - seam.at)
        ends_sentence = any(w.text.endswith(_SENTENCE_ENDS) for w in self.before_earlier[-1:])
        return (
            -agreements,
            -min(self.clearance, _CLEAR_S),
            self._doubt(seam),
            not (ends_sentence and distance <= seam.sentence_window),
            distance,
        )

    def _doubt(self, seam: _Seam) -> float:
        """Average the negative log-probability of the tokens that would be kept near the seam.

        In steps of 0.1: less is the noise of two views of the same sound.
        """
        kept = [
            word
            for word in (*self.before_earlier, *self.from_later)
            if abs(word.middle - seam.at) < seam.window
        ]
        known = [t.logprob for word in kept for t in word.tokens if t.logprob is not None]
        return -round(sum(known) / len(known), 1) if known else 0.0


def _nearest_within(left: float, right: float, at: float) -> float:
    """Give the moment between two words nearest the seam that is clear of both, or half way."""
    if right - left <= 2 * _CLEAR_S:
        return (left + right) / 2
    return min(max(at, left + _CLEAR_S), right - _CLEAR_S)


def _agree(one: Sequence[Word], other: Sequence[Word]) -> bool:
    """Tell whether two versions have the same next word, or both none."""
    return [_bare(word.text) for word in one] == [_bare(word.text) for word in other]


def _bare(text: str) -> str:
    """Strip what differs with a chunk's view of the sentence: case and punctuation."""
    return "".join(character for character in text.casefold() if character.isalnum())
