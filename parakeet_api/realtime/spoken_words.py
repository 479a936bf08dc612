"""Decide which words of a turn are final while it is still being spoken.

Successive windows of the audio are recognised, and the last words of each are uncertain, since the
model lacks the audio that follows. A word is final once two successive windows agree on it and
some audio follows it, or once so much audio follows it that another window would not change it
("local agreement" of Liu, Spanakis and Niehues, Interspeech 2020). A final word never changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from parakeet_api.speech.stitching import align, bare
from parakeet_api.transcript import Word

_AGREED_S = 0.32
"""A word that two windows agree on is final once this much audio (four frames) follows it."""
SURE_S = 1.2
"""Any word is final once this much audio follows it."""
_TAIL = 30
"""Final words used to align a window."""
_ALIGN_MARGIN_S = 1.0
_SAME_S = 0.4
"""Maximum difference between two windows' times of the same word."""


class SpokenWords:
    """The words of one turn; times are seconds from its beginning."""

    def __init__(self) -> None:
        self.final: list[Word] = []
        self._guess: list[Word] = []
        """Words of the last window after the final ones."""

    @property
    def final_end(self) -> float:
        """End of the last final word."""
        return self.final[-1].end if self.final else 0.0

    @property
    def has_guesses(self) -> bool:
        """Whether there are words that are not final."""
        return bool(self._guess)

    def hear(self, words: Sequence[Word], *, until: float) -> list[Word]:
        """Add the words of a window that ends at `until`; return the words that become final."""
        new = self._after_final(words)
        agreed = _agreed(self._guess, new)
        count = 0
        for number, word in enumerate(new):
            lookahead_s = until - word.end
            if lookahead_s < (_AGREED_S if number < agreed else SURE_S):
                break
            count = number + 1
        self.final += new[:count]
        self._guess = new[count:]
        return new[:count]

    def finish(self, words: Sequence[Word]) -> list[Word]:
        """Add the words of the whole turn; return those after the final ones."""
        rest = self._after_final(words)
        self.final += rest
        self._guess = []
        return rest

    def _after_final(self, words: Sequence[Word]) -> list[Word]:
        tail = self.final[-_TAIL:]
        if not tail:
            return list(words)
        near = [word for word in words if word.middle >= tail[0].start - _ALIGN_MARGIN_S]
        position = taken = 0
        last: Word | None = None
        for stretch in align(tail, near):
            taken += len(stretch.later)
            if stretch.agreed:
                position, last = taken, stretch.earlier[0]
        rest = near[position:]
        if last is tail[-1]:
            return rest
        # The window's words differ from the last final ones.
        return [word for word in rest if word.middle >= tail[-1].end]


def _agreed(before: Sequence[Word], now: Sequence[Word]) -> int:
    """Count the leading words on which two windows agree."""
    count = 0
    for one, other in zip(before, now, strict=False):
        if bare(one.text) != bare(other.text) or abs(one.middle - other.middle) > _SAME_S:
            break
        count += 1
    return count
