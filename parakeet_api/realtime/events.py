"""The server's events, as parsed by OpenAI's packages, and the parsing of client events.

Every event that is sent also has an `event_id`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from parakeet_api.errors import MAX_ECHO, ApiError, InvalidRequestError
from parakeet_api.formats.rendering import TokenLogprobJson


class SessionEvent(TypedDict):
    """The session's configuration, sent at the start and after each change."""

    type: Literal[
        "session.created",
        "session.updated",
        "transcription_session.created",
        "transcription_session.updated",
    ]
    session: Mapping[str, Any]


class BufferEvent(TypedDict):
    """The audio since the last turn has been discarded."""

    type: Literal["input_audio_buffer.cleared"]


class SpeechStartedEvent(TypedDict):
    """Speech starts."""

    type: Literal["input_audio_buffer.speech_started"]
    audio_start_ms: int
    item_id: str


class SpeechStoppedEvent(TypedDict):
    """Speech has stopped; the turn ends."""

    type: Literal["input_audio_buffer.speech_stopped"]
    audio_end_ms: int
    item_id: str


class CommittedEvent(TypedDict):
    """A turn has ended; its transcript follows."""

    type: Literal["input_audio_buffer.committed"]
    item_id: str
    previous_item_id: str | None


class ItemEvent(TypedDict):
    """A turn as a conversation item; its transcript is sent separately."""

    type: Literal["conversation.item.added", "conversation.item.done", "conversation.item.created"]
    previous_item_id: str | None
    item: Mapping[str, Any]


class DeltaEvent(TypedDict):
    """Final words of a turn."""

    type: Literal["conversation.item.input_audio_transcription.delta"]
    item_id: str
    content_index: int
    delta: str
    logprobs: NotRequired[list[TokenLogprobJson]]


class CompletedEvent(TypedDict):
    """The whole transcript of a turn."""

    type: Literal["conversation.item.input_audio_transcription.completed"]
    item_id: str
    content_index: int
    transcript: str
    languages: list[dict[str, str]]
    usage: Mapping[str, Any]
    logprobs: NotRequired[list[TokenLogprobJson]]


class FailedEvent(TypedDict):
    """The transcription of a turn has failed."""

    type: Literal["conversation.item.input_audio_transcription.failed"]
    item_id: str
    content_index: int
    error: Mapping[str, str | None]


class ErrorEvent(TypedDict):
    """An error in a client event or in the session."""

    type: Literal["error"]
    error: Mapping[str, str | None]


ServerEvent = (
    SessionEvent
    | BufferEvent
    | SpeechStartedEvent
    | SpeechStoppedEvent
    | CommittedEvent
    | ItemEvent
    | DeltaEvent
    | CompletedEvent
    | FailedEvent
    | ErrorEvent
)


def parse_event(message: str | bytes) -> Mapping[str, Any]:
    """Parse a client event. Raises `InvalidRequestError`."""
    if isinstance(message, bytes):
        raise InvalidRequestError("Events are text messages; this one was binary.")
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The event is not valid JSON.") from None
    if not isinstance(event, dict):
        raise InvalidRequestError("The event is not a JSON object.")
    if not isinstance(event.get("type"), str):
        raise InvalidRequestError("The event has no type.", param="type")
    return event


def error_event(error: ApiError, *, about: object = None) -> ErrorEvent:
    """Build an error event; `about` is the `event_id` of the client event, if it has one."""
    event_id = about if isinstance(about, str) else None
    return {"type": "error", "error": {**error_details(error), "event_id": event_id}}


def error_details(error: ApiError) -> dict[str, str | None]:
    """Return the fields of an error in an event."""
    return {
        "type": error.type,
        "code": error.code,
        "message": error.message,
        "param": error.param,
    }


def user_item(item_id: str) -> Mapping[str, Any]:
    """Represent a turn as a conversation item."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }


def echoed(value: object) -> str:
    """Quote a client's value for a message if it is short."""
    text = repr(value)
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "..."
