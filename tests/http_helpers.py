"""Requests to a running server, and sounds to send."""

from __future__ import annotations

import io
import json
import shutil
import socket
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from conftest import PATIENCE_S, Server
from numpy.typing import NDArray

from parakeet_api.transcript import SAMPLE_RATE

ENDPOINT = "/v1/audio/transcriptions"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")

Fields = Mapping[str, str | Sequence[str]]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
CURL = ("curl", "--silent", "--show-error", "--no-buffer", "--noproxy", "*")


def request(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request on a connection of its own; no proxy of the machine's is used."""
    with httpx.Client(trust_env=False, verify=False, timeout=PATIENCE_S) as client:
        return client.request(method, f"{server.url}{path}", **options)


def transcribe(
    server: Server,
    content: bytes | Path,
    fields: Fields | None = None,
    *,
    name: str = "recording.bin",
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Post a recording and form fields, as a client would."""
    body = content.read_bytes() if isinstance(content, Path) else content
    return request(
        server, "POST", ENDPOINT, files={"file": (name, body)}, data=fields, headers=headers
    )


@contextmanager
def streamed(server: Server, recording: Path, fields: Mapping[str, str]) -> Iterator[Iterator[str]]:
    """Post a recording for a stream; give its lines as they come."""
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as client,
        recording.open("rb") as file,
        client.stream(
            "POST",
            f"{server.url}{ENDPOINT}",
            files={"file": file},
            data={"stream": "true", **fields},
        ) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield answer.iter_lines()


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read the events among a stream's lines."""
    return (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that a response has OpenAI's error format; return the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["type"] in {"invalid_request_error", "server_error", "requests"}
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return error


def waiting_chunks(server: Server) -> int:
    count: int = server.health()["queue"]["waiting_chunks"]
    return count


def uploads(server: Server) -> list[Path]:
    """List the requests' files; those of jobs are in a folder of their own."""
    return [path for path in server.uploads.iterdir() if path.is_file()]


def ffmpegs(server: Server) -> list[psutil.Process]:
    """List the server's child processes; it has no other kind."""
    return psutil.Process(server.process.pid).children(recursive=True)


def is_idle(server: Server) -> bool:
    """Tell whether nothing of any request is left: no place, no chunk, no decoder, no file."""
    return not (any(server.health()["queue"].values()) or ffmpegs(server) or uploads(server))


def connect(server: Server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def post_head(server: Server, *headers: str) -> bytes:
    """Return the head of a transcription request whose body is by `multipart`."""
    lines = [
        f"POST {ENDPOINT} HTTP/1.1",
        f"Host: {server.url.removeprefix('http://')}",
        "Content-Type: multipart/form-data; boundary=sep",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def multipart(content: bytes, **fields: str) -> bytes:
    """Return the body of a transcription request."""
    parts = [("file", 'filename="long.ogg"', content)]
    parts += [(name, "", value.encode()) for name, value in fields.items()]
    return (
        b"".join(
            f'--sep\r\nContent-Disposition: form-data; name="{name}"; {more}\r\n\r\n'.encode()
            + value
            + b"\r\n"
            for name, more, value in parts
        )
        + b"--sep--\r\n"
    )


def post(server: Server, content: bytes, **fields: str) -> socket.socket:
    """Send a whole transcription request on a connection of its own; nothing is read of it."""
    body = multipart(content, **fields)
    connection = connect(server)
    connection.sendall(post_head(server, f"Content-Length: {len(body)}") + body)
    return connection


def wav(samples: NDArray[np.float64]) -> bytes:
    """Make a wav file of samples from -1 to 1."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return target.getvalue()
