"""OpenAI's package for Python in a live session with a running server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import soxr
from conftest import Server
from numpy.typing import NDArray
from openai import OpenAI
from openai.resources.realtime.realtime import RealtimeConnection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
APPEND_S = 0.1
"""Seconds of sound in one event."""


def sound_of(path: Path, *, rate: int = 24_000) -> NDArray[np.int16]:
    """Read a recording at a client's rate."""
    samples, given = soundfile.read(path, dtype="float32")
    resampled = soxr.resample(samples, given, rate)
    pcm: NDArray[np.int16] = (np.clip(resampled, -1, 1) * 32767).astype(np.int16)
    return pcm


def silence(seconds: float, *, rate: int = 24_000) -> NDArray[np.int16]:
    """Make digital silence."""
    return np.zeros(round(seconds * rate), np.int16)


def dial(server: Server, path: str = "/v1/realtime", **options: Any) -> Any:
    """Open a session without OpenAI's package, as a context manager."""
    return connect(server.url.replace("http", "ws", 1) + path, proxy=None, **options)


def answer_of(refusal: InvalidStatus) -> httpx.Response:
    """Give the answer to a handshake that was refused."""
    answer = refusal.response
    headers = dict(answer.headers.raw_items())
    return httpx.Response(answer.status_code, headers=headers, content=bytes(answer.body))


class Live:
    """An open session, and what has come of it."""

    def __init__(self, connection: RealtimeConnection) -> None:
        self.connection = connection
        self.events: list[Any] = []

    def configure(self, **audio_input: Any) -> None:
        """Set the session's input, and wait until that is done."""
        session: Any = {"type": "transcription", "audio": {"input": audio_input}}
        self.connection.session.update(session=session)
        self.until("session.updated")

    def say(self, samples: NDArray[np.int16], *, rate: int = 24_000) -> None:
        """Append sound, as fast as the server takes it."""
        step = round(rate * APPEND_S)
        for start in range(0, len(samples), step):
            self.send_bytes(samples[start : start + step].astype("<i2").tobytes())

    def send_bytes(self, data: bytes) -> None:
        """Append sound that is encoded already."""
        self.connection.input_audio_buffer.append(audio=base64.b64encode(data).decode())

    def until(self, kind: str) -> Any:
        """Wait for an event of a type."""
        while True:
            event = self.connection.recv()
            self.events.append(event)
            if event.type == kind:
                return event

    def of(self, kind: str) -> list[Any]:
        """List the events of a type that have come."""
        return [event for event in self.events if event.type == kind]

    def deltas(self) -> str:
        """Put the deltas together."""
        return "".join(event.delta for event in self.of(DELTA))


@contextmanager
def live(server: Server, *, key: str = "the-key", **query: str) -> Iterator[Live]:
    """Open a session with the defaults of the server."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key=key)
    with client.realtime.connect(extra_query={"intent": "transcription", **query}) as connection:
        session = Live(connection)
        session.until("session.created")
        yield session
