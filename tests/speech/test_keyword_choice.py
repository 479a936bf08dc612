"""Which words of the boosted transcript are used."""

from __future__ import annotations

from parakeet_api.speech.keyword_choice import choose
from parakeet_api.transcript import Token, Word

RUSKS = frozenset({("rusks",)})


def said(text: str, *, logprob: float = -0.1, at: float = 0.0) -> list[Word]:
    """Return words of half a second each, with one token."""
    return [
        Word(word, at + n / 2, at + n / 2 + 0.4, (Token(n, f" {word}", logprob),))
        for n, word in enumerate(text.split())
    ]


def texts(words: list[Word]) -> str:
    return " ".join(f"{word.text}*" if word.from_keyword else word.text for word in words)


def test_a_keyword_replaces_similar_words() -> None:
    chosen = choose(said("Italian rusts, please."), said("Italian rusks, please."), RUSKS)

    assert texts(chosen) == "Italian rusks,* please."


def test_other_words_changed_by_a_boost_are_not_used() -> None:
    chosen = choose(said("a b rusts c d"), said("a x rusks c y"), RUSKS)

    assert texts(chosen) == "a b rusks* c d"
    assert texts(choose(said("a b c"), said("a x c"), RUSKS)) == "a b c"


def test_a_keyword_with_a_low_probability_is_not_used() -> None:
    chosen = choose(said("rusts"), said("rusks", logprob=-30.0), RUSKS)

    assert texts(chosen) == "rusts"


def test_an_incomplete_keyword_is_not_used() -> None:
    phrases = frozenset({("new", "york")})

    assert texts(choose(said("a knew yolk"), said("a new yolk"), phrases)) == "a knew yolk"
    assert texts(choose(said("a knew yolk"), said("a new york"), phrases)) == "a new* york*"


def test_a_keyword_recognised_without_boosts_is_not_marked() -> None:
    words = said("Italian rusks.")

    assert choose(words, words, RUSKS) == words


def test_a_keyword_may_have_other_words_than_what_it_replaces() -> None:
    plain = said("the force meat is cold")
    boosted = [*said("the forcemeat"), *said("is cold", at=1.5)]

    assert texts(choose(plain, boosted, frozenset({("forcemeat",)}))) == "the forcemeat* is cold"
