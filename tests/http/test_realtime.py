"""Live sessions with OpenAI's Python package and a running server."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import SPEECH, Clip, Server, running_server, wait_until
from http_helpers import connect as connect_to
from http_helpers import error_of, request
from live_client import COMPLETED, DELTA, answer_of, dial, live, silence, sound_of
from openai import OpenAI
from websockets.exceptions import InvalidStatus

from benchmarks.english import word_errors

# OpenAI's package opens its connections so.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:connect:DeprecationWarning"),
]

KEY = {"Authorization": "Bearer the-key"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, and the model in memory."""
    with running_server(
        tmp_path_factory.mktemp("live"), API_KEY="the-key", ENABLE_LAZY_LOAD="false"
    ) as started:
        yield started


def open_socket(server: Server, **options: Any) -> Any:
    return dial(server, additional_headers=KEY, **options)


def is_free(server: Server) -> bool:
    """Tell whether no session is open and no chunk is queued."""
    metrics = request(server, "GET", "/metrics", headers=KEY).text
    return "parakeet_realtime_sessions 0.0" in metrics and not any(
        server.health()["queue"].values()
    )


def test_words_come_before_the_client_commits_and_add_up_to_the_transcript(
    server: Server, clips: list[Clip]
) -> None:
    with live(server) as session:
        session.configure(turn_detection=None)
        session.say(sound_of(clips[1].path))
        first = session.until(DELTA)
        session.connection.input_audio_buffer.commit()
        completed = session.until(COMPLETED)

    assert clips[1].text.startswith(first.delta)
    assert completed.transcript == clips[1].text
    assert session.deltas() == clips[1].text
    assert completed.usage.type == "duration"
    assert completed.usage.seconds == pytest.approx(clips[1].duration_s, abs=0.05)
    assert completed.languages[0].code == "en"


def test_the_server_detects_turns_without_commits(server: Server, clips: list[Clip]) -> None:
    texts = [clip.text for clip in clips[:3]]
    with live(server) as session:
        for clip in clips[:3]:
            session.say(np.concatenate([sound_of(clip.path), silence(1.0)]))
        while len(session.of(COMPLETED)) < len(texts):
            session.until(COMPLETED)

    assert [event.transcript for event in session.of(COMPLETED)] == texts
    items = [event.item_id for event in session.of(COMPLETED)]
    committed = session.of("input_audio_buffer.committed")
    assert [event.item_id for event in committed] == items
    assert [event.previous_item_id for event in committed] == [None, *items[:-1]]
    for kind in ("added", "done"):
        assert [e.item.id for e in session.of(f"conversation.item.{kind}")] == items
    started = [e.audio_start_ms for e in session.of("input_audio_buffer.speech_started")]
    stopped = [e.audio_end_ms for e in session.of("input_audio_buffer.speech_stopped")]
    begin = 0.0
    for clip, start, stop in zip(clips[:3], started, stopped, strict=True):
        end = begin + clip.duration_s
        assert begin - 0.3 <= start / 1000 <= begin + 0.7
        assert end - 0.7 <= stop / 1000 <= end + 1.0
        begin = end + 1.0


def test_final_words_of_a_minute_of_dense_speech_never_change(server: Server) -> None:
    minute = sound_of(SPEECH / "long-dense.ogg")[: 60 * 24_000]
    with live(server) as session:
        session.configure(turn_detection=None)
        session.say(minute)
        while len(session.deltas()) < 300:
            session.until(DELTA)
        session.connection.input_audio_buffer.commit()
        transcript = session.until(COMPLETED).transcript

    # Where windows begin and end depends on the machine's load, and some words on that.
    assert word_errors([transcript], [session.deltas()]).percent <= 2


@pytest.mark.parametrize(
    ("audio_format", "rate"),
    [
        ({"type": "audio/pcm", "rate": 24_000}, 24_000),
        ({"type": "audio/pcm", "rate": 16_000}, 16_000),
        ({"type": "audio/pcm", "rate": 48_000}, 48_000),
    ],
)
def test_pcm_of_any_rate_is_transcribed(
    server: Server, clips: list[Clip], audio_format: dict[str, Any], rate: int
) -> None:
    with live(server) as session:
        session.configure(format=audio_format, turn_detection=None)
        session.say(sound_of(clips[0].path, rate=rate), rate=rate)
        session.connection.input_audio_buffer.commit()

        assert session.until(COMPLETED).transcript == clips[0].text


def test_logprobs_of_tokens_are_sent_on_request(server: Server, clips: list[Clip]) -> None:
    with live(server) as session:
        session.connection.session.update(
            session={
                "type": "transcription",
                "include": ["item.input_audio_transcription.logprobs"],
                "audio": {"input": {"turn_detection": None}},
            }
        )
        session.say(sound_of(clips[0].path))
        session.connection.input_audio_buffer.commit()
        completed = session.until(COMPLETED)

    assert "".join(entry.token for entry in completed.logprobs) == clips[0].text
    spoken = [entry.token for event in session.of(DELTA) for entry in event.logprobs]
    assert "".join(spoken) == clips[0].text


@pytest.mark.parametrize(
    ("event", "param", "code"),
    [
        ({"type": "response.create"}, "type", None),
        ({"type": "input_audio_buffer.append", "audio": "%%%"}, "audio", None),
        ({"type": "input_audio_buffer.append"}, "audio", None),
        ({"type": "input_audio_buffer.commit"}, None, "input_audio_buffer_commit_empty"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", None),
        ({"type": "session.update", "session": []}, "session", None),
        (
            {
                "type": "session.update",
                "session": {"audio": {"input": {"transcription": {"language": "tlh"}}}},
            },
            "language",
            "unsupported_language",
        ),
    ],
)
def test_an_error_names_the_event_and_the_session_continues(
    server: Server, event: dict[str, Any], param: str | None, code: str | None
) -> None:
    with live(server) as session:
        sent: Any = {"event_id": "mine", **event}
        session.connection.send(sent)
        error = session.until("error").error
        session.connection.input_audio_buffer.clear()
        session.until("input_audio_buffer.cleared")

    assert (error.event_id, error.param, error.code) == ("mine", param, code)
    assert error.type == "invalid_request_error"
    assert error.message


@pytest.mark.parametrize(
    "message",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "null",
        "{}",
        '{"type": "\\ud800"}',
        '{"type": "x", "event_id": "\\ud800"}',
        b"\x00\x01",
    ],
)
def test_garbage_is_answered_with_an_error(server: Server, message: str | bytes) -> None:
    with open_socket(server) as opened:
        json.loads(opened.recv())
        opened.send(message)
        answer = json.loads(opened.recv())
        opened.send('{"type": "input_audio_buffer.clear"}')

        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert json.loads(opened.recv())["type"] == "input_audio_buffer.cleared"


def test_sound_that_is_cleared_is_not_transcribed(server: Server, clips: list[Clip]) -> None:
    with live(server) as session:
        session.configure(turn_detection=None)
        session.say(sound_of(clips[0].path))
        session.connection.input_audio_buffer.clear()
        session.until("input_audio_buffer.cleared")
        session.say(sound_of(clips[2].path))
        session.connection.input_audio_buffer.commit()

        assert session.until(COMPLETED).transcript == clips[2].text


def test_silence_gives_an_empty_transcript(server: Server) -> None:
    with live(server) as session:
        session.configure(turn_detection=None)
        session.say(silence(2.0))
        session.connection.input_audio_buffer.commit()

        assert session.until(COMPLETED).transcript == ""
        assert session.deltas() == ""


def test_the_older_version_of_the_api_is_supported(server: Server, clips: list[Clip]) -> None:
    with dial(
        server,
        additional_headers=KEY | {"OpenAI-Beta": "realtime=v1"},
    ) as opened:
        created = json.loads(opened.recv())
        update = {
            "type": "transcription_session.update",
            "session": {
                "input_audio_format": "pcm16",
                "input_audio_transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                "turn_detection": None,
            },
        }
        opened.send(json.dumps(update))
        updated = json.loads(opened.recv())
        pcm = sound_of(clips[0].path).tobytes()
        append = {
            "type": "input_audio_buffer.append",
            "audio": base64.b64encode(pcm).decode(),
        }
        opened.send(json.dumps(append))
        opened.send('{"type": "input_audio_buffer.commit"}')
        kinds: list[str] = []
        event: dict[str, Any] = {}
        while event.get("type") != COMPLETED:
            event = json.loads(opened.recv())
            kinds.append(event["type"])

    assert created["type"] == "transcription_session.created"
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "pcm16"
    assert "conversation.item.created" in kinds
    assert event["transcript"] == clips[0].text


def refused(server: Server, **options: Any) -> httpx.Response:
    """Return the response to a rejected handshake."""
    with (
        pytest.raises(InvalidStatus) as refusal,
        dial(server, **options),
    ):
        pass
    return answer_of(refusal.value)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_session_needs_a_key(server: Server, headers: dict[str, str]) -> None:
    answer = refused(server, additional_headers=headers)

    assert error_of(answer, 401)["code"] == "invalid_api_key"


def test_a_browser_sends_its_key_as_a_subprotocol(server: Server) -> None:
    with dial(server, subprotocols=["realtime", "openai-insecure-api-key.the-key"]) as opened:
        assert opened.subprotocol == "realtime"
        assert json.loads(opened.recv())["type"] == "session.created"


def test_a_client_secret_opens_sessions_with_its_configuration(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="the-key")
    secret = client.realtime.client_secrets.create(
        session={"type": "transcription", "audio": {"input": {"turn_detection": None}}},
        expires_after={"anchor": "created_at", "seconds": 60},
    )

    with dial(
        server,
        subprotocols=["realtime", f"openai-insecure-api-key.{secret.value}"],
        origin="https://elsewhere.example",
    ) as opened:
        session = json.loads(opened.recv())["session"]

    assert session["audio"]["input"]["turn_detection"] is None
    assert secret.session.type == "transcription"


@pytest.mark.parametrize(
    "change", [lambda value: value[:-2] + "AA", lambda _: "ek_", lambda v: v + "\xe9"]
)
def test_a_forged_secret_is_rejected(server: Server, change: Any) -> None:
    answer = request(server, "POST", "/v1/realtime/client_secrets", headers=KEY, json={})
    value = change(answer.json()["value"])

    refusal = refused(server, additional_headers={"Authorization": f"Bearer {value}"})

    assert error_of(refusal, 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 5}}, "expires_after.seconds"),
        ({"expires_after": 5}, "expires_after.seconds"),
        ({"session": {"type": "realtime"}}, "session.type"),
        (
            {"session": {"audio": {"input": {"format": {"rate": 1}}}}},
            "session.audio.input.format.rate",
        ),
        ([], None),
    ],
)
def test_a_secret_for_an_unknown_model_or_language_is_rejected(
    server: Server, body: Any, param: str | None
) -> None:
    answer = request(server, "POST", "/v1/realtime/client_secrets", headers=KEY, json=body)

    assert error_of(answer, 400)["param"] == param


def test_an_invalid_handshake_is_rejected(server: Server) -> None:
    plain = request(server, "GET", "/v1/realtime", headers=KEY)
    other = refused(server, path="/v1/realtime?intent=chat", additional_headers=KEY)
    incomplete = request(
        server,
        "GET",
        "/v1/realtime",
        headers=KEY | {"Connection": "Upgrade", "Upgrade": "websocket"},
    )

    assert "WebSocket" in error_of(plain, 400)["message"]
    assert error_of(other, 400)["param"] == "intent"
    assert "WebSocket" in error_of(incomplete, 400)["message"]


def test_a_client_that_disconnects_leaves_nothing_behind(server: Server, clips: list[Clip]) -> None:
    with live(server) as session:
        session.configure(turn_detection=None)
        session.say(sound_of(clips[1].path))
        session.until(DELTA)
        session.connection.input_audio_buffer.commit()
        session.connection._connection.socket.close()

    wait_until(lambda: is_free(server), what="the session's end")


HANDSHAKE = (
    b"GET /v1/realtime?intent=transcription HTTP/1.1\r\nHost: x\r\n"
    b"Authorization: Bearer the-key\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
NO_JSON = b"\x81\x84\x00\x00\x00\x00oops"


def received_until(bare: socket.socket, expected: bytes) -> bytes:
    received = b""
    while expected not in received:
        received += bare.recv(4096)
    return received


def shake_hands(server: Server) -> socket.socket:
    """Open a session on a plain socket."""
    bare = connect_to(server)
    bare.sendall(HANDSHAKE)
    received = received_until(bare, b"session.created")
    assert received.startswith(b"HTTP/1.1 101 ")
    return bare


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 1000,
        # A text frame without a mask; one of 2**62 bytes; one that is not UTF-8.
        b"\x81\x02hi",
        b"\x81\xff" + (2**62).to_bytes(8, "big") + b"mask",
        b"\x81\x82\x00\x00\x00\x00\xff\xff",
    ],
)
def test_invalid_frames_end_the_session(server: Server, data: bytes) -> None:
    with shake_hands(server) as bare:
        bare.sendall(data)
        while bare.recv(4096):
            pass

    wait_until(lambda: is_free(server), what="the session's end")


def test_a_client_that_reads_nothing_is_disconnected(server: Server) -> None:
    with shake_hands(server) as bare:
        bare.settimeout(60)
        # Each gets a response, until the responses fill all buffers.
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_forever(bare, NO_JSON * 1000)

    wait_until(lambda: is_free(server), what="the session's end")


def send_forever(bare: socket.socket, data: bytes) -> None:
    while True:
        bare.sendall(data)


def test_data_sent_before_the_handshake_is_complete_is_not_lost(server: Server) -> None:
    with connect_to(server) as bare:
        bare.sendall(HANDSHAKE + NO_JSON)
        received_until(bare, b"not valid JSON")
