"""Words -> segments: one for each sentence, and a new one after each long pause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

import sentencex  # type: ignore[import-untyped]

from parakeet_api.transcript import Segment, Word, join_words

LONG_PAUSE_S = 2.0
"""A silence this long between two words ends a segment, even inside a sentence.

A cue should not stand through a silence, and text without punctuation still needs segments.
Two seconds is longer than a speaker's breath or search for a word.
"""


def split_into_segments(words: Iterable[Word], *, language: str = "en") -> list[Segment]:
    """Group words into sentences and cut these at long pauses; every word once, in order.

    `language` is an ISO 639-1 code; one that sentencex does not know gets its default rules.
    """
    return [
        Segment(sentence)
        for stretch in _split_at_pauses(words)
        for sentence in _split_at_sentence_ends(stretch, language)
    ]


def _split_at_pauses(words: Iterable[Word]) -> Iterator[tuple[Word, ...]]:
    stretch: list[Word] = []
    for word in words:
        if stretch and word.start - stretch[-1].end >= LONG_PAUSE_S:
            yield tuple(stretch)
            stretch = []
        stretch.append(word)
    if stretch:
        yield tuple(stretch)


def _split_at_sentence_ends(words: tuple[Word, ...], language: str) -> Iterator[tuple[Word, ...]]:
    ends = _sentence_ends(join_words(words), language)
    first = 0
    offset = 0
    for count, word in enumerate(words, start=1):
        offset += len(word.text)
        # The library ends a sentence before or after the space. An end inside a word ("3.Ja") is
        # passed over: only whole words move, whatever the library answers.
        if offset in ends or offset + 1 in ends:
            yield words[first:count]
            first = count
        offset += 1
    if first < len(words):
        yield words[first:]


def _sentence_ends(text: str, language: str) -> set[int]:
    """Find the offsets one past each sentence, in characters."""
    # sentencex 1.0.32 panics on a space of several bytes after an initial, as in "A\u00a0.".
    spaced = re.sub(r"\s", " ", text)
    return set(accumulate(map(len, sentencex.segment(language, spaced))))
