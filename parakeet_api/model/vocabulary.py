"""A model's word pieces and special tokens: language tags and ends of utterances."""

from __future__ import annotations

import re
from collections.abc import Sequence

from parakeet_api.languages import language_code

WORD_START = "\u2581"
"""SentencePiece's mark of a space before a piece."""
_LANGUAGE_TAG = re.compile(r"<([A-Za-z]{2,3})([-_][A-Za-z0-9]{2,8})*>")
_MARK = re.compile(r"<EO[UB]>|<[|]\w+[|]>|</?s>|<pad>", re.IGNORECASE)
"""Ends of an utterance or a backchannel (parakeet_realtime_eou), and tokenizers' special tokens."""


class Vocabulary:
    """Properties of a model's tokens, by id."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """Build the tables from SentencePiece's spellings."""
        # One string per piece, shared by all its tokens: ten hours have 200,000.
        self.texts: list[str] = [piece.replace(WORD_START, " ") for piece in pieces]
        self.begins_word = [text.startswith(" ") for text in self.texts]
        self.is_spoken = [any(map(str.isalnum, text)) for text in self.texts]
        self.languages: dict[int, str] = {
            number: code
            for number, text in enumerate(self.texts)
            if (code := tagged_language(text)) is not None
        }
        """ISO 639-1 codes of the tokens that tag a language."""
        self.marks = frozenset(self.languages) | {
            number for number, text in enumerate(self.texts) if _MARK.fullmatch(text.strip())
        }
        """Tokens that are never part of a transcript."""


def tagged_language(piece: str) -> str | None:
    """Return the ISO 639-1 code of a tag such as `<de-DE>`; `None` = not a tag."""
    tag = _LANGUAGE_TAG.fullmatch(piece.strip(WORD_START + " "))
    return language_code(tag[1]) if tag else None
