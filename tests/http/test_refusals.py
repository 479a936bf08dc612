"""Requests are rejected by their head: no body is stored, and the client gets the response."""

from __future__ import annotations

import http.client
import json
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import openai
import pytest
from conftest import PATIENCE_S, Clip, Server, running_server, wait_until
from http_helpers import (
    CURL,
    ENDPOINT,
    connect,
    error_of,
    multipart,
    needs_curl,
    post_head,
    request,
    transcribe,
    uploads,
)

pytestmark = pytest.mark.integration

MB = 1024 * 1024
PATHS = [ENDPOINT, "/v1/audio/translations", "/asr", "/detect-language", "/v1/jobs"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two keys; the second soon exceeds its rate."""
    with running_server(
        tmp_path_factory.mktemp("guarded"), API_KEY="key,busy", RATE_LIMIT="300/hour"
    ) as started:
        yield started
    assert "Traceback" not in started.log.read_text()


@pytest.fixture(autouse=True)
def stores_nothing(guarded: Server) -> Iterator[None]:
    yield
    assert uploads(guarded) == []


def _head(server: Server, *headers: str, path: str = ENDPOINT, size: int = 32 * MB) -> bytes:
    head = post_head(server, f"Content-Length: {size}", *headers)
    return head.replace(ENDPOINT.encode(), path.encode(), 1)


def _answer(connection: socket.socket) -> tuple[bytes, dict[str, str | None]]:
    """Read a response; return its head and its error."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    body = answer.read()
    return str(answer.status).encode(), json.loads(body)["error"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1000, 32 * MB], ids=["short", "long"])
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)], ids=["sends", "asks first"])
def test_a_wrong_key_is_refused_before_the_body_is_sent(
    guarded: Server, path: str, size: int, expect: tuple[str, ...]
) -> None:
    head = _head(guarded, "Authorization: Bearer wrong", *expect, path=path, size=size)
    with connect(guarded) as connection:
        connection.sendall(head)
        status, error = _answer(connection)

    assert status == b"401"
    assert error["code"] == "invalid_api_key"


def test_nothing_of_a_body_without_a_key_is_written(guarded: Server) -> None:
    with connect(guarded) as connection:
        connection.sendall(_head(guarded))
        # As a client that does not read before it has sent everything.
        body = multipart(bytes(32 * MB))[: 32 * MB]
        sizes: set[int] = set()
        sender = threading.Thread(target=connection.sendall, args=(body,))
        sender.start()
        while sender.is_alive():
            sizes |= {upload.stat().st_size for upload in uploads(guarded)}
        status, _ = _answer(connection)

    assert status == b"401"
    assert sizes == set()


def test_a_short_body_is_dropped_and_the_connection_serves_the_next_request(
    guarded: Server,
) -> None:
    body = multipart(bytes(1000))
    with closing(http.client.HTTPConnection(guarded.url.removeprefix("http://"))) as connection:
        for _ in range(2):
            connection.putrequest("POST", ENDPOINT)
            connection.putheader("Content-Type", "multipart/form-data; boundary=sep")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with connection.getresponse() as answer:
                assert answer.status == 401
                assert answer.headers["Connection"] is None
                answer.read()
            assert connection.sock is not None
            connection.send(body)
        connection.request("GET", "/health/simple")
        assert connection.getresponse().read() == b"ok\n"


@pytest.mark.parametrize("size", [20_000, 2 * MB], ids=["short", "long"])
def test_a_client_that_wants_its_connection_closed_may_send_its_body_to_the_end(
    guarded: Server, size: int
) -> None:
    piece = size // 10
    with connect(guarded) as connection:
        connection.sendall(_head(guarded, "Connection: close", size=size) + bytes(piece))
        # The answer is there, and the connection closed as far as the server is concerned.
        assert select.select([connection], [], [], 30)[0]
        for _ in range(9):
            connection.sendall(bytes(piece))
            time.sleep(0.02)
        status, _ = _answer(connection)

    assert status == b"401"


def test_a_client_above_its_rate_is_refused_before_the_body_is_sent(guarded: Server) -> None:
    headers = {"Authorization": "Bearer busy"}
    statuses = {
        request(guarded, "POST", ENDPOINT, headers=headers, files={"file": b""}).status_code
        for _ in range(300)
    }
    with connect(guarded) as connection:
        connection.sendall(_head(guarded, "Authorization: Bearer busy"))
        status, error = _answer(connection)

    assert statuses == {400}
    assert status == b"429"
    assert error["code"] == "rate_limit_exceeded"


def test_a_full_queue_refuses_before_the_body_is_sent(
    tmp_path: Path, hour: Path, guarded: Server
) -> None:
    with running_server(tmp_path, APP_THREADS="1", MAX_QUEUED_REQUESTS="0") as server:
        body = multipart(hour.read_bytes())
        with connect(server) as first:
            first.sendall(post_head(server, f"Content-Length: {len(body)}") + body)
            wait_until(
                lambda: server.health()["queue"]["active_requests"],
                what="the first request is at work",
            )
            for path in PATHS[:4]:
                with connect(server) as second:
                    second.sendall(_head(server, path=path))
                    status, error = _answer(second)
                    assert (status, error["code"]) == (b"503", "queue_full"), path
            assert len(uploads(server)) == 1


@needs_curl
@pytest.mark.parametrize("options", [(), ("-H", "Expect:")], ids=["asks first", "sends"])
def test_curl_shows_the_refusal_of_a_large_upload(
    guarded: Server, tmp_path: Path, options: tuple[str, ...]
) -> None:
    recording = tmp_path / "long.wav"
    recording.write_bytes(bytes(64 * MB))
    done = subprocess.run(
        [*CURL, *options, f"{guarded.url}{ENDPOINT}", "-F", f"file=@{recording}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert json.loads(done.stdout)["error"]["code"] == "invalid_api_key", done.stderr


def test_openais_sdk_raises_its_own_error_for_a_large_upload(guarded: Server) -> None:
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError, match="Incorrect API key"),
    ):
        client.audio.transcriptions.create(model="whisper-1", file=("long.wav", bytes(64 * MB)))


def test_a_client_that_asks_first_sends_its_body_once_it_is_admitted(
    server: Server, clips: list[Clip], guarded: Server
) -> None:
    body = multipart(clips[3].path.read_bytes())
    head = post_head(server, f"Content-Length: {len(body)}", "Expect: 100-continue")
    with connect(server) as connection, connection.makefile("rb") as answer:
        connection.sendall(head)
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answer.readline() == b"\r\n"
        connection.sendall(body)
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


def test_requests_that_are_sent_one_behind_the_other_are_answered_in_their_order(
    server: Server, clips: list[Clip], guarded: Server
) -> None:
    pair = clips[3:5]
    with connect(server) as connection:
        for clip in pair:
            body = multipart(clip.path.read_bytes())
            connection.sendall(post_head(server, f"Content-Length: {len(body)}") + body)
        connection.sendall(b"GET /health/simple HTTP/1.1\r\nHost: here\r\n\r\n")
        texts = []
        stream = connection.makefile("rb")
        for _ in range(3):
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            texts.append(stream.read(length))

    assert [json.loads(text)["text"] for text in texts[:2]] == [clip.text for clip in pair]
    assert texts[2] == b"ok\n"


SLOW_DISK = """
import os, sys, time
import app
import parakeet_api.http.upload_form as upload_form

create = upload_form.create_upload

class Slow:
    def __init__(self, file):
        self._file = file

    def write(self, data):
        # Until the test ends the disk's fault.
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

upload_form.create_upload = lambda folder: Slow(create(folder))
del sys.argv[2:]
os._exit(app.main([]))
"""


def test_a_disk_that_is_stuck_does_not_hold_health_and_nothing_is_lost(
    tmp_path: Path, clips: list[Clip], guarded: Server
) -> None:
    mended = tmp_path / "mended"
    texts: list[str] = []
    with running_server(tmp_path, ("-c", SLOW_DISK, str(mended))) as server, ExitStack() as stack:

        def send(clip: Clip) -> None:
            texts.append(transcribe(server, clip.path).json()["text"])

        senders = [threading.Thread(target=send, args=(clip,)) for clip in clips[:6]]
        for sender in senders:
            sender.start()
        # More than a server may hold in memory for it.
        large = stack.enter_context(connect(server))
        large.settimeout(1)
        large.sendall(_head(server, size=64 * MB))
        sent = 0
        with suppress(TimeoutError):
            while sent < 32 * MB:
                sent += large.send(multipart(bytes(MB)))
        wait_until(lambda: len(uploads(server)) == 7, what="all are being received")

        # Each would wait as long as the disk does.
        assert all(server.health()["status"] == "ok" for _ in range(20))
        assert request(server, "GET", "/health/simple").text == "ok\n"
        assert texts == []

        mended.touch()
        for sender in senders:
            sender.join(PATIENCE_S)

    assert sorted(texts) == sorted(clip.text for clip in clips[:6])
    assert sent < 32 * MB


FULL_DISK = """
import errno, os, sys
import app
import parakeet_api.http.upload_form as upload_form

create = upload_form.create_upload

class Full:
    def __init__(self, file):
        self._file = file

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self._file, name)

upload_form.create_upload = lambda folder: Full(create(folder))
os._exit(app.main([]))
"""


def test_an_upload_that_the_disk_has_no_room_for_is_refused(
    tmp_path: Path, guarded: Server
) -> None:
    with running_server(tmp_path, ("-c", FULL_DISK)) as server:
        answer = request(server, "POST", ENDPOINT, files={"file": ("long.wav", bytes(32 * MB))})

        error = error_of(answer, 503)
        assert error["message"].startswith("The server's disk is full")
        assert answer.headers["retry-after"] == "5"
        assert uploads(server) == []


def test_threads_of_many_uploads_end_with_them(tmp_path: Path, guarded: Server) -> None:
    with running_server(tmp_path) as server, ExitStack() as stack:

        def threads() -> int:
            return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))

        server.health()
        before = threads()
        for _ in range(200):
            stack.enter_context(connect(server)).sendall(_head(server) + b"--sep\r\n")
        wait_until(lambda: threads() >= before + 190, what="all are received")
        assert server.health()["status"] == "ok"
        stack.close()
        wait_until(lambda: threads() <= before + 4, what="their threads end")
