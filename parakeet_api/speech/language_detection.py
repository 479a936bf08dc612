"""Which of a model's languages a transcript is written in, by py3langid.

Chosen by measurement, on tests/language_samples.py: 100 sentences and 125 utterances of one to
three words in the 25 languages, each detector restricted to these.

| detector         | sentences | utterances | first use | memory | Maltese |
|------------------|-----------|------------|-----------|--------|---------|
| py3langid 0.4.0  | 100 %     | 77 %       | 0.7 s     | 80 MB  | yes     |
| lingua 2.1.1     | 96 %      | 78 %       | 8.9 s     | 570 MB | no      |
| pycld2 0.42      | 97 %      | 74 %       | 0.02 s    | 6 MB   | yes     |
| eld 1.0.6        | 95 %      | 77 %       | 0.2 s     | 53 MB  | no      |
| fastText lid.176 | 93 %      | 58 %       | 0.2 s     | 22 MB  | yes     |

pycld2 gives no probabilities: it calls the Estonian "Ma ei tea." English and nothing tells that it
is unsure. py3langid has its model in the package, needs numpy alone, and answers the same each
time.
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
"""Below it there is no answer.

Measured as above: all paragraphs of four sentences, 96 of the 100 sentences and 55 of the 125
utterances are answered, and none is wrong, in capitals and in small letters neither; at 0.6 some
are ("ja neviem" is Slovak). Cut into stretches of two, three and four words, the sentences are
answered in 48, 74 and 86 % of cases, and 0.6, 0.2 and 0.2 % of the answers are wrong. Above one
half, so that a text that says nothing decides nothing, even between two.
"""

_PART = 2000
"""Characters taken from the beginning, the middle and the end of a longer text. 6000 take 1 ms; the
600,000 of twelve hours would stop every other thread for 63 ms, and a paragraph is enough to tell.
"""

_loading = threading.Lock()
"""Loading takes 0.7 s and 80 MB: once is enough, however many requests come first."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A language that a text may be written in."""

    code: str
    """ISO 639-1."""
    confidence: float
    """Its probability, 0 to 1: among the candidates if the detector knows them all, else among all
    that it knows."""


def spoken_language(words: Sequence[Word], *, candidates: frozenset[str]) -> str | None:
    """Tell which of `candidates` (ISO 639-1) is spoken; `None` where it is unsure.

    What the model itself tagged most words as, or, where it tags none, what they are written in.
    """
    tagged = tagged_languages(words, candidates=candidates)
    if tagged and len(candidates) > 1:
        return tagged[0].code
    return detect_language(join_words(list(words)), candidates=candidates)


def tagged_languages(words: Sequence[Word], *, candidates: frozenset[str]) -> list[Detection]:
    """List what the model itself tagged, each with its share of the words, likeliest first."""
    counts = Counter(word.language for word in words if word.language in candidates)
    total = counts.total()
    return [Detection(code, count / total) for code, count in counts.most_common() if code]


def detect_language(text: str, *, candidates: frozenset[str]) -> str | None:
    """Tell which of `candidates` (ISO 639-1) a text is written in; `None` where it is unsure.

    A single candidate is the answer, whatever the text.
    """
    ranked = rank_languages(text, candidates=candidates)
    return ranked[0].code if ranked and ranked[0].confidence >= CONFIDENCE_FLOOR else None


def rank_languages(text: str, *, candidates: frozenset[str]) -> list[Detection]:
    """List `candidates`, likeliest first; empty for a text without a letter.

    Those that the detector does not know are left out. Safe to call from many threads; the first
    call with several candidates loads the detector.
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
    """Give the detector that chooses among `candidates`.

    Among all its languages if it does not know one of them: else it would take that one's texts
    for another candidate's.
    """
    with _loading:
        return _restricted(candidates) if candidates <= _known() else _everything()


@cache
def _everything() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _known() -> frozenset[str]:
    return frozenset(_everything().labels)


@lru_cache(maxsize=4)
def _restricted(candidates: frozenset[str]) -> LanguageIdentifier:
    # The copy shares the large tables; only the columns of `candidates` are its own, 5 MB for 25.
    restricted = copy.copy(_everything())
    restricted.set_languages(candidates)
    return restricted
