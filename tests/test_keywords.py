"""Phrases of a request, and the automaton over pieces that matches them."""

from __future__ import annotations

import pytest

from parakeet_api.errors import InvalidRequestError
from parakeet_api.keywords import (
    MAX_KEYWORDS,
    Keyword,
    KeywordTree,
    bare,
    build_tree,
    is_spelled,
    parse_keyword,
    parse_keywords,
    spellings,
)


def letters(text: str) -> list[int]:
    """Spell ASCII text with one piece per letter."""
    return [ord(letter) for letter in text] if text.isascii() else []


def tree(*phrases: str) -> KeywordTree:
    return build_tree([Keyword(phrase) for phrase in phrases], letters)


def walk(automaton: KeywordTree, text: str) -> list[float]:
    """Return the bonus of each piece of a text."""
    state, gains = 0, []
    for piece in letters(text):
        arcs = slice(*automaton.first_arc[[state, state + 1]])
        found = dict(zip(automaton.pieces[arcs], range(arcs.start, arcs.stop), strict=True))
        start = slice(*automaton.first_arc[:2])
        found = dict(zip(automaton.pieces[start], range(start.stop), strict=True)) | found
        arc = found.get(piece)
        state = 0 if arc is None else int(automaton.targets[arc])
        gains.append(0.0 if arc is None else float(automaton.bonuses[arc]))
    return gains


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("Nabucodonosor", Keyword("Nabucodonosor")),
        ("  New   York ", Keyword("New York")),
        ("Kaliko:2.5", Keyword("Kaliko", 2.5)),
        ("ratio 3 :2", Keyword("ratio 3", 2.0)),
        ("Psalm 23:4", Keyword("Psalm 23:4")),
        ("10:30", Keyword("10:30")),
        ("Bob & Sons : 1", Keyword("Bob & Sons")),
        ("a:b", Keyword("a:b")),
    ],
)
def test_a_phrase_may_have_a_weight(text: str, keyword: Keyword) -> None:
    assert parse_keyword(text, param="keywords[]") == keyword


@pytest.mark.parametrize(
    "text", ["a<b", "two\nlines", "...", "", ":", "x" * 81, "Kaliko:0", "Kaliko:11", "tab\there"]
)
def test_an_invalid_phrase_is_rejected_by_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_keyword(text, param="hotwords[]")

    assert caught.value.param == "hotwords[]"
    assert repr(text[:80])[:-1] in caught.value.message


def test_each_phrase_counts_once_and_the_first_too_many_is_named() -> None:
    phrases = [f"name {number}" for number in range(MAX_KEYWORDS)]

    assert len(parse_keywords([*phrases, *phrases], param="keywords[]")) == MAX_KEYWORDS
    with pytest.raises(InvalidRequestError, match="'one more'"):
        parse_keywords([*phrases, "one more"], param="keywords[]")


def test_words_are_compared_without_case_punctuation_and_genitive() -> None:
    assert {
        bare(word) for word in ("Kaliko", "kaliko,", "\u201cKALIKO'S\u201d", "Kaliko\u2019s.")
    } == {"kaliko"}
    assert bare("O'Neill") == "oneill"


def test_a_phrase_has_the_spellings_that_a_model_may_use() -> None:
    assert spellings("del Mar") == ["del Mar", "del mar", "Del Mar", "DEL MAR"]
    assert is_spelled(Keyword("del Mar"), letters)
    assert not is_spelled(Keyword("\u0394\u03b5\u03bb"), letters)


def test_only_pieces_of_a_phrase_get_a_bonus() -> None:
    gains = walk(tree("abc"), "xabcx")

    assert gains[0] == gains[4] == 0
    assert 0 < gains[1] < gains[2] < gains[3]


def test_the_end_of_one_phrase_may_begin_another() -> None:
    gains = walk(tree("abcd", "bce"), "abce")

    assert all(gain > 0 for gain in gains)


def test_an_incomplete_phrase_can_start_again() -> None:
    assert walk(tree("abc"), "aabc")[1:] == walk(tree("abc"), "abc")


def test_a_weight_multiplies_the_bonus_of_a_phrase() -> None:
    heavy = build_tree([Keyword("abc", 2.0)], letters)

    assert walk(heavy, "abc") == pytest.approx([2 * gain for gain in walk(tree("abc"), "abc")])
