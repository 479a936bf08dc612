"""Group words into segments: one per sentence, and a new one after each long pause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

import sentencex  # type: ignore[import-untyped]

from parakeet_api.transcript import Segment, Word, join_words

LONG_PAUSE_S = 2.0
"""A silence this long between two words ends a segment, even inside a sentence.

A subtitle should not stay on screen through a silence, and text without punctuation needs segments
too. Breaths and hesitations are shorter.
"""


def split_into_segments(words: Iterable[Word], *, language: str = "en") -> list[Segment]:
    """Group words into sentences and split these at long pauses; each word once, in order.

    `language` is an ISO 639-1 code; for one that sentencex does not know, its default rules apply.
    """
    return [
        Segment(sentence)
        for group in _split_at_pauses(words)
        for sentence in _split_at_sentence_ends(group, language)
    ]


def _split_at_pauses(words: Iterable[Word]) -> Iterator[tuple[Word, ...]]:
    group: list[Word] = []
    for word in words:
        if group and word.start - group[-1].end >= LONG_PAUSE_S:
            yield tuple(group)
            group = []
        group.append(word)
    if group:
        yield tuple(group)


def _split_at_sentence_ends(words: tuple[Word, ...], language: str) -> Iterator[tuple[Word, ...]]:
    ends = _sentence_ends(join_words(words), language)
    start = 0
    offset = 0
    for count, word in enumerate(words, start=1):
        offset += len(word.text)
        # sentencex ends a sentence before or after the space. An end inside a word ("3.Ja") is
        # ignored, so that no word is split.
        if offset in ends or offset + 1 in ends:
            yield words[start:count]
            start = count
        offset += 1
    if start < len(words):
        yield words[start:]


def _sentence_ends(text: str, language: str) -> set[int]:
    """Return the character offsets of sentence ends."""
    # sentencex 1.0.32 panics on a space of several bytes after an initial, as in "A\u00a0.".
    spaced = re.sub(r"\s", " ", text)
    return set(accumulate(map(len, sentencex.segment(language, spaced))))
