"""The clients that people use, as they come: the official `openai` package, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from conftest import Clip, Server, running_server
from http_helpers import ENDPOINT, FORMATS, uploads
from openai.types.audio import Transcription, TranscriptionVerbose


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[10]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as started:
        yield started


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a key."""
    with running_server(tmp_path_factory.mktemp("locked"), API_KEY="the-key") as started:
        yield started


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


class TestOpenAiErrors:
    """With the client's own retries: a mistake of the client's is told once and not retried."""

    def test_a_file_that_is_no_recording_is_a_bad_request(
        self, server: Server, client: openai.OpenAI
    ) -> None:
        before = _requests(server)

        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"no sound"))

        error = caught.value
        assert (error.status_code, error.param, error.code) == (400, "file", "invalid_audio")
        assert error.type == "invalid_request_error"
        assert "Supported formats" in error.message
        assert error.response.headers["x-request-id"]
        assert _requests(server) == before + 1

    def test_a_bad_field_is_a_bad_request(self, client: openai.OpenAI, clip: Clip) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(
                model="whisper-1", file=clip.path, temperature=7, language="en"
            )

        assert caught.value.param == "temperature"

    def test_a_wrong_key_is_an_authentication_error(self, locked: Server, clip: Clip) -> None:
        with (
            openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.audio.transcriptions.create(model="whisper-1", file=clip.path)

        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        assert _requests(locked) == 1

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


def _requests(server: Server) -> int:
    """Count the transcriptions that were asked for, by the log."""
    return server.log.read_text().count(f"POST {ENDPOINT} -> ")


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")


@needs_curl
class TestCurl:
    def test_the_line_of_the_readme_works(self, server: Server, clip: Clip) -> None:
        assert json.loads(_curl(server, "-F", f"file=@{clip.path}"))["text"] == clip.text

    def test_fields_and_formats_work(self, server: Server, clip: Clip) -> None:
        answer = _curl(
            server, "-F", f"file=@{clip.path}", "-F", "response_format=srt", "-F", "model=whisper-1"
        )

        assert " ".join(cue.content for cue in srt.parse(answer)).split() == clip.text.split()

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
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", f"{server.url}{ENDPOINT}"]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, timeout=60
    ).stdout
