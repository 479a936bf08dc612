"""Real clients: the official `openai` package, and curl."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from conftest import PATIENCE_S, SPEECH, Clip, Server, encode, running_server, wait_until
from http_helpers import CURL, ENDPOINT, FORMATS, is_idle, needs_curl, post, uploads
from openai.types.audio import (
    Transcription,
    TranscriptionStreamEvent,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[10]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with _ask(server) as started:
        yield started


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that requires a key."""
    with running_server(
        tmp_path_factory.mktemp("locked"), API_KEY="the-key, another-key"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that works on one request, two chunks ahead, and lets none wait."""
    with running_server(
        tmp_path_factory.mktemp("narrow"),
        APP_THREADS="1",
        MAX_QUEUED_REQUESTS="0",
        MAX_CONCURRENT_INFERENCES="1",
        TRANSCRIBE_BATCH_SIZE="1",
    ) as started:
        yield started


@pytest.fixture
def busy(narrow: Server, hour: Path) -> Iterator[socket.socket]:
    """The connection of the one request that `narrow` is working on."""
    with post(narrow, hour.read_bytes()) as connection:
        wait_until(
            lambda: narrow.health()["queue"]["active_requests"],
            what="the first request is at work",
        )
        yield connection
    wait_until(lambda: is_idle(narrow), what="its work has ended")


@pytest.fixture(scope="module")
def two_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks, so that words come before the end is read."""
    target = tmp_path_factory.mktemp("two-minutes") / "two-minutes.mp3"
    return encode(SPEECH / "long-dense.ogg", target, "-t", "120")


def _ask(server: Server, **options: Any) -> openai.OpenAI:
    """Return a client; on a `with` block's end its connections are closed."""
    return openai.OpenAI(**({"base_url": f"{server.url}/v1", "api_key": "unused"} | options))


def _checked(
    events: Iterable[TranscriptionStreamEvent], *, extra: frozenset[str] = frozenset()
) -> tuple[list[TranscriptionTextDeltaEvent], TranscriptionTextDoneEvent]:
    """Check a stream's events against the package's types; give the deltas and the end."""
    *deltas, done = events
    assert isinstance(done, TranscriptionTextDoneEvent)
    for event in (*deltas, done):
        # The schema's types, not what the client makes of anything else.
        type(event).model_validate(event.model_dump(), strict=True)
    checked = [event for event in deltas if isinstance(event, TranscriptionTextDeltaEvent)]
    assert len(checked) == len(deltas) > 0
    assert not any(event.model_extra for event in checked)
    assert set(done.model_extra or {}) == extra
    assert "".join(event.delta for event in checked) == done.text
    return checked, done


class TestOpenAi:
    def test_json_is_parsed(self, client: openai.OpenAI, clip: Clip) -> None:
        with clip.path.open("rb") as file:
            answer = client.audio.transcriptions.create(model="whisper-1", file=file)

        assert isinstance(answer, Transcription)
        assert answer.text == clip.text
        assert answer.usage is not None
        assert answer.usage.type == "duration"
        assert answer.usage.seconds == pytest.approx(clip.duration_s, abs=0.05)

    def test_verbose_json_is_parsed(self, client: openai.OpenAI, clip: Clip) -> None:
        answer = client.audio.transcriptions.create(
            model="whisper-1",
            file=clip.path,
            response_format="verbose_json",
            language="en",
            prompt="Numbers.",
            temperature=0.0,
            timestamp_granularities=["word", "segment"],
        )

        assert isinstance(answer, TranscriptionVerbose)
        assert (answer.text, answer.language) == (clip.text, "english")
        assert answer.words is not None
        assert [word.word for word in answer.words] == clip.text.split()
        assert all(word.start <= word.end for word in answer.words)
        assert answer.segments is not None
        assert "".join(segment.text for segment in answer.segments) == f" {clip.text}"
        assert all(segment.avg_logprob < 0 for segment in answer.segments)
        # The schema's types, not what the client makes of anything else.
        TranscriptionVerbose.model_validate(answer.model_dump(), strict=True)

    def test_text_formats_come_as_str(self, client: openai.OpenAI, clip: Clip) -> None:
        text = client.audio.transcriptions.create(
            model="whisper-1", file=clip.path, response_format="text"
        )
        cues = client.audio.transcriptions.create(
            model="whisper-1", file=clip.path, response_format="srt"
        )
        captions = client.audio.transcriptions.create(
            model="whisper-1", file=clip.path, response_format="vtt"
        )

        assert (type(text), type(cues), type(captions)) == (str, str, str)
        assert text.strip() == clip.text
        assert " ".join(cue.content for cue in srt.parse(cues)).split() == clip.text.split()
        read = webvtt.from_string(captions).captions
        assert " ".join(cue.text for cue in read).split() == clip.text.split()

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_raw_and_parsed_answers_agree(
        self, client: openai.OpenAI, clip: Clip, response_format: str
    ) -> None:
        raw = client.audio.transcriptions.with_raw_response.create(
            model="whisper-1",
            file=("name.flac", clip.path.read_bytes()),
            response_format=response_format,  # type: ignore[call-overload]
        )
        parsed = raw.parse()

        assert raw.status_code == 200
        assert raw.headers["x-parakeet-model"] == "parakeet-tdt-demo-en"
        if isinstance(parsed, str):
            assert parsed == raw.text
        else:
            assert parsed.text == json.loads(raw.text)["text"] == clip.text

    def test_the_async_client_gets_the_same_in_every_format(
        self, server: Server, client: openai.OpenAI, clip: Clip
    ) -> None:
        async def ask() -> list[object]:
            base_url = f"{server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as patient:
                return await asyncio.gather(
                    *[
                        patient.audio.transcriptions.create(
                            model="whisper-1",
                            file=clip.path,
                            response_format=name,  # type: ignore[call-overload]
                        )
                        for name in FORMATS
                    ]
                )

        answers = asyncio.run(ask())

        assert answers == [
            client.audio.transcriptions.create(
                model="whisper-1",
                file=clip.path,
                response_format=name,  # type: ignore[call-overload]
            )
            for name in FORMATS
        ]
        assert uploads(server) == []

    def test_log_probabilities_are_parsed(self, client: openai.OpenAI, clip: Clip) -> None:
        answer = client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=clip.path, include=["logprobs"]
        )

        assert isinstance(answer, Transcription)
        assert answer.logprobs is not None
        assert "".join(entry.token or "" for entry in answer.logprobs) == clip.text
        assert all(entry.logprob is not None and entry.logprob <= 0 for entry in answer.logprobs)
        token_bytes = bytes(int(byte) for entry in answer.logprobs for byte in entry.bytes or [])
        assert token_bytes.decode() == clip.text
        Transcription.model_validate(answer.model_dump(), strict=True)

    def test_the_answer_can_be_read_while_it_comes(self, client: openai.OpenAI, clip: Clip) -> None:
        with client.audio.transcriptions.with_streaming_response.create(
            model="whisper-1", file=clip.path, response_format="srt"
        ) as answer:
            cues = "".join(answer.iter_text())

        assert answer.headers["content-type"].startswith("application/x-subrip")
        assert " ".join(cue.content for cue in srt.parse(cues)).split() == clip.text.split()

    def test_base_url_works_without_v1(self, server: Server, clip: Clip) -> None:
        with _ask(server, base_url=server.url) as client:
            answer = client.audio.transcriptions.create(model="whisper-1", file=clip.path)
            models = client.models.list()

        assert answer.text == clip.text
        assert len(models.data) == 1


PARAMETERS: dict[str, dict[str, Any]] = {
    "language": {"language": "en"},
    "languages": {"languages": ["en", "de"]},
    "keywords": {"keywords": ["Rosa", "Olivia, of course"]},
    "prompt": {"prompt": "Numbers, <names> and\nlines."},
    "temperature": {"temperature": 0.7},
    "chunking by the server": {"chunking_strategy": "auto"},
    "chunking as told": {
        "chunking_strategy": {
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 200,
        }
    },
    "speakers": {
        "known_speaker_names": ["customer", "agent"],
        "known_speaker_references": ["data:audio/wav;base64,UklGRg==", "data:audio/wav;base64,"],
    },
    "not to stream": {"stream": False},
    "granularities without verbose_json": {"timestamp_granularities": ["word", "segment"]},
    "another's parameters": {"extra_body": {"beam_size": 5, "vad_filter": True}},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_of_openais_is_understood(client: openai.OpenAI, clip: Clip, name: str) -> None:
    answer = client.audio.transcriptions.create(
        model="gpt-transcribe", file=clip.path, **PARAMETERS[name]
    )

    assert answer.text == clip.text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 7}, "temperature"),
    "language": ({"language": "fr"}, "language"),
    "languages": ({"languages": ["fr", "de"]}, "languages[]"),
    "keywords": ({"keywords": ["<b>"]}, "keywords[]"),
    "response_format": ({"response_format": "diarised_json"}, "response_format"),
    "include": ({"include": ["thoughts"]}, "include[]"),
    "chunking_strategy": (
        {"chunking_strategy": {"type": "manual"}},
        "chunking_strategy[type]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["at once", "stream"])
def test_a_parameter_that_cannot_be_met_is_a_bad_request(
    client: openai.OpenAI, clip: Clip, name: str, stream: bool
) -> None:
    options, param = REFUSED[name]

    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(
            model="gpt-transcribe", file=clip.path, stream=stream, **options
        )

    assert caught.value.param == param


class TestOpenAiStreams:
    def test_deltas_add_up_to_the_text_of_the_same_request_at_once(
        self, client: openai.OpenAI, two_minutes: Path
    ) -> None:
        whole = client.audio.transcriptions.create(model="gpt-transcribe", file=two_minutes)
        stream = client.audio.transcriptions.create(
            model="gpt-transcribe", file=two_minutes, stream=True
        )

        deltas, done = _checked(stream)

        assert isinstance(whole, Transcription)
        assert done.text == whole.text
        assert len(deltas) > 1
        assert all(event.logprobs is None for event in deltas)
        assert done.logprobs is None
        assert [language.code for language in done.languages or []] == ["en"]

    def test_usage_counts_tokens(self, client: openai.OpenAI, clip: Clip) -> None:
        _, done = _checked(
            client.audio.transcriptions.create(model="whisper-1", file=clip.path, stream=True)
        )

        usage = done.usage
        assert usage is not None
        assert usage.type == "tokens"
        # One for each 80 ms.
        assert usage.input_tokens == pytest.approx(clip.duration_s / 0.08, abs=1)
        assert usage.output_tokens >= len(clip.text.split())
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.input_token_details is not None
        assert usage.input_token_details.audio_tokens == usage.input_tokens

    def test_log_probabilities_come_with_the_words(
        self, client: openai.OpenAI, two_minutes: Path
    ) -> None:
        deltas, done = _checked(
            client.audio.transcriptions.create(
                model="gpt-transcribe", file=two_minutes, stream=True, include=["logprobs"]
            )
        )

        for event in deltas:
            entries = event.logprobs or []
            assert "".join(entry.token or "" for entry in entries) == event.delta
            assert bytes(byte for entry in entries for byte in entry.bytes or []).decode() == (
                event.delta
            )
            assert all(entry.logprob is not None and entry.logprob <= 0 for entry in entries)
        listed = [entry.model_dump() for event in deltas for entry in event.logprobs or []]
        assert listed == [entry.model_dump() for entry in done.logprobs or []]

    @pytest.mark.parametrize("response_format", ["srt", "vtt", "verbose_json"])
    def test_the_end_carries_what_the_same_request_gives_at_once(
        self,
        client: openai.OpenAI,
        clip: Clip,
        response_format: Literal["srt", "vtt", "verbose_json"],
    ) -> None:
        at_once = client.audio.transcriptions.create(
            model="whisper-1", file=clip.path, response_format=response_format
        )
        _, done = _checked(
            client.audio.transcriptions.create(
                model="whisper-1", file=clip.path, response_format=response_format, stream=True
            ),
            extra=frozenset({response_format}),
        )

        assert done.text == clip.text
        rendering = (done.model_extra or {})[response_format]
        if response_format == "verbose_json":
            assert TranscriptionVerbose.model_validate(rendering, strict=True) == at_once
        else:
            assert rendering == at_once

    def test_raw_and_streaming_responses_hold_the_same_events(
        self, client: openai.OpenAI, clip: Clip
    ) -> None:
        raw = client.audio.transcriptions.with_raw_response.create(
            model="whisper-1", file=clip.path, stream=True
        )
        parsed = list(raw.parse())
        with client.audio.transcriptions.with_streaming_response.create(
            model="whisper-1", file=clip.path, stream=True
        ) as answer:
            lines = [line for line in answer.iter_lines() if line]

        for headers in (raw.headers, answer.headers):
            assert headers["content-type"] == "text/event-stream; charset=utf-8"
            assert headers["cache-control"] == "no-cache"
            assert headers["x-parakeet-model"] == "parakeet-tdt-demo-en"
        assert [json.loads(line.removeprefix("data: ")) for line in lines] == [
            event.model_dump(exclude_unset=True) for event in parsed
        ]
        _checked(parsed)

    def test_the_async_client_gets_the_same_events(
        self, server: Server, client: openai.OpenAI, two_minutes: Path
    ) -> None:
        async def ask() -> list[TranscriptionStreamEvent]:
            base_url = f"{server.url}/v1"
            async with (
                openai.AsyncOpenAI(base_url=base_url, api_key="unused") as patient,
                await patient.audio.transcriptions.create(
                    model="gpt-transcribe", file=two_minutes, stream=True
                ) as stream,
            ):
                return [event async for event in stream]

        deltas, done = _checked(asyncio.run(ask()))

        at_once = client.audio.transcriptions.create(model="gpt-transcribe", file=two_minutes)
        assert isinstance(at_once, Transcription)
        assert (len(deltas) > 1, done.text) == (True, at_once.text)

    def test_several_at_once_each_get_their_own_words(
        self, client: openai.OpenAI, clips: list[Clip]
    ) -> None:
        def ask(clip: Clip) -> str:
            stream = client.audio.transcriptions.create(
                model="whisper-1", file=clip.path, stream=True
            )
            return _checked(stream)[1].text

        chosen = [clips[number] for number in (1, 3, 10, 12)]
        with ThreadPoolExecutor(len(chosen)) as executor:
            texts = list(executor.map(ask, chosen))

        assert texts == [clip.text for clip in chosen]

    def test_one_that_is_closed_early_costs_nothing_more(
        self, server: Server, client: openai.OpenAI, hour: Path
    ) -> None:
        with client.audio.transcriptions.create(
            model="whisper-1", file=hour, stream=True
        ) as stream:
            assert isinstance(next(stream), TranscriptionTextDeltaEvent)

        wait_until(lambda: is_idle(server), what="its work has ended")

    def test_a_file_that_is_no_recording_is_a_bad_request_before_the_stream(
        self, client: openai.OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(
                model="whisper-1", file=("a.mp3", b"no sound"), stream=True
            )

        assert (caught.value.param, caught.value.code) == ("file", "invalid_audio")
        assert _attempts(caught.value) == 1

    @pytest.mark.parametrize("name", ["mp3", "flac"])
    def test_a_file_cut_short_is_an_error_after_the_words_that_it_has(
        self, narrow: Server, two_minutes: Path, tmp_path: Path, name: str
    ) -> None:
        received: list[TranscriptionStreamEvent] = []

        with (
            _ask(narrow) as client,
            client.audio.transcriptions.create(
                model="whisper-1", file=_cut_short(two_minutes, tmp_path / name), stream=True
            ) as stream,
            pytest.raises(openai.APIError) as caught,
        ):
            received.extend(stream)

        assert received
        assert all(isinstance(event, TranscriptionTextDeltaEvent) for event in received)
        assert not isinstance(caught.value, openai.APIStatusError)
        assert "cut short" in caught.value.message
        assert (caught.value.param, caught.value.code) == ("file", "truncated_audio")
        assert caught.value.type == "invalid_request_error"
        assert is_idle(narrow)

    def test_the_async_client_raises_the_same(
        self, narrow: Server, two_minutes: Path, tmp_path: Path
    ) -> None:
        content = _cut_short(two_minutes, tmp_path / "mp3")

        async def ask() -> None:
            base_url = f"{narrow.url}/v1"
            async with (
                openai.AsyncOpenAI(base_url=base_url, api_key="unused") as client,
                await client.audio.transcriptions.create(
                    model="whisper-1", file=content, stream=True
                ) as stream,
            ):
                async for _ in stream:
                    pass

        with pytest.raises(openai.APIError, match="cut short"):
            asyncio.run(ask())


def _cut_short(source: Path, target: Path) -> bytes:
    """Return three quarters of a file; the target's name is its format."""
    content = encode(source, target, "-f", target.name).read_bytes()
    return content[: len(content) * 3 // 4]


# OpenAI's own translations end with whisper-1; the package says so at each call.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
class TestOpenAiTranslations:
    def test_json_is_parsed(self, client: openai.OpenAI, clip: Clip) -> None:
        answer = client.audio.translations.create(
            model="whisper-1", file=clip.path, prompt="Numbers.", temperature=0
        )

        assert isinstance(answer, Translation)
        assert answer.text == clip.text

    def test_verbose_json_is_parsed(self, client: openai.OpenAI, clip: Clip) -> None:
        answer = client.audio.translations.create(
            model="whisper-1", file=clip.path, response_format="verbose_json"
        )

        assert isinstance(answer, TranslationVerbose)
        assert (answer.text, answer.language) == (clip.text, "english")
        assert answer.segments
        TranslationVerbose.model_validate(answer.model_dump(), strict=True)

    def test_text_formats_come_as_str(self, client: openai.OpenAI, clip: Clip) -> None:
        cues = client.audio.translations.create(
            model="whisper-1", file=clip.path, response_format="srt"
        )

        assert " ".join(cue.content for cue in srt.parse(cues)).split() == clip.text.split()

    def test_the_async_client_gets_the_same(self, server: Server, clip: Clip) -> None:
        async def ask() -> Translation:
            base_url = f"{server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as client:
                return await client.audio.translations.create(model="whisper-1", file=clip.path)

        assert asyncio.run(ask()).text == clip.text

    def test_a_file_that_is_no_recording_is_a_bad_request(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError):
            client.audio.translations.create(model="whisper-1", file=("a.mp3", b"no sound"))


class TestOpenAiModels:
    def test_the_one_model_is_listed_and_described(self, client: openai.OpenAI) -> None:
        (model,) = client.models.list()

        assert (model.id, model.object) == ("parakeet-tdt-demo-en", "model")
        assert model.created > 0
        type(model).model_validate(model.model_dump(), strict=True)
        assert client.models.retrieve(model.id) == model

    @pytest.mark.parametrize("name", ["whisper-1", "gpt-transcribe", "nvidia/parakeet-tdt-0.6b-v2"])
    def test_the_names_whose_place_it_takes_are_known(
        self, client: openai.OpenAI, name: str
    ) -> None:
        assert client.models.retrieve(name).id == name

    def test_any_other_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-2")

        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")

    def test_the_async_client_gets_the_same(self, server: Server) -> None:
        async def ask() -> list[str]:
            base_url = f"{server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as client:
                return [model.id async for model in client.models.list()]

        assert asyncio.run(ask()) == ["parakeet-tdt-demo-en"]


class TestOpenAiErrors:
    """With the client's own retries: a client error is not retried."""

    def test_a_file_that_is_no_recording_is_a_bad_request(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"no sound"))

        error = caught.value
        assert (error.status_code, error.param, error.code) == (400, "file", "invalid_audio")
        assert error.type == "invalid_request_error"
        assert "Supported formats" in error.message
        assert error.response.headers["x-request-id"]
        assert _attempts(error) == 1

    def test_a_wrong_key_is_an_authentication_error(self, locked: Server, clip: Clip) -> None:
        with (
            _ask(locked, api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.audio.transcriptions.create(model="whisper-1", file=clip.path)

        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        assert _attempts(caught.value) == 1

    @pytest.mark.parametrize("key", ["the-key", "another-key"])
    def test_each_of_several_keys_is_taken(self, locked: Server, key: str) -> None:
        with _ask(locked, api_key=key) as client:
            assert len(client.models.list().data) == 1

    def test_the_async_client_raises_the_same(self, server: Server) -> None:
        async def ask() -> None:
            base_url = f"{server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as client:
                await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b""))

        with pytest.raises(openai.BadRequestError, match="empty"):
            asyncio.run(ask())

    def test_an_unknown_path_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.get("/nowhere", cast_to=object)

        assert caught.value.code == "not_found"


def _attempts(error: openai.APIStatusError) -> int:
    """Count the client's requests up to the one that was answered with this error."""
    return 1 + int(error.response.request.headers["x-stainless-retry-count"])


class TestOpenAiPatience:
    @pytest.mark.parametrize("stream", [False, True], ids=["at once", "stream"])
    def test_a_full_queue_is_reported_with_the_time_to_wait(
        self, narrow: Server, busy: socket.socket, clip: Clip, stream: bool
    ) -> None:
        with (
            _ask(narrow, max_retries=0) as client,
            pytest.raises(openai.InternalServerError) as caught,
        ):
            client.audio.transcriptions.create(model="whisper-1", file=clip.path, stream=stream)

        assert (caught.value.status_code, caught.value.code) == (503, "queue_full")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60

    def test_the_client_asks_again_until_there_is_a_place(
        self, narrow: Server, busy: socket.socket, clip: Clip
    ) -> None:
        with _ask(narrow, max_retries=10) as client, ThreadPoolExecutor(1) as executor:
            refused = narrow.log.read_text().count(" -> 503 ")
            answer = executor.submit(
                client.audio.transcriptions.with_raw_response.create,
                model="whisper-1",
                file=clip.path,
            )
            wait_until(
                lambda: narrow.log.read_text().count(" -> 503 ") > refused,
                what="it was refused once",
            )
            busy.close()

            assert answer.result().parse().text == clip.text
            assert answer.result().retries_taken >= 1

    def test_a_client_that_has_waited_long_enough_leaves_nothing(
        self, server: Server, hour: Path
    ) -> None:
        with (
            _ask(server, timeout=2, max_retries=0) as client,
            pytest.raises(openai.APITimeoutError),
        ):
            client.audio.transcriptions.create(model="whisper-1", file=hour)

        wait_until(lambda: is_idle(server), what="its work has ended")


@needs_curl
class TestCurl:
    def test_the_line_of_the_readme_works(self, server: Server, clip: Clip) -> None:
        assert json.loads(_curl(server, "-F", f"file=@{clip.path}"))["text"] == clip.text

    def test_fields_and_formats_work(self, server: Server, clip: Clip) -> None:
        answer = _curl(
            server, "-F", f"file=@{clip.path}", "-F", "response_format=srt", "-F", "model=whisper-1"
        )

        assert " ".join(cue.content for cue in srt.parse(answer)).split() == clip.text.split()

    def test_a_stream_is_printed_as_events(self, server: Server, clip: Clip) -> None:
        answer = _curl(server, "-F", f"file=@{clip.path}", "-F", "stream=true")

        *events, rest = answer.split("\n\n")
        deltas = [json.loads(event.removeprefix("data: ")) for event in events]
        assert rest == ""
        assert [event["type"] for event in deltas] == [
            "transcript.text.delta",
            "transcript.text.done",
        ]
        assert [deltas[0]["delta"], deltas[1]["text"]] == [clip.text, clip.text]

    def test_a_large_file_is_sent_after_100_continue(self, server: Server, tmp_path: Path) -> None:
        # Above 1 MB curl asks first.
        target = tmp_path / "zeros.wav"
        target.write_bytes(bytes(3 * 1024 * 1024))

        error = json.loads(_curl(server, "-F", f"file=@{target}"))["error"]

        assert error["code"] == "invalid_audio"

    def test_a_key_is_taken(self, locked: Server) -> None:
        answer = _curl(locked, "-H", "Authorization: Bearer the-key", "-F", "model=whisper-1")

        assert json.loads(answer)["error"]["param"] == "file"


def _curl(server: Server, *options: str) -> str:
    command = [*CURL, f"{server.url}{ENDPOINT}", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    ).stdout
