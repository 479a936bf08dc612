from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import UnsupportedLanguageError
from parakeet_api.languages import (
    ENGLISH_NAMES,
    english_name,
    languages_of,
    normalize_language,
)

ENGLISH = frozenset({"en"})
ALL = languages_of("parakeet-tdt-0.6b-v3")


@pytest.mark.parametrize(
    "name",
    ["parakeet-tdt-0.6b-v2", "parakeet-tdt-demo-en", "parakeet-tdt-1.1b", "my-model", ""],
)
def test_models_speak_english(name: str) -> None:
    assert languages_of(name) == ENGLISH


@pytest.mark.parametrize("name", ["parakeet-tdt-0.6b-v3", "Parakeet-TDT-0.6B-V3", "a-v3-copy"])
def test_v3_speaks_25_languages(name: str) -> None:
    assert languages_of(name) == set(ENGLISH_NAMES)
    assert len(ENGLISH_NAMES) == 25


@pytest.mark.parametrize(
    "text",
    [
        "en",
        "EN",
        " en ",
        "en-US",
        "en_GB",
        "EN_us",
        "English",
        "ENGLISH",
        "eng",
        "eng-GB",
        "en-Latn-US",
    ],
)
def test_english_has_many_spellings(text: str) -> None:
    assert normalize_language(text, supported=ENGLISH) == "en"


@pytest.mark.parametrize(("code", "name"), ENGLISH_NAMES.items())
def test_codes_and_english_names_mean_the_same(code: str, name: str) -> None:
    assert normalize_language(code, supported=ALL) == code
    assert normalize_language(name.title(), supported=ALL) == code
    assert normalize_language(f"{code}-{code.upper()}", supported=ALL) == code
    assert english_name(code) == name


def test_a_language_without_a_name_here_is_called_by_its_code() -> None:
    assert english_name("xx") == "xx"


@pytest.mark.parametrize("text", ["de", "German", "de-DE", "zh", "xx", "-en", "english language"])
def test_a_language_that_the_model_does_not_speak_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedLanguageError) as caught:
        normalize_language(text, supported=ENGLISH)

    assert caught.value.param == "language"
    assert caught.value.status == 400
    assert repr(text) in caught.value.message
    assert "speaks: en." in caught.value.message


def test_a_refusal_lists_what_is_spoken_and_repeats_little() -> None:
    with pytest.raises(UnsupportedLanguageError) as caught:
        normalize_language("x" * 10_000, supported=ALL)

    assert "bg, cs, da" in caught.value.message
    assert len(caught.value.message) < 400


@given(st.text())
def test_any_text_is_a_spoken_language_or_refused(text: str) -> None:
    try:
        code = normalize_language(text, supported=ALL)
    except UnsupportedLanguageError:
        code = "en"

    assert code in ALL
