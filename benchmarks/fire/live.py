"""Live sessions: a clip as a voice would say it, or all at once; and clients that disconnect."""

from __future__ import annotations

import base64
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.fire.journal import CUT
from benchmarks.fire.outcomes import PATIENCE_S, Outcome, outcome_of

SOUND_RATE = 16_000
"""Of the 16-bit mono samples that are sent, Hz."""
_APPEND_S = 0.1
_APPEND_BYTES = round(2 * SOUND_RATE * _APPEND_S)
_SILENCE = bytes(2 * 2 * SOUND_RATE)
"""Two seconds, which end the last turn."""
_GOING_AWAY = 1001
"""The close code of a server that stops."""
_CLIENT_LOG = logging.getLogger(__name__)
"""The client library reports connections that a fault has cut as errors; here they are expected."""
_CLIENT_LOG.propagate = False
_CLIENT_LOG.addHandler(logging.NullHandler())


def transcribe_live(url: str, sound: bytes, *, speed: float) -> Outcome:
    """Send a sound as a session; give the words of its turns. `speed` 1 is that of the voice."""
    try:
        with _session(url) as connection:
            for message in _messages(sound + _SILENCE):
                connection.send(message)
                time.sleep(_APPEND_S / speed)
            connection.send('{"type": "input_audio_buffer.clear"}')
            return _turns_of(connection)
    except ConnectionClosed as error:
        stopping = error.rcvd is not None and error.rcvd.code == _GOING_AWAY
        return Outcome(code="stopping" if stopping else CUT)
    except InvalidStatus as error:
        answer = error.response
        return outcome_of(answer.status_code, answer.headers, answer.body.decode())
    except TimeoutError:
        return Outcome(code=f"nothing within {PATIENCE_S:.0f} s")
    except (OSError, EOFError, InvalidHandshake):
        return Outcome(code=CUT)


def hang_up_live(url: str, sound: bytes, garbage: str | bytes) -> None:
    """Say a part of a sound, send garbage, and vanish. Raises nothing: no answer is awaited."""
    ended = suppress(ConnectionClosed, InvalidHandshake, EOFError, OSError)
    with ended, _session(url) as connection:
        for message in _messages(sound):
            connection.send(message)
        connection.send(garbage)
        connection.socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def _session(url: str) -> Iterator[ClientConnection]:
    address = url.replace("http", "ws", 1) + "/v1/realtime"
    audio = {"input": {"format": {"type": "audio/pcm", "rate": SOUND_RATE}}}
    session = {"type": "transcription", "audio": audio}
    with connect(address, proxy=None, open_timeout=PATIENCE_S, logger=_CLIENT_LOG) as connection:
        connection.send(json.dumps({"type": "session.update", "session": session}))
        yield connection


def _messages(sound: bytes) -> Iterator[str]:
    for start in range(0, len(sound), _APPEND_BYTES):
        audio = base64.b64encode(sound[start : start + _APPEND_BYTES]).decode()
        yield json.dumps({"type": "input_audio_buffer.append", "audio": audio})


def _turns_of(connection: ClientConnection) -> Outcome:
    """Read events until every committed turn has its transcript."""
    committed = 0
    cleared = False
    turns: list[str] = []
    while not cleared or len(turns) < committed:
        event: dict[str, Any] = json.loads(connection.recv(PATIENCE_S))
        kind = event["type"]
        committed += kind == "input_audio_buffer.committed"
        cleared = cleared or kind == "input_audio_buffer.cleared"
        if kind.endswith(".completed"):
            turns.append(event["transcript"])
        elif "error" in event:
            return Outcome(code=event["error"]["code"] or "invalid_request")
    return Outcome(text=" ".join(turns))
