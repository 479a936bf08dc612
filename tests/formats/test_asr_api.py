from __future__ import annotations

import json
import math
from typing import Any

import pytest
from werkzeug.datastructures import MultiDict

from parakeet_api.errors import InvalidRequestError
from parakeet_api.formats.asr_api import (
    AsrParams,
    Output,
    describe_language,
    parse_asr_params,
    render_asr,
)
from parakeet_api.settings import Settings
from parakeet_api.transcript import Segment, Token, Transcript, Word

SETTINGS = Settings()
HELLO = Word("Hello,", 1.2, 1.5, (Token(7, " Hel", -0.1), Token(8, "lo,", -0.3)))
WORLD = Word("world.", 1.6, 2.0004, (Token(11, " world.", -0.5),))
YES = Word("Yes.", 7.0, 7.5, (Token(21, " Yes.", -1.0),))
TRANSCRIPT = Transcript((Segment((HELLO, WORLD)), Segment((YES,))), 8.47, "en")


def parse(languages: tuple[str, ...] = ("en",), /, **fields: str) -> AsrParams:
    return parse_asr_params(MultiDict(fields), languages=frozenset(languages))


def body(output: Output, *, word_timestamps: str = "false") -> str:
    params = parse(output=output, word_timestamps=word_timestamps)
    return render_asr(TRANSCRIPT, params, settings=SETTINGS).body


def test_the_defaults_are_those_of_whisper_asr_webservice() -> None:
    assert parse() == AsrParams(
        output="txt",
        task="transcribe",
        languages=frozenset({"en"}),
        word_timestamps=False,
        raw_pcm=False,
        audio_track=None,
        allow_partial=False,
    )


def test_what_bazarr_sends_is_understood() -> None:
    params = parse(
        ("en", "de"),
        task="transcribe",
        language="de",
        output="srt",
        encode="false",
        video_file="/films/a.mkv",
    )

    assert params.output == "srt"
    assert params.languages == {"de"}
    assert params.raw_pcm


@pytest.mark.parametrize(
    ("name", "value"),
    [("output", "pdf"), ("task", "sing"), ("encode", "7"), ("word_timestamps", "perhaps"),
     ("language", "ja")],
)  # fmt: skip
def test_invalid_values_are_rejected_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**{name: value})

    assert caught.value.param == name


def test_txt_has_one_sentence_per_line() -> None:
    assert body("txt") == "Hello, world.\nYes.\n"


def test_tsv_has_milliseconds() -> None:
    assert body("tsv") == "start\tend\ttext\n1200\t2000\tHello, world.\n7000\t7500\tYes.\n"


def test_subtitles_are_those_of_the_other_endpoint() -> None:
    assert body("srt").startswith("1\n00:00:01,200 --> ")
    assert body("vtt").startswith("WEBVTT\n\n00:00:01.200 --> ")


def test_json_has_whispers_segments() -> None:
    answer: dict[str, Any] = json.loads(body("json"))

    assert (answer["text"], answer["language"]) == ("Hello, world. Yes.", "en")
    assert [segment["text"] for segment in answer["segments"]] == [" Hello, world.", " Yes."]
    assert "words" not in answer["segments"][0]


def test_words_have_the_models_probabilities() -> None:
    answer: dict[str, Any] = json.loads(body("json", word_timestamps="true"))

    assert answer["segments"][0]["words"] == [
        {
            "word": " Hello,",
            "start": 1.2,
            "end": 1.5,
            "probability": pytest.approx(math.exp(-0.4)),
        },
        {
            "word": " world.",
            "start": 1.6,
            "end": 2.0,
            "probability": pytest.approx(math.exp(-0.5)),
        },
    ]


def test_the_language_of_many_comes_with_its_confidence() -> None:
    words = [
        Word(text, 0, 1) for text in ["Guten", "Morgen,", "wie", "geht", "es", "Ihnen", "heute?"]
    ]

    answer = describe_language(words, candidates=frozenset({"en", "de", "fr"}))

    assert (answer["detected_language"], answer["language_code"]) == ("german", "de")
    assert isinstance(answer["confidence"], float)
    assert 0.7 < answer["confidence"] <= 1


def test_a_model_of_one_language_has_no_confidence() -> None:
    assert describe_language([HELLO], candidates=frozenset({"en"})) == {
        "detected_language": "english",
        "language_code": "en",
    }


def test_without_words_there_is_no_language() -> None:
    assert describe_language([], candidates=frozenset({"en", "de"})) == {
        "detected_language": "undetermined",
        "language_code": "und",
    }
