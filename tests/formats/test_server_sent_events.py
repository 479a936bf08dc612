from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import AudioDecodeError
from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import Include, TranscriptionParams
from parakeet_api.formats.server_sent_events import KEEP_ALIVE, EventWriter, peaks
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.pipeline import Progress
from parakeet_api.settings import Settings
from parakeet_api.transcript import Pcm, Segment, Token, Transcript, Word

SETTINGS = Settings()
NOTHING: Pcm = np.zeros(0, np.int16)
HELLO = Word("Héllo,", 1.2, 1.5, (Token(7, " Hé", -0.1), Token(8, "llo,", -0.3)))
WORLD = Word("world.", 1.6, 2.0, (Token(11, " world.", -0.5),))


def params(*include: Include, response_format: ResponseFormat = "json") -> TranscriptionParams:
    return TranscriptionParams(
        response_format=response_format, include=frozenset(include), stream=True
    )


def writer(*include: Include, response_format: ResponseFormat = "json") -> EventWriter:
    return EventWriter(params(*include, response_format=response_format), settings=SETTINGS)


def progress_of(*words: Word, done_s: float = 30.0, samples: Pcm = NOTHING) -> Progress:
    return Progress(words, samples, done_s, 60.0)


def transcript(words: Iterable[Word]) -> Transcript:
    words = tuple(words)
    return Transcript((Segment(words),) if words else (), 60.0, "en")


def events(text: str) -> list[dict[str, Any]]:
    """Read server-sent events; each is one line of data."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@given(st.lists(st.lists(st.text(min_size=1, max_size=5)), max_size=8))
def test_deltas_add_up_to_the_text(parts: list[list[str]]) -> None:
    word_groups = [[Word(text, 0.0, 1.0) for text in part] for part in parts]
    event_writer = writer()

    deltas = [
        e["delta"]
        for part in word_groups
        for e in events(event_writer.progress(progress_of(*part)))
    ]
    (end,) = events(event_writer.done(transcript(word for part in word_groups for word in part)))

    assert "".join(deltas) == end["text"]


def test_the_end_has_text_and_tokens_counted() -> None:
    (end,) = events(writer().done(transcript([HELLO, WORLD])))

    assert end == {
        "type": "transcript.text.done",
        "text": "Héllo, world.",
        "languages": [{"code": "en"}],
        "usage": {
            "type": "tokens",
            "input_tokens": 750,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 750},
            "output_tokens": 3,
            "total_tokens": 753,
        },
    }


@pytest.mark.parametrize("response_format", ["srt", "vtt", "verbose_json"])
def test_the_end_carries_the_rendering(response_format: ResponseFormat) -> None:
    (end,) = events(writer(response_format=response_format).done(transcript([HELLO, WORLD])))

    body = render(
        transcript([HELLO, WORLD]), params(response_format=response_format), settings=SETTINGS
    ).body
    assert end[response_format] == (json.loads(body) if response_format == "verbose_json" else body)
    assert end["text"] == "Héllo, world."


@pytest.mark.parametrize("response_format", ["json", "text"])
def test_formats_that_are_only_text_are_not_repeated(response_format: ResponseFormat) -> None:
    (end,) = events(writer(response_format=response_format).done(transcript([HELLO])))

    assert response_format == "text" or "json" not in end
    assert end["text"] == "Héllo,"


def test_log_probabilities_come_with_their_words_and_at_the_end() -> None:
    event_writer = writer("logprobs")

    (first,) = events(event_writer.progress(progress_of(HELLO)))
    (second,) = events(event_writer.progress(progress_of(WORLD)))
    (end,) = events(event_writer.done(transcript([HELLO, WORLD])))

    assert [entry["token"] for entry in first["logprobs"]] == ["Hé", "llo,"]
    assert [entry["token"] for entry in second["logprobs"]] == [" world."]
    assert end["logprobs"] == first["logprobs"] + second["logprobs"]


def test_a_plain_stream_has_openais_events_and_no_others() -> None:
    event_writer = writer()

    assert (
        event_writer.queued(3)
        == event_writer.started()
        == event_writer.progress(progress_of())
        == ""
    )
    assert [e["type"] for e in events(event_writer.progress(progress_of(HELLO)))] == [
        "transcript.text.delta"
    ]
    assert event_writer.silence(model_is_loading=True) == KEEP_ALIVE
    assert KEEP_ALIVE.startswith(":")
    assert KEEP_ALIVE.endswith("\n\n")


def test_progress_is_sent_on_request() -> None:
    event_writer = writer("progress")

    states = [
        *events(event_writer.queued(2)),
        *events(event_writer.silence(model_is_loading=False)),
        *events(event_writer.started()),
        *events(event_writer.silence(model_is_loading=True)),
        *events(event_writer.progress(progress_of(done_s=30.0004))),
    ]

    assert [(s["state"], s["queue_position"], s["done_s"], s["total_s"]) for s in states] == [
        ("queued", 2, 0, None),
        ("queued", 2, 0, None),
        ("transcribing", None, 0, None),
        ("loading", None, 0, None),
        ("transcribing", None, 30.0, 60.0),
    ]


def test_peaks_begin_where_the_last_ones_ended() -> None:
    event_writer = writer("peaks")
    loud = np.full(16_000, -32768, np.int16)

    first, second = [
        event
        for done_s in (1.0, 2.0)
        for event in events(event_writer.progress(progress_of(done_s=done_s, samples=loud)))
    ]

    assert (first["start_s"], second["start_s"]) == (0.0, 1.0)
    assert first["per_second"] == 10
    assert base64.b64decode(first["values"]) == b"\xff" * 10


def test_a_peak_is_the_loudest_sample_of_its_tenth_of_a_second() -> None:
    samples = np.zeros(4000, np.int16)
    samples[[100, 200, 1700, 3999]] = [1280, -2560, 128, 32767]

    assert list(peaks(samples)) == [20, 1, 255]


def test_an_error_is_an_event_that_openais_clients_raise() -> None:
    (event,) = events(writer().error(AudioDecodeError("No sound.")))

    assert event == {
        "error": {
            "message": "No sound.",
            "type": "invalid_request_error",
            "param": "file",
            "code": "invalid_audio",
        }
    }
