"""Limits of live sessions; the model is a fake that always recognises its own name."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE_S, SPEECH, wait_until
from http_helpers import error_of
from in_process import Echoes, Served, served
from live_client import COMPLETED, answer_of, dial, silence, sound_of
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from parakeet_api.pipeline import Pipeline
from parakeet_api.realtime import places, session
from parakeet_api.transcript import SAMPLE_RATE, Word

pytestmark = pytest.mark.integration

MANUAL = {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> Echoes:
    return Echoes(monkeypatch)


def event(connection: ClientConnection) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(connection.recv(timeout=PATIENCE_S))
    return parsed


def rest(connection: ClientConnection) -> list[dict[str, Any]]:
    """Read all events until the connection closes."""
    events = []
    try:
        while True:
            events.append(event(connection))
    except ConnectionClosed:
        return events


def append(connection: ClientConnection, seconds: float = 1.0) -> None:
    audio = base64.b64encode(silence(seconds).tobytes()).decode()
    connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))


def refusal(to: Served, **options: Any) -> httpx.Response:
    with pytest.raises(InvalidStatus) as refused, dial(to.server, **options):
        pass
    return answer_of(refused.value)


def test_one_session_too_many_is_rejected(tmp_path: Path, echoes: Echoes) -> None:
    with served(tmp_path, DEMO_MODEL="grammar", MAX_REALTIME_SESSIONS="1") as here:
        with dial(here.server) as first:
            event(first)
            answer = refusal(here)

            assert error_of(answer, 503)["code"] == "queue_full"
            assert int(answer.headers["Retry-After"]) > 0
        wait_until(lambda: here.services.realtime.under_way() == 0)
        with dial(here.server) as next_one:
            assert event(next_one)["type"] == "session.created"


def test_an_idle_session_is_evicted_for_another(
    tmp_path: Path, echoes: Echoes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_NEVER_SPOKEN_S", -1.0)
    with (
        served(tmp_path, DEMO_MODEL="grammar", MAX_REALTIME_SESSIONS="2") as here,
        dial(here.server) as talker,
        dial(here.server) as silent,
    ):
        append(talker)
        wait_until(
            lambda: (
                [p.last_sound() is not None for p in here.services.realtime._taken] == [True, False]
            )
        )
        with dial(here.server) as other:
            assert event(other)["type"] == "session.created"
            *_, last = rest(silent)
            talker.send('{"type": "input_audio_buffer.clear"}')

            assert last["error"]["code"] == "queue_full"
            assert silent.close_code == 1013
            assert [event(talker)["type"], event(talker)["type"]] == [
                "session.created",
                "input_audio_buffer.cleared",
            ]


def test_a_session_without_audio_ends(tmp_path: Path, echoes: Echoes) -> None:
    with (
        served(tmp_path, DEMO_MODEL="grammar", REALTIME_IDLE_SECONDS="1") as here,
        dial(here.server) as connection,
    ):
        *_, last = rest(connection)

        assert last["error"]["code"] == "session_idle"
        assert connection.close_code == 1000


def test_a_session_that_expires_sends_the_current_turn(tmp_path: Path, echoes: Echoes) -> None:
    with (
        served(tmp_path, DEMO_MODEL="grammar", REALTIME_MAX_MINUTES="0.04") as here,
        dial(here.server) as connection,
    ):
        connection.send(json.dumps(MANUAL))
        append(connection)
        *_, completed, last = rest(connection)

        assert completed["type"] == COMPLETED
        assert last["error"]["code"] == "session_expired"
        assert connection.close_code == 1001


def test_a_server_that_stops_sends_the_current_turn(tmp_path: Path, echoes: Echoes) -> None:
    with served(tmp_path, DEMO_MODEL="grammar") as here, dial(here.server) as connection:
        connection.send(json.dumps(MANUAL))
        append(connection)
        # Events are processed in order: the answer to this one shows that the audio is there.
        connection.send(json.dumps({"type": "unknown"}))
        assert [event(connection)["type"] for _ in range(3)] == [
            "session.created",
            "session.updated",
            "error",
        ]
        here.services.admission.stop()
        *_, last = rest(connection)

        assert last["type"] == COMPLETED
        assert connection.close_code == 1001
        wait_until(lambda: here.services.realtime.under_way() == 0)
        assert error_of(refusal(here), 503)["code"] == "stopping"


def test_sessions_leave_no_thread_however_they_end(tmp_path: Path, echoes: Echoes) -> None:
    def names() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("realtime")]

    with served(tmp_path, DEMO_MODEL="grammar") as here:
        for number in range(12):
            with dial(here.server) as connection:
                event(connection)
                append(connection, 3.0)
                if number % 3 == 0:
                    connection.send('{"type": "input_audio_buffer.commit"}')
                if number % 3 == 1:
                    connection.socket.close()
        wait_until(lambda: here.services.realtime.under_way() == 0)

        wait_until(lambda: not names())
        assert here.services.models.waiting_chunks() == 0


def test_idle_sessions_do_not_slow_others(tmp_path: Path, echoes: Echoes) -> None:
    with served(tmp_path, DEMO_MODEL="grammar", MAX_REALTIME_SESSIONS="64") as here:
        idle = [dial(here.server).__enter__() for _ in range(40)]
        with dial(here.server) as connection:
            connection.send(json.dumps(MANUAL))
            append(connection)
            connection.send('{"type": "input_audio_buffer.commit"}')
            kinds: list[str] = []
            while not kinds or kinds[-1] != COMPLETED:
                kinds.append(event(connection)["type"])
        for each in idle:
            each.socket.close()
        wait_until(lambda: here.services.realtime.under_way() == 0)


@pytest.mark.parametrize(
    ("origin", "settings", "allowed"),
    [
        (None, {}, True),
        ("https://elsewhere.example", {}, False),
        ("https://elsewhere.example", {"CORS_ORIGINS": "https://elsewhere.example"}, True),
        ("https://elsewhere.example", {"CORS_ORIGINS": "*"}, True),
        ("own", {}, True),
    ],
)
def test_a_page_of_another_origin_cannot_use_a_server_without_keys(
    tmp_path: Path, echoes: Echoes, origin: str | None, settings: dict[str, str], allowed: bool
) -> None:
    with served(tmp_path, DEMO_MODEL="grammar", **settings) as here:
        named = here.server.url if origin == "own" else origin
        if allowed:
            with dial(here.server, origin=named) as connection:
                assert event(connection)["type"] == "session.created"
        else:
            assert error_of(refusal(here, origin=named), 403)["code"] == "forbidden"


def test_a_session_counts_in_the_rate_limit(tmp_path: Path, echoes: Echoes) -> None:
    with served(tmp_path, DEMO_MODEL="grammar", RATE_LIMIT="1/hour") as here:
        with dial(here.server) as connection:
            assert event(connection)["type"] == "session.created"

        assert error_of(refusal(here), 429)["code"] == "rate_limit_exceeded"


def test_a_window_that_fails_loses_no_word(
    tmp_path: Path, echoes: Echoes, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object, **__: object) -> list[Word]:
        failed.set()
        raise RuntimeError("a fault of the model's")

    monkeypatch.setattr(Pipeline, "glance", fail)
    with served(tmp_path, DEMO_MODEL="grammar") as here, dial(here.server) as connection:
        connection.send(json.dumps(MANUAL))
        # Windows are looked at where someone speaks.
        connection.send(json.dumps(spoken()))
        assert failed.wait(PATIENCE_S)
        connection.send('{"type": "input_audio_buffer.commit"}')
        kinds: list[str] = []
        while not kinds or kinds[-1] != COMPLETED:
            kinds.append(event(connection)["type"])

    assert "error" not in kinds


def test_a_client_that_only_commits_after_speech_may_be_silent_for_long(
    tmp_path: Path, echoes: Echoes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_MAX_HELD", 4 * SAMPLE_RATE)
    monkeypatch.setattr(session, "_MAX_SILENCE", SAMPLE_RATE)
    with served(tmp_path, DEMO_MODEL="grammar") as here, dial(here.server) as connection:
        connection.send(json.dumps(MANUAL))
        for _ in range(20):
            append(connection)
        connection.send(json.dumps(spoken()))
        connection.send('{"type": "input_audio_buffer.commit"}')
        events = [event(connection)]
        while events[-1]["type"] != COMPLETED:
            events.append(event(connection))

    assert "error" not in [each["type"] for each in events]
    assert events[-1]["usage"]["seconds"] < 10


def test_audio_beyond_the_limit_of_the_buffer_is_rejected(
    tmp_path: Path, echoes: Echoes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_MAX_HELD", 2 * SAMPLE_RATE)
    with served(tmp_path, DEMO_MODEL="grammar") as here, dial(here.server) as connection:
        connection.send(json.dumps(MANUAL))
        connection.send(json.dumps(spoken()))
        connection.send(json.dumps(spoken() | {"event_id": "too much"}))
        answer = event(connection)
        while answer["type"] != "error":
            answer = event(connection)

    assert answer["error"]["code"] == "input_audio_buffer_full"
    assert answer["error"]["event_id"] == "too much"


def spoken() -> dict[str, str]:
    audio = base64.b64encode(sound_of(SPEECH / "clip-001.flac").tobytes()).decode()
    return {"type": "input_audio_buffer.append", "audio": audio}
