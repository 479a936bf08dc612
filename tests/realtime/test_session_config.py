"""The configuration of a session, in both versions of the API."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.realtime import RealtimeTranscriptionSessionCreateResponse

from parakeet_api.errors import InvalidRequestError
from parakeet_api.realtime.session_config import (
    LOGPROBS,
    AudioFormat,
    SessionConfig,
    TurnDetection,
)


def with_input(**audio_input: Any) -> SessionConfig:
    return SessionConfig().updated({"type": "transcription", "audio": {"input": audio_input}})


def test_openais_package_parses_the_session() -> None:
    config = with_input(
        format={"type": "audio/pcmu"},
        transcription={"model": "whisper-1", "language": "en", "prompt": "Numbers."},
        turn_detection={"type": "server_vad", "threshold": 0.3},
        noise_reduction={"type": "far_field"},
    ).updated({"include": [LOGPROBS]})

    shown = RealtimeTranscriptionSessionCreateResponse.model_validate(
        {"id": "sess_1", **config.as_json()}
    )

    assert shown.audio is not None
    assert shown.audio.input is not None
    sound = shown.audio.input
    assert sound.format is not None
    assert sound.format.type == "audio/pcmu"
    assert sound.transcription is not None
    assert sound.transcription.prompt == "Numbers."
    assert sound.turn_detection is not None
    assert sound.turn_detection.threshold == 0.3
    assert sound.noise_reduction is not None
    assert sound.noise_reduction.type == "far_field"
    assert shown.include == [LOGPROBS]


def test_fields_that_are_not_sent_keep_their_values() -> None:
    config = with_input(turn_detection={"threshold": 0.3, "silence_duration_ms": 200})

    changed = config.updated({"audio": {"input": {"turn_detection": {"threshold": 0.7}}}})

    assert changed.turn_detection == TurnDetection(threshold=0.7, silence_duration_ms=200)
    assert changed.updated({}) == changed


def test_null_disables_turn_detection() -> None:
    assert with_input(turn_detection=None).turn_detection is None


def test_semantic_vad_maps_eagerness_to_a_silence() -> None:
    silences = [
        with_input(turn_detection={"type": "semantic_vad", "eagerness": eagerness}).turn_detection
        for eagerness in ("high", "auto", "medium", "low")
    ]

    lengths = [turns.silence_duration_ms for turns in silences if turns]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_both_versions_of_the_api_set_the_same_fields() -> None:
    old = SessionConfig().updated_by_old(
        {
            "input_audio_format": "g711_alaw",
            "input_audio_transcription": {"model": "whisper-1", "language": "en"},
            "turn_detection": None,
            "input_audio_noise_reduction": {"type": "near_field"},
            "include": [LOGPROBS],
        }
    )
    new = with_input(
        format={"type": "audio/pcma"},
        transcription={"model": "whisper-1", "language": "en"},
        turn_detection=None,
        noise_reduction={"type": "near_field"},
    ).updated({"include": [LOGPROBS]})

    assert old == new
    assert old.audio_format == AudioFormat(type="audio/pcma", rate=8000)
    assert SessionConfig().updated_by_old(old.as_old_json()) == old
    assert SessionConfig().updated(new.as_json()) == new


@pytest.mark.parametrize(
    ("session", "param"),
    [
        (None, "session"),
        ({"type": "realtime"}, "session.type"),
        ({"include": ["item.everything"]}, "session.include"),
        ({"include": [{}]}, "session.include"),
        ({"audio": 5}, "session.audio"),
        ({"audio": {"input": []}}, "session.audio.input"),
    ],
)
def test_an_invalid_session_is_rejected(session: object, param: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        SessionConfig().updated(session)

    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("audio_input", "param"),
    [
        ({"format": {"type": "audio/mp3"}}, "format.type"),
        ({"format": {"type": []}}, "format.type"),
        ({"format": {"rate": 7_999}}, "format.rate"),
        ({"format": {"rate": 16_000.5}}, "format.rate"),
        ({"format": {"rate": True}}, "format.rate"),
        ({"format": "pcm16"}, "format"),
        ({"transcription": {"model": 3}}, "transcription.model"),
        ({"transcription": {"prompt": "x" * 20_000}}, "transcription.prompt"),
        ({"transcription": {"prompt": "half \ud83d"}}, "transcription.prompt"),
        ({"transcription": {"delay": {}}}, "transcription.delay"),
        ({"transcription": {"keywords": "one"}}, "transcription.keywords"),
        ({"transcription": {"keywords": ["<b>"]}}, "transcription.keywords"),
        ({"transcription": {"keywords": ["x"] * 501}}, "transcription.keywords"),
        ({"transcription": {"languages": ["en"] * 101}}, "transcription.languages"),
        ({"transcription": {"languages": [1]}}, "transcription.languages"),
        ({"turn_detection": {"type": "client"}}, "turn_detection.type"),
        ({"turn_detection": {"threshold": 1.5}}, "turn_detection.threshold"),
        ({"turn_detection": {"threshold": float("nan")}}, "turn_detection.threshold"),
        ({"turn_detection": {"silence_duration_ms": -1}}, "turn_detection.silence_duration_ms"),
        ({"turn_detection": {"prefix_padding_ms": "300"}}, "turn_detection.prefix_padding_ms"),
        (
            {"turn_detection": {"type": "semantic_vad", "eagerness": {}}},
            "turn_detection.eagerness",
        ),
        ({"noise_reduction": {"type": "all"}}, "noise_reduction.type"),
    ],
)
def test_an_invalid_field_is_rejected_by_name(audio_input: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        with_input(**audio_input)

    assert refusal.value.param == f"session.audio.input.{param}"
    assert len(refusal.value.message) < 300
