"""Hold a multilingual model to the script of the language that a request names.

parakeet-tdt-0.6b-v3 cannot be told a language: it may write Russian in Latin letters, or Ukrainian
as Russian. Tokens with letters that the named language is not written in get a penalty.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parakeet_api.languages import KNOWN_LANGUAGES
from parakeet_api.model.fusion import BatchTables

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

_LATIN = "LATIN"
_SCRIPTS: dict[str, frozenset[str]] = {
    "ar": frozenset({"ARABIC"}),
    "bg": frozenset({"CYRILLIC"}),
    "el": frozenset({"GREEK"}),
    "fa": frozenset({"ARABIC"}),
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    "ka": frozenset({"GEORGIAN"}),
    "ko": frozenset({"HANGUL", "CJK"}),
    "ru": frozenset({"CYRILLIC"}),
    "th": frozenset({"THAI"}),
    "uk": frozenset({"CYRILLIC"}),
    "zh": frozenset({"CJK"}),
}
"""ISO 639-1 code -> first words of the Unicode names of its letters; other known languages are
written in Latin letters."""
_KNOWN_SCRIPTS = frozenset({_LATIN, "CYRILLIC", *(s for each in _SCRIPTS.values() for s in each)})
_FOREIGN_LETTERS = {"bg": "ыэёіїєґ", "ru": "іїєґ", "uk": "ыэёъ"}
"""Letters of the same script that a language does not use."""
_PENALTY = 20.0
"""Subtracted from a foreign token's logit: such a token is emitted only if all others are worse."""
_LATIN_PENALTY = 5.0
"""For Latin letters in other scripts, where brands and abbreviations are written so: a factor of
150, so that a model which is sure of such a word keeps it."""


class ScriptRules:
    """The penalties of a vocabulary's tokens, by language."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Examine the tokens' texts, in the order of their ids."""
        self._texts = texts
        self._penalties: dict[str, NDArray[np.float32]] = {}

    @cached_property
    def _is_mixed(self) -> bool:
        """Whether the vocabulary has more than one script; if not, no language changes anything."""
        return len({script for text in self._texts for script in _scripts(text)}) > 1

    def penalties(self, language: str | None) -> NDArray[np.float32] | None:
        """Return what is subtracted from each token, (V,); `None` = nothing from any token."""
        if language not in KNOWN_LANGUAGES or not self._is_mixed:
            return None
        known = self._penalties.get(language)
        if known is None:
            known = np.array([_penalty(text, language) for text in self._texts], np.float32)
            self._penalties[language] = known
        return known


class ScriptPenalties(BatchTables):
    """The penalties of a batch's rows, used as a fusion model by NeMo: a row's state is constant.

    Implements `FusionModel`.
    """

    def __init__(
        self, rows: Sequence[NDArray[np.float32] | None], *, vocabulary: int, device: str
    ) -> None:
        """Take each row's penalties, (V,); `None` = a row without a language."""
        import torch

        self.vocab_size = vocabulary
        distinct = list({id(row): row for row in rows if row is not None}.values())
        numbers = {id(row): number for number, row in enumerate(distinct, 1)}
        table = np.stack([np.zeros(vocabulary, np.float32), *distinct])
        self._scores = -torch.from_numpy(table).to(device)
        self._rows = torch.tensor([numbers.get(id(row), 0) for row in rows], device=device)

    def advance(self, states: Tensor, eos_id: int | None = None) -> tuple[Tensor, Tensor]:
        """Return each token's score and next state from states (N,); both have shape (N, V)."""
        del eos_id
        # Views and a shared row of states: NeMo reads both and writes to neither.
        return self._scores[states], states[:, None].expand(-1, self.vocab_size)


def _scripts(text: str) -> set[str]:
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    return {name for name in names if name in _KNOWN_SCRIPTS}


def _penalty(text: str, language: str) -> float:
    foreign = _scripts(text) - _SCRIPTS.get(language, frozenset({_LATIN}))
    if foreign - {_LATIN} or set(text.casefold()) & set(_FOREIGN_LETTERS.get(language, "")):
        return _PENALTY
    return _LATIN_PENALTY if foreign else 0.0
