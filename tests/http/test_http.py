"""The HTTP interface of a real server: responses, headers, keys, limits."""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import jiwer
import numpy as np
import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from conftest import PATIENCE_S, ROOT, SPEECH, Clip, Server, encode, running_server, wait_until
from http_helpers import (
    ENDPOINT,
    FORMATS,
    connect,
    error_of,
    ffmpegs,
    multipart,
    post_head,
    request,
    transcribe,
    uploads,
    waiting_chunks,
    wav,
)

from parakeet_api.transcript import SAMPLE_RATE

pytestmark = pytest.mark.integration

MEDIA_TYPES = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "verbose_json": "application/json",
    "vtt": "text/vtt; charset=utf-8",
}
MB = 1024 * 1024


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    """A recording of 4 s."""
    return clips[10]


@pytest.fixture(scope="module")
def excerpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 s of many sentences: more than one chunk, many cues."""
    target = tmp_path_factory.mktemp("excerpt") / "excerpt.flac"
    return encode(SPEECH / "long-dense.ogg", target, "-t", "40")


@pytest.fixture(scope="module")
def answers(server: Server, excerpt: Path) -> dict[str, httpx.Response]:
    """One recording in every format, with word times where there is a place for them."""
    both = ["word", "segment"]
    return {
        name: transcribe(
            server, excerpt, {"response_format": name, "timestamp_granularities[]": both}
        )
        for name in FORMATS
    }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys and small limits."""
    with running_server(
        tmp_path_factory.mktemp("guarded"), API_KEY="first-key, second-key,", MAX_UPLOAD_MB="1"
    ) as started:
        yield started
    assert started.process.returncode == 0


class TestFormats:
    def test_every_format_has_its_media_type(self, answers: dict[str, httpx.Response]) -> None:
        assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
            FORMATS, 200
        )
        assert {
            name: answer.headers["content-type"] for name, answer in answers.items()
        } == MEDIA_TYPES

    def test_every_format_has_the_same_words_once_and_in_order(
        self, answers: dict[str, httpx.Response]
    ) -> None:
        verbose = answers["verbose_json"].json()
        words = answers["json"].json()["text"].split()

        assert len(words) > 60
        assert answers["text"].text.split() == words
        assert verbose["text"].split() == words
        assert [word["word"] for word in verbose["words"]] == words
        assert [word for part in verbose["segments"] for word in part["text"].split()] == words
        assert [word for cue in srt.parse(answers["srt"].text) for word in cue.content.split()] == (
            words
        )
        captions = webvtt.from_string(answers["vtt"].text).captions
        assert [word for cue in captions for word in html.unescape(cue.text).split()] == words

    def test_cues_are_in_order_and_within_the_recording(
        self, answers: dict[str, httpx.Response]
    ) -> None:
        cues = [
            (cue.start.total_seconds(), cue.end.total_seconds())
            for cue in srt.parse(answers["srt"].text)
        ]
        captions = webvtt.from_string(answers["vtt"].text).captions

        assert len(cues) > 5
        assert all(start < end for start, end in cues)
        assert all(end <= start for (_, end), (start, _) in pairwise(cues))
        assert cues[0][0] >= 0
        assert cues[-1][1] <= 40 + 1.5
        assert [(cue.start_in_seconds, cue.end_in_seconds) for cue in captions] == [
            (int(start), int(end)) for start, end in cues
        ]

    def test_verbose_json_has_every_field_of_openais_schema(
        self, answers: dict[str, httpx.Response]
    ) -> None:
        body = answers["verbose_json"].json()

        assert (body["task"], body["language"]) == ("transcribe", "english")
        assert body["duration"] == pytest.approx(40, abs=0.1)
        assert body["usage"] == {"type": "duration", "seconds": body["duration"]}
        expected = "id seek start end text tokens temperature avg_logprob compression_ratio"
        for number, segment in enumerate(body["segments"]):
            assert set(segment) == {*expected.split(), "no_speech_prob"}
            assert segment["id"] == number
            assert segment["text"].startswith(" ")
            assert 0 <= segment["start"] < segment["end"] <= body["duration"]
            assert segment["avg_logprob"] < 0
            assert segment["tokens"]

    def test_the_transcript_is_what_was_said(self, server: Server, clip: Clip) -> None:
        assert transcribe(server, clip.path).json()["text"] == clip.text


class TestParameters:
    @pytest.mark.parametrize(
        ("fields", "listed"),
        [
            ({}, ["segments"]),
            ({"timestamp_granularities[]": "word"}, ["words"]),
            ({"timestamp_granularities[]": ["word", "segment"]}, ["segments", "words"]),
            ({"timestamp_granularities": "word"}, ["words"]),
            ({"timestamp_granularities": ["segment", "word"]}, ["segments", "words"]),
            ({"timestamp_granularities": '["word", "segment"]'}, ["segments", "words"]),
            ({"timestamp_granularities[]": '["word"]'}, ["words"]),
            ({"timestamp_granularities": "word, segment"}, ["segments", "words"]),
            ({"timestamp_granularities": ""}, ["segments"]),
            ({"timestamp_granularities": "[]"}, ["segments"]),
        ],
        ids=str,
    )
    def test_granularities_are_read_in_every_spelling(
        self, server: Server, clip: Clip, fields: dict[str, Any], listed: list[str]
    ) -> None:
        answer = transcribe(server, clip.path, {"response_format": "verbose_json", **fields})

        assert answer.status_code == 200, answer.text
        assert sorted({"words", "segments"} & set(answer.json())) == listed

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"model": "whisper-1"},
            {"model": "no-such-model"},
            # Subtitle Edit sends these with every format.
            {"timestamp_granularities[]": ["word", "segment"], "response_format": "json"},
            {"colour": "green", "chunking_strategy": "auto", "include[]": "logprobs"},
            {"prompt": "It costs <five> thousand.\r\n", "temperature": "0.2"},
            {"response_format": "", "language": "", "temperature": " "},
            {"response_format": "JSON"},
        ],
        ids=str,
    )
    def test_what_other_servers_understand_does_no_harm(
        self, server: Server, clip: Clip, fields: dict[str, Any]
    ) -> None:
        answer = transcribe(server, clip.path, fields)

        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == clip.text

    @pytest.mark.parametrize("language", ["en", "en-US", "EN_gb", "English", "eng"])
    def test_english_is_accepted_under_its_names(
        self, server: Server, clip: Clip, language: str
    ) -> None:
        answer = transcribe(
            server, clip.path, {"language": language, "response_format": "verbose_json"}
        )

        assert answer.status_code == 200, answer.text
        assert answer.json()["language"] == "english"

    def test_a_language_the_model_does_not_speak_is_refused(
        self, server: Server, clip: Clip
    ) -> None:
        error = error_of(transcribe(server, clip.path, {"language": "fr"}), 400)

        assert (error["param"], error["code"]) == ("language", "unsupported_language")
        assert "'fr'" in error["message"]

    def test_the_languages_of_a_model_can_be_configured(self, clip: Clip, tmp_path: Path) -> None:
        with running_server(tmp_path, MODEL_LANGUAGES="French, ja") as server:
            response = transcribe(
                server, clip.path, {"language": "fr-CA", "response_format": "verbose_json"}
            )
            error = error_of(transcribe(server, clip.path, {"language": "en"}), 400)

        assert (response.status_code, response.json()["language"]) == (200, "french")
        assert "it speaks: fr, ja." in error["message"]


def _sounds() -> dict[str, bytes]:
    seconds = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(7).normal(0, 0.05, len(seconds)).clip(-1, 1)
    hum = 0.2 * np.sin(2 * np.pi * 50 * seconds) + 0.05 * np.sin(2 * np.pi * 150 * seconds)
    return {"silence": wav(np.zeros(len(seconds))), "noise": wav(noise), "hum": wav(hum)}


@pytest.mark.parametrize("sound", ["silence", "noise", "hum"])
def test_a_recording_without_speech_is_an_empty_transcript_in_every_format(
    server: Server, sound: str
) -> None:
    content = _sounds()[sound]
    answers = {
        name: transcribe(
            server,
            content,
            {"response_format": name, "timestamp_granularities[]": ["word", "segment"]},
        )
        for name in FORMATS
    }

    assert [answer.status_code for answer in answers.values()] == [200] * len(FORMATS)
    assert answers["json"].json()["text"] == ""
    assert answers["text"].text.strip() == ""
    assert list(srt.parse(answers["srt"].text)) == []
    assert answers["vtt"].text.startswith("WEBVTT")
    assert webvtt.from_string(answers["vtt"].text).captions == []
    verbose = answers["verbose_json"].json()
    assert (verbose["text"], verbose["words"], verbose["segments"]) == ("", [], [])
    assert verbose["duration"] == pytest.approx(3, abs=0.05)


class TestHealth:
    def test_health_has_the_model_the_queue_and_the_limits(
        self, server: Server, clip: Clip
    ) -> None:
        transcribe(server, clip.path)

        health = server.health()

        assert health["status"] == "ok"
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", health["version"])
        assert health["model"] == {
            "name": "parakeet-tdt-demo-en",
            "demo": True,
            "note": "model for tests; it understands a few hundred example sentences and nothing"
            " else",
            "state": "ready",
            "progress": None,
            "error": None,
            "languages": ["en"],
        }
        assert health["device"] in {"cpu", "cuda"}
        assert health["precision"] in {"fp32", "fp16", "bf16", "int8"}
        assert health["queue"] == {
            "active_requests": 0,
            "waiting_requests": 0,
            "waiting_chunks": 0,
        }
        assert health["limits"]["max_upload_mb"] == 2000
        assert health["limits"]["max_audio_hours"] == 12
        assert health["limits"]["longest_chunk_s"] > 0
        assert health["limits"]["batch_size"] >= 1

    def test_it_tells_how_many_chunks_wait_while_a_long_file_is_transcribed(
        self, server: Server
    ) -> None:
        """That it never waits for the model is in test_fire.py, with a model that is blocked."""
        content = (SPEECH / "long-pauses.ogg").read_bytes()
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(transcribe, server, content)
            wait_until(lambda: waiting_chunks(server) > 0, what="chunks wait")

        assert running.result().status_code == 200
        assert waiting_chunks(server) == 0


class TestHeaders:
    def test_an_answer_names_the_model_and_its_request(self, server: Server, clip: Clip) -> None:
        answers = [transcribe(server, clip.path), request(server, "GET", "/nowhere")]

        assert {answer.headers["x-parakeet-model"] for answer in answers} == {
            "parakeet-tdt-demo-en"
        }
        numbers = [answer.headers["x-request-id"] for answer in answers]
        assert len(set(numbers)) == 2
        log = server.log.read_text()
        assert f"[{numbers[0]}]" in log
        assert {answer.headers["x-content-type-options"] for answer in answers} == {"nosniff"}


class TestErrors:
    def test_an_unknown_path_is_404(self, server: Server) -> None:
        error = error_of(request(server, "GET", "/v1/nowhere/<b>"), 404)

        assert error["code"] == "not_found"
        assert error["type"] == "invalid_request_error"

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    def test_a_wrong_method_is_405_and_names_the_right_one(
        self, server: Server, method: str
    ) -> None:
        answer = request(server, method, ENDPOINT)

        assert error_of(answer, 405)["code"] == "method_not_allowed"
        assert "POST" in answer.headers["allow"]

    @pytest.mark.parametrize("megabytes", [1.5, 3, 64], ids=str)
    def test_an_upload_above_the_limit_is_413_and_the_client_can_read_it(
        self, guarded: Server, megabytes: float
    ) -> None:
        # 1.5 MB pass waitress and are refused by Flask; the others by waitress, which wants none
        # of them. http.client sends all before it reads, and fails where it cannot.
        connection = http.client.HTTPConnection(
            guarded.url.removeprefix("http://"), timeout=PATIENCE_S
        )
        headers = {
            "Authorization": "Bearer first-key",
            "Content-Type": "multipart/form-data; boundary=sep",
        }
        with closing(connection):
            connection.request("POST", ENDPOINT, multipart(bytes(int(megabytes * MB))), headers)
            answer = connection.getresponse()
            error = json.load(answer)["error"]

        assert answer.status == 413
        assert answer.headers["Content-Type"] == "application/json"
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["param"], error["code"]) == ("file", "upload_too_large")
        assert f"({MB}) exceeded" in error["message"]
        assert "bytes sent" in error["message"]

    def test_a_chunked_upload_above_the_limit_is_413(self, guarded: Server) -> None:
        body = multipart(bytes(40 * MB))
        answer = request(
            guarded,
            "POST",
            ENDPOINT,
            content=(body[start : start + MB] for start in range(0, len(body), MB)),
            headers={
                "Authorization": "Bearer first-key",
                "Content-Type": "multipart/form-data; boundary=sep",
            },
        )

        assert error_of(answer, 413)["param"] == "file"
        # Gone before the answer, and so at once.
        assert uploads(guarded) == []

    def test_an_upload_without_a_key_is_removed_before_its_response(self, guarded: Server) -> None:
        answer = request(guarded, "POST", ENDPOINT, files={"file": ("long.wav", bytes(MB // 2))})

        error_of(answer, 401)
        assert uploads(guarded) == []

    def test_a_client_that_asks_first_is_refused_without_sending(self, guarded: Server) -> None:
        head = post_head(guarded, f"Content-Length: {64 * MB}", "Expect: 100-continue")
        with connect(guarded) as connection:
            connection.sendall(head)
            answer = _read_to_end(connection)

        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"upload_too_large" in answer

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"how are you\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: x\r\nBig: " + bytes(300_000) + b"\r\n\r\n", 431),
        ],
        ids=["no request", "content length", "chunk size", "header", "long header"],
    )
    def test_bytes_that_are_no_request_are_refused_in_the_same_shape(
        self, server: Server, sent: bytes, status: int
    ) -> None:
        with connect(server) as connection:
            connection.sendall(sent)
            head, _, body = _read_to_end(connection).partition(b"\r\n\r\n")

        assert head.split()[1] == str(status).encode()
        assert b"Content-Type: application/json" in head
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


class TestApiKey:
    @pytest.mark.parametrize("key", ["first-key", "second-key", "  first-key"])
    def test_each_key_opens(self, guarded: Server, key: str) -> None:
        header = {"Authorization": f"Bearer {key}"}
        answer = request(guarded, "POST", ENDPOINT, files={"file": b""}, headers=header)

        # Only a request that was admitted gets the error for the empty file.
        assert "empty" in error_of(answer, 400)["message"]

    @pytest.mark.parametrize(
        ("header", "word"),
        [
            (None, "didn't provide"),
            ("Bearer", "didn't provide"),
            ("Basic Zmlyc3Qta2V5", "didn't provide"),
            ("Bearer wrong", "Incorrect"),
            ("Bearer first-key,second-key", "Incorrect"),
            ("Bearer first-ke", "Incorrect"),
            ("Bearer clé", "Incorrect"),
        ],
    )
    def test_no_other_does(self, guarded: Server, header: str | None, word: str) -> None:
        headers = {"Authorization": header.encode()} if header else {}
        error = error_of(request(guarded, "POST", ENDPOINT, headers=headers), 401)

        assert word in error["message"]
        assert error["code"] == "invalid_api_key"

    @pytest.mark.parametrize("path", ["/", "/health", "/static/app.js"])
    def test_page_and_health_need_none(self, guarded: Server, path: str) -> None:
        assert request(guarded, "GET", path).status_code == 200

    def test_keys_are_not_in_the_log(self, guarded: Server) -> None:
        assert "first-key" not in guarded.log.read_text()


class TestManyClients:
    def test_each_of_16_at_once_gets_the_text_of_its_own_recording(
        self, server: Server, clips: list[Clip]
    ) -> None:
        chosen = clips[:16]
        with ThreadPoolExecutor(len(chosen)) as executor:
            answers = list(executor.map(lambda clip: transcribe(server, clip.path), chosen))

        assert [answer.status_code for answer in answers] == [200] * len(chosen)
        for clip, answer in zip(chosen, answers, strict=True):
            text = answer.json()["text"]
            nearest = min(clips, key=lambda other: jiwer.wer(other.text, text))
            assert nearest.text == clip.text
            assert jiwer.wer(clip.text, text) < 0.2


class TestFullQueueAndStop:
    """One server: busy, then with a full queue, then stopping."""

    def test_one_request_too_many_is_503_and_sigterm_ends_all_within_10_s(
        self, tmp_path: Path, hour: Path, clip: Clip
    ) -> None:
        outcome: list[int | httpx.HTTPError] = []
        with running_server(
            tmp_path, APP_THREADS="1", MAX_QUEUED_REQUESTS="0", STOP_GRACE_SECONDS="0"
        ) as server:

            def send() -> None:
                try:
                    outcome.append(transcribe(server, hour).status_code)
                except httpx.HTTPError as error:
                    outcome.append(error)

            first = threading.Thread(target=send)
            first.start()
            wait_until(
                lambda: server.health()["queue"]["active_requests"],
                what="the first request is at work",
            )

            answer = transcribe(server, clip.path)
            assert first.is_alive(), "it did not wait for the first to end"
            error = error_of(answer, 503)
            assert (error["code"], error["type"]) == ("queue_full", "server_error")
            assert 1 <= int(answer.headers["retry-after"]) <= 60

            # A load in progress cannot be interrupted.
            wait_until(
                lambda: server.health()["model"]["state"] == "ready" and waiting_chunks(server),
                what="the model is at work",
            )
            decoders = ffmpegs(server)
            assert decoders

            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=PATIENCE_S) == 0
            first.join(timeout=PATIENCE_S)

            # The first did not get a success response.
            assert isinstance(outcome[0], httpx.HTTPError) or outcome[0] == 503
            assert uploads(server) == []
            assert not any(decoder.is_running() for decoder in decoders)
            assert "Traceback" not in server.log.read_text()


class TestStart:
    def test_sigterm_ends_an_idle_server_at_once_with_status_0(self, tmp_path: Path) -> None:
        # Longer than the test: nothing may be waited for.
        with running_server(tmp_path, STOP_GRACE_SECONDS="600") as server:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=PATIENCE_S) == 0

    def test_a_port_in_use_is_one_clear_line(self, server: Server, tmp_path: Path) -> None:
        port = server.url.rpartition(":")[2]
        outcome = _start(tmp_path, PORT=port, HOST="127.0.0.1")

        assert outcome.returncode == 2
        lines = outcome.stderr.splitlines()
        assert len(lines) == 1
        assert f"PORT='{port}'" in lines[0]
        assert "already in use" in lines[0]

    def test_an_address_of_another_machine_is_one_clear_line(self, tmp_path: Path) -> None:
        outcome = _start(tmp_path, PORT="0", HOST="192.0.2.1")

        assert outcome.returncode == 2
        assert re.fullmatch(r"app\.py: HOST='192\.0\.2\.1' .* is not .*\n", outcome.stderr)

    def test_a_name_with_several_addresses_can_be_listened_on(self, tmp_path: Path) -> None:
        with running_server(tmp_path, HOST="localhost") as server:
            assert server.health()["status"] == "ok"


def _start(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a server that cannot start."""
    settings = {"DEMO_MODEL": "grammar", "TEMP_UPLOADS_DIR": str(folder)} | environ
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _read_to_end(connection: socket.socket) -> bytes:
    """Read until the server closes the connection, which it does within the timeout."""
    received = b""
    while block := connection.recv(65536):
        received += block
    return received
