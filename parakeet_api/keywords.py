"""Keywords, and the trees that match them in a model's pieces.

A tree is an automaton over pieces after Aho and Corasick ("Efficient string matching", 1975): its
states are prefixes of phrases, and a piece that does not continue a prefix leads to the longest
other prefix that ends with that piece.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from parakeet_api.errors import InvalidRequestError, echo

MAX_KEYWORDS = 500
"""Maximum number of phrases in a list."""
MAX_KEYWORD_CHARS = 80
"""Maximum length of a phrase in characters, without its weight."""
_MIN_WEIGHT, _MAX_WEIGHT = 0.1, 10.0
_WEIGHTED = re.compile(r"(.*?\S)(?:(?<![0-9]):|\s+:)\s*([0-9]{1,3}(?:\.[0-9]{1,4})?)")
"""Not after a digit, unless there is a space: `Psalm 23:4` has no weight."""
_FORBIDDEN = re.compile(r"[<>\x00-\x1f\x7f]")
"""OpenAI rejects the first two and line breaks."""
_FIRST_BONUS = 5.0
"""Bonus of a phrase's first piece (natural logarithm), which decides whether a phrase starts. With
4 or 6, as many names were found in 117 recordings; higher values distort other words."""
_NEXT_BONUS = 6.0
"""Bonus of the second piece; later ones get `log(position)` more, so that a phrase that has started
is completed. `speech.keyword_choice` rejects wrong ones afterwards."""

Spell = Callable[[str], Sequence[int]]
"""Maps a text to the ids of its pieces; empty if it cannot be spelled."""


@dataclass(frozen=True, slots=True)
class Keyword:
    """A phrase that may occur in a recording."""

    phrase: str
    weight: float = 1.0
    """Factor of the bonuses of its pieces."""

    def as_text(self) -> str:
        """Return what `parse_keyword` parses to the same."""
        return self.phrase if self.weight == 1 else f"{self.phrase}:{self.weight:g}"


def parse_keyword(text: str, *, param: str) -> Keyword:
    """Parse `phrase` or `phrase:weight`. Raises `InvalidRequestError` naming phrase and `param`."""
    weighted = _WEIGHTED.fullmatch(text.strip())
    phrase = re.sub(" +", " ", weighted[1] if weighted else text).strip()
    weight = float(weighted[2]) if weighted else 1.0
    if problem := _problem(phrase, weight):
        raise InvalidRequestError(
            f"{param}={echo(text, MAX_KEYWORD_CHARS)} {problem}.", param=param
        )
    return Keyword(phrase, weight)


def parse_keywords(texts: Iterable[str], *, param: str) -> tuple[Keyword, ...]:
    """Parse a list, each phrase once. Raises `InvalidRequestError` as `parse_keyword` does."""
    parsed = (parse_keyword(text, param=param) for text in texts)
    keywords = {keyword.phrase: keyword for keyword in parsed}
    if len(keywords) > MAX_KEYWORDS:
        raise InvalidRequestError(
            f"{param} has {len(keywords)} phrases; at most {MAX_KEYWORDS} are possible. The first"
            f" too many is {echo(list(keywords)[MAX_KEYWORDS], MAX_KEYWORD_CHARS)}.",
            param=param,
        )
    return tuple(keywords.values())


def _problem(phrase: str, weight: float) -> str | None:
    if _FORBIDDEN.search(phrase):
        return "holds one of < >, a line break or another control character"
    if not any(map(str.isalnum, phrase)):
        return "has no letter"
    if len(phrase) > MAX_KEYWORD_CHARS:
        return f"has {len(phrase)} characters; a phrase may have {MAX_KEYWORD_CHARS}"
    if not _MIN_WEIGHT <= weight <= _MAX_WEIGHT:
        return f"has a weight that is not from {_MIN_WEIGHT:g} to {_MAX_WEIGHT:g}"
    return None


def bare(word: str) -> str:
    """Normalise a word: ignore case, punctuation and a genitive's s."""
    word = word.casefold().rstrip(".,;:!?\"')]\u201d\u2019")
    for genitive in ("'s", "\u2019s"):
        word = word.removesuffix(genitive)
    return "".join(character for character in word if character.isalnum())


def spellings(phrase: str) -> list[str]:
    """Return the spellings that a model may use: as given, lower case, title case, upper case."""
    as_name = " ".join(word[:1].upper() + word[1:] for word in phrase.split(" "))
    return list(dict.fromkeys((phrase, phrase.lower(), as_name, phrase.upper())))


@dataclass(frozen=True, slots=True, eq=False)
class KeywordTree:
    """A list of phrases as an automaton over pieces; state 0 is the start.

    A state's arcs continue its prefix or a suffix of it that is a prefix of another phrase. All
    other pieces lead to where they lead from the start.
    """

    phrases: frozenset[tuple[str, ...]]
    """Each as a tuple of normalised words."""
    first_arc: NDArray[np.int64]
    """Shape (states + 1,): the arcs of state s are `first_arc[s]:first_arc[s + 1]`."""
    pieces: NDArray[np.int64]
    """The piece of each arc, shape (arcs,)."""
    targets: NDArray[np.int64]
    """The target state of each arc."""
    bonuses: NDArray[np.float32]
    """The bonus of each arc, natural logarithm."""

    @property
    def states(self) -> int:
        return len(self.first_arc) - 1

    @property
    def most_arcs(self) -> int:
        """Return the maximum number of arcs of a state other than the start."""
        return int(np.diff(self.first_arc)[1:].max(initial=0))


def is_spelled(keyword: Keyword, spell: Spell) -> bool:
    """Tell whether a model's pieces can spell a phrase."""
    return any(spell(text) for text in spellings(keyword.phrase))


def build_tree(keywords: Sequence[Keyword], spell: Spell) -> KeywordTree:
    """Build the automaton of some phrases; ignore those that cannot be spelled."""
    trie = _Trie()
    for keyword in keywords:
        for text in spellings(keyword.phrase):
            trie.add(spell(text), keyword.weight)
    words = (filter(None, map(bare, keyword.phrase.split())) for keyword in keywords)
    return trie.tree(frozenset(map(tuple, words)))


@dataclass(slots=True)
class _Trie:
    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    """The child of each state, by piece."""
    bonuses: list[float] = field(default_factory=lambda: [0.0])
    """Of the piece that leads to each state."""

    def add(self, pieces: Sequence[int], weight: float) -> None:
        state = 0
        for place, piece in enumerate(pieces):
            child = self.children[state].setdefault(piece, len(self.children))
            if child == len(self.children):
                self.children.append({})
                self.bonuses.append(0.0)
            bonus = _NEXT_BONUS + math.log(place + 1) if place else _FIRST_BONUS
            self.bonuses[child] = max(self.bonuses[child], weight * bonus)
            state = child

    def tree(self, phrases: frozenset[tuple[str, ...]]) -> KeywordTree:
        arcs = self._arcs()
        targets = [target for of_state in arcs for target in of_state.values()]
        return KeywordTree(
            phrases=phrases,
            first_arc=np.cumsum([0, *map(len, arcs)], dtype=np.int64),
            pieces=np.array([piece for of_state in arcs for piece in of_state], np.int64),
            targets=np.array(targets, np.int64),
            bonuses=np.array([self.bonuses[target] for target in targets], np.float32),
        )

    def _arcs(self) -> list[dict[int, int]]:
        """Return each state's arcs: its own, and those of its longest suffix that is a state."""
        ends = [0] * len(self.children)
        arcs = [dict(self.children[0]), *({} for _ in self.children[1:])]
        queue = deque(self.children[0].values())
        while queue:
            state = queue.popleft()
            end = ends[state]
            arcs[state] = {**(arcs[end] if end else {}), **self.children[state]}
            for piece, child in self.children[state].items():
                ends[child] = arcs[end].get(piece, self.children[0].get(piece, 0))
                queue.append(child)
        return arcs
