from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import UnsupportedLanguageError
from parakeet_api.languages import (
    _NAMES,
    ENGLISH_NAMES,
    english_name,
    language_code,
    languages_of,
    normalize_language,
)
from parakeet_api.settings import Settings

ENGLISH = frozenset({"en"})
ALL = languages_of("parakeet-tdt-0.6b-v3")


@pytest.mark.parametrize(
    "name",
    ["parakeet-tdt-0.6b-v2", "parakeet-tdt-demo-en", "parakeet-tdt-1.1b", "my-v30", "rev3", ""],
)
def test_models_speak_english(name: str) -> None:
    assert languages_of(name) == ENGLISH


@pytest.mark.parametrize(
    "name",
    [
        "parakeet-tdt-0.6b-v3",
        "Parakeet-TDT-0.6B-V3",
        "parakeet_tdt_0.6b_v3",
        "a-v3-copy",
        "v3.1",
    ],
)
def test_v3_speaks_25_languages(name: str) -> None:
    assert languages_of(name) == set(ENGLISH_NAMES)
    assert len(ENGLISH_NAMES) == 25


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("parakeet-tdt-0.6b-v3-german", {"de"}),
        ("parakeet-tdt_ctc-0.6b-ja", {"ja"}),
        ("parakeet-unified-en-0.6b", {"en"}),
        ("Parakeet-Deutsch-v3", {"de"}),
        ("my-model-to-go", {"en"}),
    ],
)
def test_a_language_in_a_name_is_spoken(name: str, languages: set[str]) -> None:
    assert languages_of(name) == languages


def test_what_a_checkpoint_states_beats_its_name() -> None:
    assert languages_of("parakeet-tdt-0.6b-v3", stated=["de"]) == {"de"}
    assert languages_of("parakeet-tdt-0.6b-v3", ["fr"], ["de"]) == {"fr"}


@pytest.mark.parametrize("name", ["parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v2", ""])
def test_configured_languages_take_precedence_over_the_name(name: str) -> None:
    settings = Settings.from_env({"MODEL_LANGUAGES": "ja, German"})

    assert languages_of(name, settings.model_languages) == {"ja", "de"}
    assert languages_of(name, Settings.from_env({}).model_languages) == languages_of(name)


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
        "en_US.UTF-8",
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


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("cs", "ces cze Čeština"),
        ("de", "deu ger GER Deutsch DEUTSCH de-AT"),
        ("el", "ell gre Ελληνικά ΕΛΛΗΝΙΚΆ"),
        ("es", "spa Español espan\u0303ol Castilian es-419"),
        ("et", "est ekk"),
        ("fr", "fra fre français franc\u0327ais fr_CA"),
        ("lv", "lav lvs"),
        ("nl", "nld dut Flemish nl-BE"),
        ("pt", "por português pt-BR pt_PT"),
        ("ro", "ron rum Moldavian ro-MD"),
        ("ru", "rus Русский"),
        ("sk", "slk slo slovenčina"),
        ("sl", "slv Slovene slovenščina"),
        ("uk", "ukr українська uk-UA"),
    ],
)
def test_a_language_has_many_names(code: str, names: str) -> None:
    assert {normalize_language(name, supported=ALL) for name in names.split()} == {code}


def test_no_name_means_two_languages() -> None:
    names = [name for names in _NAMES.values() for name in names]

    assert len(names) == len(set(names))
    assert [language_code(name) for name in names] == [
        code for code, names in _NAMES.items() for _ in names
    ]


@pytest.mark.parametrize("text", ["", " ", "auto", "AUTO", " Auto "])
@pytest.mark.parametrize("supported", [ENGLISH, ALL])
def test_auto_and_nothing_say_no_language(text: str, supported: frozenset[str]) -> None:
    assert normalize_language(text, supported=supported) is None


@pytest.mark.parametrize("text", ["ja", "ja-JP", "JA"])
def test_a_configured_language_beyond_the_25_is_known_by_its_code(text: str) -> None:
    assert normalize_language(text, supported=languages_of("", ["ja"])) == "ja"


@pytest.mark.parametrize("text", ["xx", "klingon", "e", "", "auto", "12", "en/de"])
def test_other_texts_have_no_code(text: str) -> None:
    assert language_code(text) is None


def test_a_language_without_an_english_name_is_shown_by_its_code() -> None:
    assert english_name("xx") == "xx"


@pytest.mark.parametrize(
    "text", ["de", "German", "de-DE", "zh", "zh-Hans", "jpn", "xx", "-en", "english language"]
)
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

    assert code is None or code in ALL


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        # ISO 639-2, of libraries and for short, and 639-3.
        *(("ger", "de"), ("deu", "de"), ("fre", "fr"), ("fra", "fr"), ("eng", "en")),
        *(("dut", "nl"), ("nld", "nl"), ("rum", "ro"), ("slo", "sk"), ("cze", "cs")),
        *(("gsw", "de"), ("Swiss German", "de"), ("ekk", "et"), ("lvs", "lv"), ("pob", "pt")),
        *(("gre", "el"), ("ell", "el"), ("ger-AT", "de"), ("DEU", "de")),
    ],
)
def test_codes_of_three_letters_are_those_of_players(sent: str, code: str) -> None:
    assert normalize_language(sent, supported=ALL) == code


@pytest.mark.parametrize("sent", ["und", "mul", "undetermined", "auto", "unknown", ""])
def test_an_unknown_language_means_not_specified(sent: str) -> None:
    assert normalize_language(sent, supported=ALL) is None


@pytest.mark.parametrize("sent", ["jpn", "chi", "xxx", "zz"])
def test_codes_of_languages_that_the_model_does_not_speak_are_refused(sent: str) -> None:
    with pytest.raises(UnsupportedLanguageError):
        normalize_language(sent, supported=ALL)
