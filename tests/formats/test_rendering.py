from __future__ import annotations

import html
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO
from typing import Any, get_args

import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.formats.rendering import Rendered, render
from parakeet_api.formats.request_params import Granularity, Include, TranscriptionParams
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.settings import Settings
from parakeet_api.transcript import Segment, Token, Transcript, Word

SETTINGS = Settings()

HELLO = Word(
    "Héllo,", 1.23449, 1.5, (Token(7, " Hé", -0.1), Token(8, "llo", -0.3), Token(9, ",", -0.2))
)
WORLD = Word("world.", 1.58, 2.00051, (Token(11, " world", -0.5), Token(12, ".", -0.4)))
YES = Word("Yes.", 7.0, 7.5, (Token(21, " Yes.", -1.0),))
TRANSCRIPT = Transcript((Segment((HELLO, WORLD)), Segment((YES,))), 8.4704, "en")
SILENCE = Transcript((), 3.0, "en")


def render_as(
    transcript: Transcript, response_format: ResponseFormat, settings: Settings = SETTINGS
) -> Rendered:
    return render(
        transcript, TranscriptionParams(response_format=response_format), settings=settings
    )


def body_of(
    transcript: Transcript,
    response_format: ResponseFormat,
    *granularities: Granularity,
    include: Iterable[Include] = (),
) -> dict[str, Any]:
    params = TranscriptionParams(
        response_format=response_format,
        granularities=frozenset(granularities or {"segment"}),
        include=frozenset(include),
    )
    rendered = render(transcript, params, settings=SETTINGS)
    assert rendered.media_type == "application/json"
    body: dict[str, Any] = json.loads(rendered.body)
    return body


def segment_of(*words: Word) -> dict[str, Any]:
    (segment,) = body_of(Transcript((Segment(words),), 9.0, "en"), "verbose_json")["segments"]
    assert isinstance(segment, dict)
    return segment


def with_logprobs(*logprobs: float | None) -> Word:
    return replace(YES, tokens=tuple(Token(5, "x", logprob) for logprob in logprobs))


def text_in(rendered: str, response_format: ResponseFormat) -> str:
    """Extract the text of a response body as a client does."""
    match response_format:
        case "json" | "verbose_json" | "diarized_json":
            return str(json.loads(rendered)["text"])
        case "text":
            return rendered
        case "srt":
            return " ".join(caption.content for caption in srt.parse(rendered))
        case "vtt":
            captions = webvtt.from_buffer(StringIO(rendered)).captions
            return " ".join(html.unescape(caption.raw_text) for caption in captions)


@pytest.mark.parametrize("response_format", get_args(ResponseFormat))
@given(st.lists(st.lists(st.text(max_size=9), min_size=1), max_size=5))
def test_every_format_has_the_same_words(
    response_format: ResponseFormat, sentences: list[list[str]]
) -> None:
    texts = [text.replace(">", "") for sentence in sentences for text in sentence]
    words = iter([Word(text, at * 0.3, at * 0.3 + 0.2) for at, text in enumerate(texts)])
    segments = tuple(Segment(tuple(next(words) for _ in sentence)) for sentence in sentences)

    rendered = render_as(Transcript(segments, 60.0, "en"), response_format)

    assert text_in(rendered.body, response_format).split() == " ".join(texts).split()


def test_json_has_text_and_usage() -> None:
    assert body_of(TRANSCRIPT, "json") == {
        "text": "Héllo, world. Yes.",
        "languages": [{"code": "en"}],
        "usage": {"type": "duration", "seconds": 8.47},
    }


def test_text_is_one_line() -> None:
    rendered = render_as(TRANSCRIPT, "text")

    assert rendered.body == "Héllo, world. Yes.\n"
    assert rendered.media_type == "text/plain; charset=utf-8"


def test_srt_has_cues() -> None:
    rendered = render_as(TRANSCRIPT, "srt")

    assert rendered.body == (
        "1\n00:00:01,234 --> 00:00:02,734\nHéllo, world.\n\n"
        "2\n00:00:07,000 --> 00:00:08,500\nYes.\n\n"
    )
    assert rendered.media_type == "application/x-subrip; charset=utf-8"


def test_vtt_has_cues() -> None:
    rendered = render_as(TRANSCRIPT, "vtt")

    assert rendered.body == (
        "WEBVTT\n\n"
        "00:00:01.234 --> 00:00:02.734\nHéllo, world.\n\n"
        "00:00:07.000 --> 00:00:08.500\nYes.\n\n"
    )
    assert rendered.media_type == "text/vtt; charset=utf-8"


def test_cues_obey_the_settings() -> None:
    settings = replace(SETTINGS, merge_short_subtitles=False)

    assert "00:00:07,000 --> 00:00:07,500" in render_as(TRANSCRIPT, "srt", settings).body


def test_verbose_json_has_what_openai_promises() -> None:
    body = body_of(TRANSCRIPT, "verbose_json")

    assert list(body) == ["task", "language", "duration", "text", "segments", "usage"]
    assert body["task"] == "transcribe"
    assert body["language"] == "english"
    assert body["duration"] == 8.47
    assert body["text"] == "Héllo, world. Yes."
    assert body["usage"] == {"type": "duration", "seconds": 8.47}


def test_a_segment_has_all_ten_fields() -> None:
    first, second = body_of(TRANSCRIPT, "verbose_json")["segments"]

    assert first == {
        "id": 0,
        "seek": 123,
        "start": 1.234,
        "end": 2.001,
        "text": " Héllo, world.",
        "tokens": [7, 8, 9, 11, 12],
        "temperature": 0.0,
        "avg_logprob": pytest.approx(-0.3),
        "compression_ratio": 14 / len(zlib.compress("Héllo, world.".encode())),
        "no_speech_prob": 0.0,
    }
    assert (second["id"], second["seek"], second["text"]) == (1, 700, " Yes.")


def test_words_are_listed_only_on_request() -> None:
    body = body_of(TRANSCRIPT, "verbose_json", "word", "segment")

    assert body["words"] == [
        {"word": "Héllo,", "start": 1.234, "end": 1.5},
        {"word": "world.", "start": 1.58, "end": 2.001},
        {"word": "Yes.", "start": 7.0, "end": 7.5},
    ]
    assert len(body["segments"]) == 2
    assert "words" not in body_of(TRANSCRIPT, "verbose_json", "segment")


def test_segments_are_omitted_if_only_words_are_requested() -> None:
    body = body_of(TRANSCRIPT, "verbose_json", "word")

    assert "segments" not in body
    assert len(body["words"]) == 3


@pytest.mark.parametrize("logprobs", [(), (None,), (-0.5, None), (-0.5, -math.inf), (math.nan,)])
def test_an_unknown_log_probability_is_null(logprobs: tuple[float | None, ...]) -> None:
    assert segment_of(with_logprobs(*logprobs))["avg_logprob"] is None


def test_the_average_log_probability_is_over_tokens_not_words() -> None:
    segment = segment_of(with_logprobs(-1.0), with_logprobs(-0.1, -0.2, -0.3))

    assert segment["avg_logprob"] == pytest.approx(-0.4)


def test_repetition_raises_the_compression_ratio() -> None:
    looping = segment_of(*[replace(YES, text="again and")] * 50)

    assert looping["compression_ratio"] > 2.4 > segment_of(YES)["compression_ratio"]


@pytest.mark.parametrize(
    ("response_format", "body"),
    [("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n\n")],
)
def test_silence_is_an_empty_transcript(response_format: ResponseFormat, body: str) -> None:
    assert render_as(SILENCE, response_format).body == body


def test_silence_is_an_empty_transcript_in_json() -> None:
    assert body_of(SILENCE, "json")["text"] == ""
    verbose = body_of(SILENCE, "verbose_json", "word", "segment")
    assert (verbose["text"], verbose["words"], verbose["segments"]) == ("", [], [])


def test_text_is_not_escaped_to_ascii() -> None:
    assert "Héllo" in render_as(TRANSCRIPT, "json").body


def test_log_probabilities_are_listed_token_by_token() -> None:
    body = body_of(TRANSCRIPT, "json", include=["logprobs"])

    assert body["logprobs"] == [
        {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        for text, logprob in [
            ("Hé", -0.1),
            ("llo", -0.3),
            (",", -0.2),
            (" world", -0.5),
            (".", -0.4),
            (" Yes.", -1.0),
        ]
    ]
    assert "logprobs" not in body_of(TRANSCRIPT, "json")


def test_words_have_log_probabilities_on_request() -> None:
    body = body_of(TRANSCRIPT, "verbose_json", "word", include=["logprobs"])

    assert [word["logprob"] for word in body["words"]] == pytest.approx([-0.6, -0.9, -1.0])
    assert len(body["logprobs"]) == 6


@given(
    st.lists(
        st.tuples(
            st.sampled_from([" a", " ", "b"]),
            st.lists(st.sampled_from(["c", "é", "."]), min_size=1),
        ),
        max_size=6,
    )
)
def test_tokens_add_up_to_the_text(groups: list[tuple[str, list[str]]]) -> None:
    words = [
        Word(
            "".join([first, *rest]).strip(),
            at,
            at + 0.5,
            tuple(Token(1, piece, -0.5) for piece in [first, *rest]),
        )
        for at, (first, rest) in enumerate(groups)
    ]
    transcript = Transcript((Segment(tuple(words)),) if words else (), 60.0, "en")

    body = body_of(transcript, "json", include=["logprobs"])

    assert "".join(entry["token"] for entry in body["logprobs"]) == body["text"]
    assert b"".join(bytes(e["bytes"]) for e in body["logprobs"]).decode() == body["text"]


def test_an_infinite_log_probability_is_null() -> None:
    transcript = Transcript((Segment((with_logprobs(-math.inf),)),), 9.0, "en")

    assert body_of(transcript, "json", include=["logprobs"])["logprobs"][0]["logprob"] is None


def test_an_unknown_language_is_omitted_or_called_unknown() -> None:
    transcript = replace(TRANSCRIPT, language=None)

    assert "languages" not in body_of(transcript, "json")
    assert body_of(transcript, "verbose_json")["language"] == "unknown"
