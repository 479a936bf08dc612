"""The process that receives clips, run in a thread; the test acts as the process with the model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, wait_until
from http_helpers import multipart, wav

from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.http import clip_front
from parakeet_api.http.clip_front import Front
from parakeet_api.http.clip_link import (
    LinkClosedError,
    Values,
    pack_words,
    receive,
    receive_socket,
    send,
    unpack_words,
)
from parakeet_api.http.clip_transcriber import FrontOptions
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE, Token, Word

HEARD = [Word("Hello", 0.1, 0.4, (Token(7, " Hello", -0.1),)), Word("there.", 0.5, 0.9)]
SOUND = wav(np.random.default_rng(1).normal(0, 0.1, SAMPLE_RATE))


@dataclass
class Owner:
    """A fake of the process with the model."""

    address: tuple[str, int]
    control: socket.socket
    received: list[tuple[Values, int]] = field(default_factory=list)
    """Requests for recognition, with their audio bytes."""
    passed_on: list[tuple[socket.socket, Values, bytes]] = field(default_factory=list)
    answers: Callable[[Values], Values] = lambda message: (
        ("model", "parakeet", "parakeet.nemo", None, ["en"])
        if message[0] == "describe"
        else ("words", pack_words(HEARD), [(1.0, 2.5)])
    )
    let: threading.Event = field(default_factory=threading.Event)
    """Recognition waits for this event."""
    closed_links: int = 0

    def serve(self) -> None:
        assert receive(self.control)[0] == ("ready",)
        try:
            while True:
                sock, (kind, address), data = receive_socket(self.control)
                if kind == "link":
                    threading.Thread(target=self._serve_link, args=(sock,), daemon=True).start()
                else:
                    self.passed_on.append((sock, address, bytes(data)))
        except LinkClosedError:
            return

    def _serve_link(self, link: socket.socket) -> None:
        with link, suppress(LinkClosedError):
            while True:
                message, data = receive(link)
                if message[0] == "recognize":
                    self.received.append((message, len(data)))
                    assert self.let.wait(PATIENCE_S)
                send(link, self.answers(message))
        self.closed_links += 1

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_S)


@contextmanager
def running(folder: Path, *, threads: int = 4, **environ: str) -> Iterator[Owner]:
    """Run a front until the block ends; settings are keywords."""
    settings = Settings.from_env({"TEMP_UPLOADS_DIR": str(folder), **environ})
    options = FrontOptions(
        settings=settings, ffmpeg=find_ffmpeg(), longest_chunk_s=30, threads=threads
    )
    control, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, control:
        owner = Owner(listener.getsockname(), control)
        owner.let.set()
        front = Front(listener.dup(), theirs, options)
        threads_ = [threading.Thread(target=task) for task in (front.run, owner.serve)]
        for thread in threads_:
            thread.start()
        try:
            yield owner
        finally:
            owner.let.set()
            control.shutdown(socket.SHUT_RDWR)
            for thread in threads_:
                thread.join()
            for sock, *_ in owner.passed_on:
                sock.close()
            theirs.close()
    assert list(folder.iterdir()) == []


def request(
    content: bytes = SOUND,
    *,
    head: str = "",
    line: str = "POST /v1/audio/transcriptions HTTP/1.1",
    body: bytes | None = None,
    **fields: str,
) -> bytes:
    body = multipart(content, **fields) if body is None else body
    lines = [line, "Host: here", "Content-Type: multipart/form-data; boundary=sep"]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *head.splitlines(), "", ""]).encode() + body


def answer_on(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """Read one response: its first line, headers and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers["Content-Length"]):
        body += connection.recv(65_536)
    return first, headers, body


def test_a_clip_is_answered_with_the_models_words(tmp_path: Path) -> None:
    with running(tmp_path) as owner, owner.connect() as client:
        client.sendall(request(response_format="text", model="whisper-1"))
        first, headers, body = answer_on(client)

        assert (first, body) == ("HTTP/1.1 200 OK", b"Hello there.\n")
        assert headers["X-Parakeet-Model"] == "parakeet.nemo"
        ((message, size),) = owner.received
        assert message[:2] == ("recognize", "whisper-1")
        assert message[3:] == ("127.0.0.1", "/v1/audio/transcriptions", "en")
        assert headers["X-Request-Id"] == message[2]
        assert size == 2 * SAMPLE_RATE
        assert owner.passed_on == []


def test_a_connection_serves_one_clip_after_the_other_until_it_is_to_close(tmp_path: Path) -> None:
    with running(tmp_path) as owner, owner.connect() as client:
        for _ in range(3):
            client.sendall(request(head="X-Request-Id: mine"))
            _, headers, _ = answer_on(client)
            assert headers["X-Request-Id"] == "mine"
        client.sendall(request(head="Connection: close"))
        _, headers, _ = answer_on(client)

        assert headers["Connection"] == "close"
        assert client.recv(1) == b""
        assert len(owner.received) == 4


def test_a_clip_may_come_in_pieces(tmp_path: Path) -> None:
    sent = request()
    with running(tmp_path) as owner, owner.connect() as client:
        for start in range(0, len(sent), 5000):
            client.sendall(sent[start : start + 5000])
        assert answer_on(client)[0] == "HTTP/1.1 200 OK"


LONG = wav(np.random.default_rng(1).normal(0, 0.1, 31 * SAMPLE_RATE))
NOT_FOR_HERE = {
    "another path": request(line="POST /v1/audio/translations HTTP/1.1"),
    "another method": b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n",
    "an older protocol": request(line="POST /v1/audio/transcriptions HTTP/1.0"),
    "a query": request(line="POST /v1/audio/transcriptions?a=b HTTP/1.1"),
    "no HTTP": b"\x16\x03\x01\r\n\r\n",
    "a head without end": b"POST " + b"x" * 20_000,
    "a page of another origin": request(head="Origin: http://there"),
    "a header twice": request(head="X-A: 1\nX-A: 2"),
    "a header on two lines": request(head="X-A: 1\n 2"),
    "no header": request(head="nonsense"),
    "a client that asks first": request(head="Expect: 100-continue"),
    "a length that is none": request(head="", body=b"").replace(b"Length: 0", b"Length: +0"),
    "another body": request(body=b"{}").replace(b"multipart/form-data", b"application/json"),
    "a body without boundary": request().replace(b"; boundary=sep", b""),
    "a broken form": request(body=b"--sep\r\nnonsense"),
    "no file": request(body=b"--sep--\r\n"),
    "an empty file": request(b""),
    "no sound": request(b"nonsense" * 100),
    "more than a clip": request(LONG),
    "two requests at once": request() * 2,
    "a stream": request(stream="true"),
    "a wrong parameter": request(response_format="pdf"),
    "another language": request(language="de"),
    "a large body": request(body=b"x" * 5_000_000)[:1000],
}


@pytest.mark.parametrize("sent", NOT_FOR_HERE.values(), ids=NOT_FOR_HERE)
def test_what_is_no_simple_clip_is_passed_on_with_all_that_was_read(
    tmp_path: Path, sent: bytes
) -> None:
    with running(tmp_path) as owner, owner.connect() as client:
        client.sendall(sent)
        wait_until(lambda: len(owner.passed_on) == 1)

        ((sock, address, received),) = owner.passed_on
        assert address == client.getsockname()
        while len(received) < len(sent):
            received += sock.recv(65_536)
        assert received == sent
        # The client is connected to whoever has it now.
        sock.sendall(b"here")
        assert client.recv(10) == b"here"


@pytest.mark.parametrize(
    ("head", "is_passed_on"),
    [("", True), ("Authorization: Bearer wrong", True), ("Authorization: Bearer good", False)],
)
def test_only_those_with_a_key_are_answered_here(
    tmp_path: Path, head: str, is_passed_on: bool
) -> None:
    with running(tmp_path, API_KEY="other,good") as owner, owner.connect() as client:
        client.sendall(request(head=head))
        wait_until(lambda: bool(owner.passed_on or owner.received))

        assert bool(owner.passed_on) == is_passed_on
        if not is_passed_on:
            assert answer_on(client)[0] == "HTTP/1.1 200 OK"


def test_what_is_above_the_uploads_limit_is_passed_on(tmp_path: Path) -> None:
    with running(tmp_path, MAX_UPLOAD_MB="0.01") as owner, owner.connect() as client:
        client.sendall(request())
        wait_until(lambda: len(owner.passed_on) == 1)

        assert owner.received == []


@pytest.mark.parametrize("failing", ["describe", "recognize"])
def test_what_the_model_fails_at_is_passed_on(tmp_path: Path, failing: str) -> None:
    with running(tmp_path) as owner, owner.connect() as client:
        good = owner.answers
        owner.answers = lambda message: ("failed", "x") if message[0] == failing else good(message)
        client.sendall(request())
        wait_until(lambda: len(owner.passed_on) == 1)

        assert owner.passed_on[0][2] == request()


def test_the_model_process_is_notified_of_a_disconnected_client(tmp_path: Path) -> None:
    with running(tmp_path) as owner:
        owner.let.clear()
        with owner.connect() as client:
            client.sendall(request())
            wait_until(lambda: len(owner.received) == 1)
        wait_until(lambda: list(tmp_path.iterdir()) == [])
        owner.let.set()
        wait_until(lambda: owner.closed_links == 1)

        assert owner.passed_on == []


def test_clips_beyond_the_threads_are_passed_on(tmp_path: Path) -> None:
    with running(tmp_path, threads=1) as owner, owner.connect() as one, owner.connect() as two:
        owner.let.clear()
        one.sendall(request())
        wait_until(lambda: len(owner.received) == 1)
        two.sendall(request())
        wait_until(lambda: len(owner.passed_on) == 1)
        owner.let.set()

        assert answer_on(one)[0] == "HTTP/1.1 200 OK"


def test_what_does_not_fit_the_memory_for_requests_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = request()
    monkeypatch.setattr(clip_front, "_MAX_HELD_BYTES", 2 * len(sent))

    with running(tmp_path) as owner, owner.connect() as one, owner.connect() as other:
        # Answered requests and forwarded connections are released.
        for _ in range(3):
            one.sendall(sent)
            assert answer_on(one)[0] == "HTTP/1.1 200 OK"
        owner.let.clear()
        one.sendall(sent)
        wait_until(lambda: len(owner.received) == 4)
        other.sendall(request(SOUND + bytes(len(sent))))
        wait_until(lambda: len(owner.passed_on) == 1)
        owner.let.set()
        assert answer_on(one)[0] == "HTTP/1.1 200 OK"
        one.sendall(sent)
        assert answer_on(one)[0] == "HTTP/1.1 200 OK"


def test_slow_and_idle_connections_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SLOW_S", "_IDLE_S", "_TICK_S"):
        monkeypatch.setattr(clip_front, name, 0.05)

    with running(tmp_path) as owner, owner.connect() as idle, owner.connect() as slow:
        slow.sendall(request()[:100])
        wait_until(lambda: len(owner.passed_on) == 2)

        received = {address: data for _, address, data in owner.passed_on}
        assert received == {idle.getsockname(): b"", slow.getsockname(): request()[:100]}


@pytest.mark.parametrize(
    ("trusted", "address"), [("", "127.0.0.1"), ("127.0.0.1", "192.0.2.7"), ("*", "192.0.2.7")]
)
def test_a_clients_address_is_what_trusted_proxies_say(
    tmp_path: Path, trusted: str, address: str
) -> None:
    with running(tmp_path, TRUSTED_PROXY=trusted) as owner, owner.connect() as client:
        client.sendall(request(head="X-Forwarded-For: 198.51.100.1, 192.0.2.7"))
        answer_on(client)

        assert owner.received[0][0][3] == address


def test_words_are_the_same_behind_the_link() -> None:
    tagged = [
        replace(word, language="de", from_keyword=number % 2 == 0)
        for number, word in enumerate(HEARD)
    ]
    one, other = socket.socketpair()
    with one, other:
        send(one, ("words", pack_words(tagged)), b"abc")
        (kind, *packed), data = receive(other)

    values: Any = packed[0]
    assert (kind, bytes(data)) == ("words", b"abc")
    assert unpack_words(values) == tagged
