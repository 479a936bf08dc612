"""Detect the language of a transcript among those of a model, with py3langid.

Detectors compared on tests/language_samples.py: 100 sentences and 125 utterances of one to
three words in the 25 languages, each detector restricted to these.

| detector         | sentences | utterances | first use | memory | Maltese |
|------------------|-----------|------------|-----------|--------|---------|
| py3langid 0.4.0  | 100 %     | 77 %       | 0.7 s     | 80 MB  | yes     |
| lingua 2.1.1     | 96 %      | 78 %       | 8.9 s     | 570 MB | no      |
| pycld2 0.42      | 97 %      | 74 %       | 0.02 s    | 6 MB   | yes     |
| eld 1.0.6        | 95 %      | 77 %       | 0.2 s     | 53 MB  | no      |
| fastText lid.176 | 93 %      | 58 %       | 0.2 s     | 22 MB  | yes     |

pycld2 gives no probabilities: it classifies the Estonian "Ma ei tea." as English without a sign of
doubt. py3langid includes its model, depends on numpy only, and is deterministic.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from parakeet_api.transcript import Word, join_words

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier  # type: ignore[import-untyped]

CONFIDENCE_FLOOR = 0.7
"""Below this probability no language is returned.

Measured as above: a language is returned for all paragraphs of four sentences, 96 of the 100
sentences and 55 of the 125 utterances, and none is wrong, in upper or lower case; at 0.6 some are
("ja neviem" is Slovak). For the sentences cut into pieces of two, three and four words it is
returned in 48, 74 and 86 % of cases, of which 0.6, 0.2 and 0.2 % are wrong. More than one half, so
that a text without evidence yields no language, even with two candidates.
"""

_PART = 2000
"""Characters taken from the beginning, the middle and the end of a longer text. 6000 take 1 ms; the
600,000 of twelve hours would block all other threads for 63 ms, and a paragraph is enough.
"""

_loading = threading.Lock()
"""Loading takes 0.7 s and 80 MB: only one thread at a time may do it."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A language that a text may be written in."""

    code: str
    """ISO 639-1."""
    confidence: float
    """Its probability, 0 to 1, among the candidates if the detector supports all of them, else
    among all languages of the detector."""


def spoken_language(words: Sequence[Word], *, candidates: frozenset[str]) -> str | None:
    """Return which of `candidates` (ISO 639-1) is spoken; `None` = not certain.

    That is the language with which the model tagged most words, or, of a model without tags, the
    language in which they are written.
    """
    tagged = tagged_languages(words, candidates=candidates)
    if tagged and len(candidates) > 1:
        return tagged[0].code
    return detect_language(join_words(list(words)), candidates=candidates)


def tagged_languages(words: Sequence[Word], *, candidates: frozenset[str]) -> list[Detection]:
    """List the languages that the model tagged, most frequent first, with their share of words."""
    counts = Counter(word.language for word in words if word.language in candidates)
    total = counts.total()
    return [Detection(code, count / total) for code, count in counts.most_common() if code]


def detect_language(text: str, *, candidates: frozenset[str]) -> str | None:
    """Return which of `candidates` (ISO 639-1) a text is written in; `None` = not certain.

    A single candidate is returned whatever the text.
    """
    ranked = rank_languages(text, candidates=candidates)
    return ranked[0].code if ranked and ranked[0].confidence >= CONFIDENCE_FLOOR else None


def rank_languages(text: str, *, candidates: frozenset[str]) -> list[Detection]:
    """List `candidates`, most probable first; empty for a text without a letter.

    Languages that the detector does not support are left out. Thread-safe; the first call with
    several candidates loads the detector.
    """
    if len(candidates) <= 1:
        return [Detection(code, 1.0) for code in candidates]
    sample = _sample(text)
    if not any(map(str.isalpha, sample)):
        return []
    return [
        Detection(code, probability)
        for code, probability in _restricted_to(candidates).rank(sample)
        if code in candidates
    ]


def _sample(text: str) -> str:
    """Take a long text's beginning, middle and end: a talk may open in another language."""
    if len(text) <= 3 * _PART:
        return text
    middle = (len(text) - _PART) // 2
    return " ".join((text[:_PART], text[middle : middle + _PART], text[-_PART:]))


def _restricted_to(candidates: frozenset[str]) -> LanguageIdentifier:
    """Return the detector restricted to `candidates`.

    Unrestricted if it does not support one of them: otherwise it would classify texts in that
    language as another candidate.
    """
    with _loading:
        return _restricted(candidates) if candidates <= _supported() else _unrestricted()


@cache
def _unrestricted() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _supported() -> frozenset[str]:
    return frozenset(_unrestricted().labels)


@lru_cache(maxsize=4)
def _restricted(candidates: frozenset[str]) -> LanguageIdentifier:
    # The copy shares the large tables; it owns only the columns of `candidates`, 5 MB for 25.
    restricted = copy.copy(_unrestricted())
    restricted.set_languages(candidates)
    return restricted
