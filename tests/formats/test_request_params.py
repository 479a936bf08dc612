from __future__ import annotations

import json
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import InvalidRequestError, UnsupportedLanguageError
from parakeet_api.formats.request_params import TranscriptionParams, parse_params
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.keywords import Keyword

SEGMENT = frozenset({"segment"})
WORD = frozenset({"word"})
BOTH = SEGMENT | WORD

FIELDS = [
    "model",
    "language",
    "prompt",
    "response_format",
    "temperature",
    "timestamp_granularities",
    "timestamp_granularities[]",
    "languages[]",
    "keywords",
    "include[]",
    "stream",
    "chunking_strategy",
    "chunking_strategy[type]",
]


class Form(dict[str, list[str]]):
    """The text fields of a multipart form."""

    def getlist(self, key: str) -> Sequence[str]:
        return self.get(key, [])


def parse(languages: Sequence[str] = ("en",), /, **fields: str | list[str]) -> TranscriptionParams:
    form = Form({name: [v] if isinstance(v, str) else v for name, v in fields.items()})
    return parse_params(form, languages=frozenset(languages))


def refusal(**fields: str | list[str]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    return caught.value


def granularities(**fields: str | list[str]) -> frozenset[str]:
    return frozenset(parse(**fields).granularities)


def test_an_empty_form_means_openais_defaults() -> None:
    assert parse() == TranscriptionParams(
        response_format="json",
        languages=frozenset({"en"}),
        granularities=frozenset({"segment"}),
        include=frozenset(),
        stream=False,
        task="transcribe",
    )


def test_empty_fields_are_not_set() -> None:
    assert parse(**dict.fromkeys(FIELDS, "")) == parse()
    assert parse(**dict.fromkeys(FIELDS, "  ")) == parse()


def test_fields_of_other_servers_are_ignored() -> None:
    form = {
        "model": "whisper-1",
        "prompt": "Names: Ann, Bob.",
        "vad_filter": "yes",
        "beam_size": "5",
    }

    assert parse(**form) == parse()


@pytest.mark.parametrize("name", get_args(ResponseFormat))
def test_response_formats_are_taken_in_any_case(name: str) -> None:
    assert parse(response_format=name).response_format == name
    assert parse(response_format=f" {name.upper()} ").response_format == name


@pytest.mark.parametrize("text", ["xml", "json,srt", "srt\x00", "verbose json", "diarized json"])
def test_an_unknown_format_is_refused_with_the_known_ones(text: str) -> None:
    error = refusal(response_format=text)

    assert error.param == "response_format"
    assert repr(text) in error.message
    assert all(name in error.message for name in get_args(ResponseFormat))


def test_the_last_of_repeated_fields_counts() -> None:
    assert parse(response_format=["xml", "srt"]).response_format == "srt"


def test_languages_are_normalised() -> None:
    assert parse(language="en-US").languages == {"en"}
    assert parse(("en", "de"), language="German").languages == {"de"}


@pytest.mark.parametrize("text", ["", " ", "auto"])
def test_without_a_language_it_may_be_any_that_the_model_speaks(text: str) -> None:
    assert parse(("en", "de", "fr"), language=text).languages == {"en", "de", "fr"}


@pytest.mark.parametrize(
    "fields",
    [
        {"languages[]": ["de", "fr-CA"]},
        {"languages": "German,fr"},
        {"languages": '["de", "french"]'},
        {"languages[]": ["de", "fr", "zh"]},
    ],
)
def test_hints_narrow_the_languages(fields: dict[str, str | list[str]]) -> None:
    assert parse(("en", "de", "fr"), **fields).languages == {"de", "fr"}


def test_hints_without_a_supported_language_are_rejected() -> None:
    error = refusal(**{"languages[]": ["de", "zh"]})

    assert isinstance(error, UnsupportedLanguageError)
    assert error.param == "languages[]"


@pytest.mark.parametrize(
    "fields",
    [
        {"include[]": ["logprobs", "progress"]},
        {"include": "logprobs,progress"},
        {"include": '["logprobs", "progress"]'},
    ],
)
def test_extras_are_taken_as_clients_send_them(fields: dict[str, str | list[str]]) -> None:
    assert parse(**fields).include == {"logprobs", "progress"}


def test_unknown_extras_are_refused() -> None:
    assert refusal(**{"include[]": "secrets"}).param == "include[]"


@pytest.mark.parametrize(
    ("text", "wanted"), [("true", True), ("True", True), ("1", True), ("false", False), ("", False)]
)
def test_stream_is_a_boolean(text: str, wanted: bool) -> None:
    assert parse(stream=text).stream is wanted


def test_another_value_of_stream_is_refused() -> None:
    assert refusal(stream="perhaps").param == "stream"


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": "auto"},
        {"chunking_strategy": '{"type": "server_vad", "threshold": 0.5}'},
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.5"},
        {"known_speaker_names[]": ["agent"]},
    ],
)
def test_parameters_without_effect_change_nothing(
    fields: dict[str, str | list[str]],
) -> None:
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": "manual"},
        {"chunking_strategy": "[]"},
        {"chunking_strategy": '{"type": 5}'},
        {"chunking_strategy": "{" * 50_000},
        {"chunking_strategy[type]": "x"},
        {"chunking_strategy[threshold]": "0.5"},
    ],
)
def test_an_invalid_chunking_strategy_is_rejected(fields: dict[str, str]) -> None:
    assert str(refusal(**fields).param).startswith("chunking_strategy")


@pytest.mark.parametrize(
    "fields",
    [
        {"keywords[]": ["Ann:2", "Bob & Sons"]},
        {"keywords": "Ann:2,Bob & Sons"},
        {"keywords": '["Ann:2.0", "Bob & Sons"]'},
        {"keywords[0]": "Ann:2", "keywords[1]": "Bob & Sons"},
    ],
)
def test_keywords_are_a_list_and_may_carry_a_weight(fields: dict[str, str | list[str]]) -> None:
    assert parse(**fields).keywords == (Keyword("Ann", 2.0), Keyword("Bob & Sons"))


@pytest.mark.parametrize("text", ["a<b", "a>b", "a\nb", "a\rb"])
def test_keywords_that_openai_refuses_are_refused(text: str) -> None:
    assert refusal(**{"keywords[]": text}).param == "keywords[]"


def test_a_language_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(UnsupportedLanguageError) as caught:
        parse(language="de")

    assert caught.value.param == "language"


@pytest.mark.parametrize("text", ["0", "1", "0.0", "0.5", "1e-3", " 0.2 ", "1.0"])
def test_temperatures_from_0_to_1_are_taken_and_change_nothing(text: str) -> None:
    assert parse(temperature=text) == parse()


@pytest.mark.parametrize(
    "text", ["-0.1", "1.1", "2", "nan", "NaN", "inf", "-inf", "1e999", "warm", "0,5", "0x0", "[0]"]
)
def test_other_temperatures_are_refused(text: str) -> None:
    error = refusal(temperature=text)

    assert error.param == "temperature"
    assert error.message == f"temperature={text!r} is not a number from 0 to 1."


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"timestamp_granularities[]": ["word"]}, WORD),
        ({"timestamp_granularities[]": ["segment"]}, SEGMENT),
        ({"timestamp_granularities[]": ["word", "segment"]}, BOTH),
        ({"timestamp_granularities": ["word", "segment"]}, BOTH),
        ({"timestamp_granularities": "word,segment"}, BOTH),
        ({"timestamp_granularities": " Word , SEGMENT ,"}, BOTH),
        ({"timestamp_granularities": '["word"]'}, WORD),
        ({"timestamp_granularities[]": '["word", "segment"]'}, BOTH),
        ({"timestamp_granularities[]": "word", "timestamp_granularities": "segment"}, BOTH),
        ({"timestamp_granularities": "[]"}, SEGMENT),
        ({"timestamp_granularities": ["", ","]}, SEGMENT),
    ],
)
def test_granularities_are_taken_as_clients_send_them(
    fields: dict[str, str | list[str]], wanted: frozenset[str]
) -> None:
    assert granularities(**fields) == wanted


@pytest.mark.parametrize("name", get_args(ResponseFormat))
def test_granularities_go_with_every_format(name: str) -> None:
    # Subtitle Edit sends them with json.
    params = parse(response_format=name, **{"timestamp_granularities[]": "word"})

    assert params.granularities == WORD


@pytest.mark.parametrize(
    "text",
    ["letter", "word segment", "[word]", '["word", 5]', '["word", null]', "[[]]", "[" * 50_000],
)
def test_unknown_granularities_are_refused(text: str) -> None:
    error = refusal(**{"timestamp_granularities[]": text})

    assert error.param == "timestamp_granularities[]"
    assert "is not one of: word, segment." in error.message


@pytest.mark.parametrize("field", ["response_format", "temperature", "timestamp_granularities[]"])
def test_an_error_message_does_not_quote_a_long_value(field: str) -> None:
    error = refusal(**{field: "x" * 100_000})

    assert len(error.message) < 200
    assert error.status == 400


texts = st.text() | st.sampled_from(
    ["nan", "word", "[1", '[{"a": 1}]', "[1e999]", "\ud800", "json"]
)


@given(st.dictionaries(st.sampled_from(FIELDS), st.lists(texts | st.lists(texts).map(json.dumps))))
def test_any_form_is_taken_or_refused_by_name(fields: dict[str, list[str]]) -> None:
    try:
        params = parse(**fields)
    except InvalidRequestError as error:
        param = (error.param or "").removesuffix("[]")
        assert {param, f"{param}[]"} & set(FIELDS)
    else:
        assert params.response_format in get_args(ResponseFormat)
        assert params.granularities <= BOTH
        assert params.granularities


# Unset values and lists, as clients send them


@pytest.mark.parametrize("text", ["null", "undefined", "None", "NULL", " none ", ""])
def test_placeholders_for_unset_values_count_as_not_sent(text: str) -> None:
    fields = dict.fromkeys(
        ["language", "prompt", "response_format", "temperature", "stream", "audio_track"], text
    )

    assert parse(**fields) == parse()


@pytest.mark.parametrize("text", ["auto", "und", "detect", "Unknown", "mul"])
def test_a_language_that_is_not_known_is_as_not_sent(text: str) -> None:
    assert parse(["en", "de"], language=text) == parse(["en", "de"])


def test_lists_may_be_numbered() -> None:
    numbered = {"timestamp_granularities[1]": "segment", "timestamp_granularities[0]": "word"}

    assert granularities(**numbered) == BOTH
    assert granularities(**{"timestamp_granularities[0]": "word"}) == WORD
    assert refusal(**{"include[0]": "everything"}).param == "include[]"


@pytest.mark.parametrize(
    ("text", "track"), [("", None), ("1", 1), ("12", 12), ("all", "all"), ("ALL", "all")]
)
def test_a_track_is_a_number_or_all(text: str, track: int | str | None) -> None:
    assert parse(audio_track=text).audio_track == track


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "first", "12345", "\u0661"])
def test_an_invalid_track_is_named(text: str) -> None:
    assert refusal(audio_track=text).param == "audio_track"
