"""What the head of a request is refused for is answered before its body is taken."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import SPEECH, wait_for
from in_process import Served, served

CLIP = SPEECH / "clip-000.flac"
PART = b"--sep\r\nContent-Disposition: form-data; name=file; filename=a.wav\r\n\r\n" + bytes(
    300_000
)
WHOLE = 32_000_000
"""Bytes that each head claims; a hundredth of them is sent."""


@contextmanager
def answer_to(
    served: Served, *lines: str, path: str = "/v1/audio/transcriptions", body: bytes = PART
) -> Iterator[tuple[int, dict[str, Any], socket.socket]]:
    """Send a head and the beginning of its body; give the answer, with the open connection."""
    url = httpx.URL(served.server.url)
    head = [
        f"POST {path} HTTP/1.1",
        "Host: here",
        "Content-Type: multipart/form-data; boundary=sep",
        f"Content-Length: {WHOLE}",
        *lines,
    ]
    with socket.create_connection((url.host, url.port or 0), timeout=20) as client:
        client.sendall("\r\n".join([*head, "", ""]).encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(65536)
        first, _, rest = answer.partition(b"\r\n\r\n")
        length = int(first.lower().partition(b"content-length: ")[2].split()[0])
        while len(rest) < length:
            rest += client.recv(65536)
        yield int(first.split()[1]), json.loads(rest)["error"], client


def uploads(served: Served) -> list[Path]:
    return list(served.server.uploads.glob("*"))


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, API_KEY="secret", DATA_DIR=str(tmp_path / "data")) as running:
        running.server.uploads.mkdir(exist_ok=True)
        yield running


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/audio/transcriptions", "/asr"])
def test_a_wrong_key_is_refused_before_the_body_is_stored(locked: Served, path: str) -> None:
    with answer_to(locked, "Authorization: Bearer wrong", path=path) as (status, error, _):
        assert status == 401
        assert error["message"] == "Incorrect API key provided."
        assert uploads(locked) == []


def test_an_address_that_nobody_serves_is_refused_before_the_body_is_stored(
    locked: Served,
) -> None:
    with answer_to(locked, path="/v1/nothing") as (status, _, _):
        assert status == 404
        assert uploads(locked) == []


def test_a_client_that_waits_to_be_asked_for_the_body_is_refused_instead(locked: Served) -> None:
    with answer_to(locked, "Expect: 100-continue", body=b"") as (status, _, _):
        assert status == 401


def test_what_a_refused_client_still_sends_is_no_other_request(locked: Served) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"

    with answer_to(locked, body=request) as (status, _, client):
        client.sendall(request)
        assert status == 401
        client.settimeout(20)
        assert client.recv(1000) == b""


def test_a_full_queue_is_told_before_the_body_is_stored(tmp_path: Path) -> None:
    with served(
        tmp_path, APP_THREADS="1", MAX_QUEUED_REQUESTS="0", DATA_DIR=str(tmp_path / "data")
    ) as running:
        running.server.uploads.mkdir(exist_ok=True)
        with running.services.admission.slot(), answer_to(running) as (status, error, _):
            assert (status, error["code"]) == (503, "queue_full")
            assert uploads(running) == []


def test_an_upload_is_counted_once_and_refused_by_its_head_above_the_rate(tmp_path: Path) -> None:
    with served(tmp_path, RATE_LIMIT="3/hour", DATA_DIR=str(tmp_path / "data")) as running:
        running.server.uploads.mkdir(exist_ok=True)
        url = f"{running.server.url}/v1/audio/transcriptions"
        statuses = [
            httpx.post(url, files={"file": ("a.txt", b"no sound")}, timeout=60).status_code
            for _ in range(3)
        ]
        assert statuses == [400, 400, 400]
        with answer_to(running) as (status, error, _):
            assert (status, error["code"]) == (429, "rate_limit_exceeded")
            assert uploads(running) == []


def test_a_welcome_upload_is_stored_while_it_arrives(locked: Served) -> None:
    url = httpx.URL(locked.server.url)
    with socket.create_connection((url.host, url.port or 0)) as client:
        client.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: here\r\n"
            b"Authorization: Bearer secret\r\n"
            b"Content-Type: multipart/form-data; boundary=sep\r\n"
            b"Content-Length: 400000\r\n\r\n" + PART
        )
        wait_for(lambda: len(uploads(locked)) == 1)
    deadline = time.monotonic() + 10
    while uploads(locked) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert uploads(locked) == []
