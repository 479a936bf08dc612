"""Which words of a turn can be told while it goes on.

Windows of the sound are recognised one after the other, and the last words of each are guesses: the
model has not heard what follows. A word is final once two windows in a row have it and some sound
after it was heard, or once so much was heard after it that a third would not change it
("local agreement" of Liu, Spanakis and Niehues, Interspeech 2020). A final word is never taken
back.
"""

from __future__ import annotations

from collections.abc import Sequence

from parakeet_api.speech.stitching import align
from parakeet_api.transcript import Word

_HEARD_AFTER_S = 0.32
"""Four frames after its end a word that two windows agree on is final."""
SURE_S = 1.2
"""So long after its end any word is."""
_TAIL = 30
"""Final words by which the next ones are found."""
_REACH_S = 1.0
_SAME_S = 0.4
"""Two windows' timings of one word differ by less."""


class SpokenWords:
    """The words of one turn; times are seconds from its beginning."""

    def __init__(self) -> None:
        self.final: list[Word] = []
        self._guess: list[Word] = []
        """What the last window had after the final words."""

    @property
    def final_end(self) -> float:
        """Where the last final word ends."""
        return self.final[-1].end if self.final else 0.0

    @property
    def has_guesses(self) -> bool:
        """Whether there are words that are not final."""
        return bool(self._guess)

    def hear(self, words: Sequence[Word], *, until: float) -> list[Word]:
        """Take the words of a window that ends at `until`; give those that are now final."""
        new = self._after_final(words)
        agreed = _agreed(self._guess, new)
        count = 0
        for number, word in enumerate(new):
            heard_after = until - word.end
            if heard_after < (_HEARD_AFTER_S if number < agreed else SURE_S):
                break
            count = number + 1
        self.final += new[:count]
        self._guess = new[count:]
        return new[:count]

    def finish(self, words: Sequence[Word]) -> list[Word]:
        """Take the words of the whole turn; give those after the final ones."""
        rest = self._after_final(words)
        self.final += rest
        self._guess = []
        return rest

    def _after_final(self, words: Sequence[Word]) -> list[Word]:
        tail = self.final[-_TAIL:]
        if not tail:
            return list(words)
        near = [word for word in words if word.middle >= tail[0].start - _REACH_S]
        position = taken = 0
        last: Word | None = None
        for stretch in align(tail, near):
            taken += len(stretch.later)
            if stretch.agreed:
                position, last = taken, stretch.earlier[0]
        rest = near[position:]
        if last is tail[-1]:
            return rest
        # The window has another version of the last final words.
        return [word for word in rest if word.middle >= tail[-1].end]


def _agreed(before: Sequence[Word], now: Sequence[Word]) -> int:
    """Count the words at the beginning that two windows have in common."""
    count = 0
    for one, other in zip(before, now, strict=False):
        if _bare(one.text) != _bare(other.text) or abs(one.middle - other.middle) > _SAME_S:
            break
        count += 1
    return count


def _bare(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
