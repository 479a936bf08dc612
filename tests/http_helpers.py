"""Requests to a running server, and sounds to send."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from conftest import Server
from numpy.typing import NDArray

from parakeet_api.transcript import SAMPLE_RATE

ENDPOINT = "/v1/audio/transcriptions"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")

Fields = Mapping[str, str | Sequence[str]]


def request(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request on a connection of its own; no proxy of the machine's is used."""
    with httpx.Client(trust_env=False, verify=False, timeout=120) as client:
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


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that a response has OpenAI's error shape; give what it says."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["type"] in {"invalid_request_error", "server_error"}
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return error


def wait_until(condition: Callable[[], object], *, within_s: float, what: str) -> float:
    """Wait for a condition; give the seconds it took."""
    started = time.monotonic()
    while not condition():
        elapsed_s = time.monotonic() - started
        assert elapsed_s < within_s, f"{what}: not within {within_s} s"
        time.sleep(0.02)
    return time.monotonic() - started


def waiting_chunks(server: Server) -> int:
    count: int = server.health()["queue"]["waiting_chunks"]
    return count


def uploads(server: Server) -> list[Path]:
    """List the requests' files; those of jobs are in a folder of their own."""
    return [path for path in server.uploads.iterdir() if path.is_file()]


def ffmpegs(server: Server) -> list[psutil.Process]:
    """List the server's child processes; it has no other kind."""
    return psutil.Process(server.process.pid).children(recursive=True)


def wav(samples: NDArray[np.float64]) -> bytes:
    """Make a wav file of samples from -1 to 1."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return target.getvalue()
