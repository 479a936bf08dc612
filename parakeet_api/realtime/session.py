"""One live session: the client's events in, the server's events out."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from parakeet_api.errors import ApiError, InvalidRequestError, ServerError
from parakeet_api.languages import language_code, normalize_language
from parakeet_api.metrics import Metrics
from parakeet_api.realtime.audio_buffer import AudioBuffer
from parakeet_api.realtime.audio_input import AudioInput
from parakeet_api.realtime.events import ServerEvent, echoed, error_event, parse_event, user_item
from parakeet_api.realtime.session_config import TRANSCRIPTION, SessionConfig, TurnDetection
from parakeet_api.realtime.turn_transcriber import Turn, TurnTranscriber
from parakeet_api.realtime.turns import SpeechEdges
from parakeet_api.served_models import ServedModels
from parakeet_api.speech.chunking import quietest_moment
from parakeet_api.transcript import SAMPLE_RATE, Pcm

logger = logging.getLogger(__name__)

_MAX_TURN = 300 * SAMPLE_RATE
"""Samples. A longer turn is split at its quietest moment: applause or music may never pause."""
_CUT_WINDOW = 5 * SAMPLE_RATE
_MAX_HELD = 600 * SAMPLE_RATE
"""Samples that a client may append without a commit: 10 minutes, 19 MB."""
_MAX_SILENCE = 60 * SAMPLE_RATE
"""Samples to keep of a buffer without speech: many clients only commit after speech."""
_MIN_COMMIT = SAMPLE_RATE // 10
"""OpenAI's minimum for a commit."""
_LOOKBACK = SAMPLE_RATE
"""Samples kept in addition to the padding, since the start of a turn is detected late."""
_MAX_PIECE = 30 * SAMPLE_RATE
"""A longer append is processed in pieces, so that the limits of turns apply within it."""

GOING_AWAY, NORMAL, TRY_AGAIN, FAILED = 1001, 1000, 1013, 1011
"""Close codes of WebSockets."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """Why the server ends a session."""

    kind: str
    """Label in the metrics."""
    code: int
    """Close code of the WebSocket."""
    reason: str
    error: str | None = None
    """Code of an error event that is sent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the server ends a session."""

    idle_s: float
    """Maximum time without audio."""
    most_s: float
    stopping: Callable[[], bool]
    """Whether the server is about to stop."""
    evicted: Callable[[], bool]
    """Whether the session must end for another one."""


class Session:
    """A client's live session; only for the receiving thread, except `cancel`."""

    def __init__(
        self,
        config: SessionConfig,
        *,
        models: ServedModels,
        send: Callable[[Mapping[str, Any]], None],
        limits: Limits,
        metrics: Metrics,
        is_old: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the session; `send` never fails, `is_old` selects the older event names."""
        self.id = f"sess_{uuid.uuid4().hex}"
        self._config = config
        self._models = models
        self._send_json = send
        self._limits = limits
        self._is_old = is_old
        self._clock = clock
        self._began = self.last_sound = clock()
        self._expires = int(time.time() + limits.most_s)
        self._input = AudioInput(config.audio_format)
        self._buffer = AudioBuffer()
        self._edges = SpeechEdges(models.detector.listen())
        self._transcriber = TurnTranscriber(self._buffer, self._send, metrics=metrics)
        self._turn: Turn | None = None
        self._turn_end = 0
        """Position of the end of the last turn."""
        self._last_item: str | None = None
        self._handlers: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "session.update": self._update,
            "transcription_session.update": self._update_old,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }

    @property
    def heard_s(self) -> float:
        """Seconds of audio received."""
        return self._buffer.end / SAMPLE_RATE

    def run(self, messages: Iterable[str | bytes | None]) -> Farewell | None:
        """Handle messages until the client or the server ends the session.

        `None` is yielded for each second without a message. Return why the server ended the
        session; `None` if the client did.
        """
        try:
            self._send_config("created")
            for message in messages:
                if message is not None:
                    self._handle(message)
                if (farewell := self._reason_to_end()) is not None:
                    self._finish(farewell)
                    return farewell
            return None
        finally:
            self._transcriber.cancel()
            self._transcriber.finish()

    def cancel(self) -> None:
        """Abort all transcription; may be called from any thread."""
        self._transcriber.cancel()

    def _reason_to_end(self) -> Farewell | None:
        now = self._clock()
        if self._transcriber.is_over:
            return Farewell("error", FAILED, "The server had an error.", "internal_error")
        if self._limits.stopping():
            return Farewell("stopping", GOING_AWAY, "the server is stopping")
        if now - self._began > self._limits.most_s:
            minutes = round(self._limits.most_s / 60)
            reason = f"Your session hit the maximum duration of {minutes} minutes."
            return Farewell("expired", GOING_AWAY, reason, "session_expired")
        if now - self.last_sound > self._limits.idle_s:
            return Farewell("idle", NORMAL, "No sound has come for too long.", "session_idle")
        if self._limits.evicted():
            return Farewell(
                "evicted", TRY_AGAIN, "Others need the place of this idle session.", "queue_full"
            )
        return None

    def _finish(self, farewell: Farewell) -> None:
        """Transcribe the current turn, and send the error, if any."""
        if self._turn is not None and self._buffer.end - self._turn.start >= _MIN_COMMIT:
            self._end_turn(self._buffer.end)
        self._transcriber.finish()
        if farewell.error is not None:
            kind = ServerError if farewell.kind == "error" else InvalidRequestError
            error = kind(farewell.reason)
            error.code = farewell.error
            self._send(error_event(error))

    def _handle(self, message: str | bytes) -> None:
        event: Mapping[str, Any] = {}
        try:
            event = parse_event(message)
            handler = self._handlers.get(event["type"])
            if handler is None:
                raise InvalidRequestError(
                    f"type={echoed(event['type'])}: this server transcribes, and takes"
                    f" {', '.join(self._handlers)}.",
                    param="type",
                )
            handler(event)
        except ApiError as error:
            self._send(error_event(error, about=event.get("event_id")))
        except Exception:
            # One failed event must not end the session.
            logger.exception("an event of a live session failed")
            failure = ServerError("The server had an error while processing this event.")
            self._send(error_event(failure, about=event.get("event_id")))

    def _update(self, event: Mapping[str, Any]) -> None:
        self._reconfigure(self._config.updated(event.get("session")))
        self._is_old = False
        self._send_config("updated")

    def _update_old(self, event: Mapping[str, Any]) -> None:
        self._reconfigure(self._config.updated_by_old(event.get("session")))
        self._is_old = True
        self._send_config("updated")

    def _reconfigure(self, config: SessionConfig) -> None:
        """Apply a configuration from the next turn on. Raises `ApiError`."""
        check_hints(config, self._models)
        if config.audio_format != self._config.audio_format:
            self._process(self._input.rest())
            self._input = AudioInput(config.audio_format)
        self._config = config

    def _append(self, event: Mapping[str, Any]) -> None:
        if self._turn is not None and self._turn_samples() > _MAX_HELD:
            self._forget_silence(self._turn)
        if self._turn_samples() > _MAX_HELD:
            error = InvalidRequestError(
                f"The buffer holds {_MAX_HELD // SAMPLE_RATE} s of sound: commit or clear it.",
                param="audio",
            )
            error.code = "input_audio_buffer_full"
            raise error
        samples = self._input.decode(event.get("audio"))
        self.last_sound = self._clock()
        for start in range(0, len(samples), _MAX_PIECE):
            self._process(samples[start : start + _MAX_PIECE])

    def _turn_samples(self) -> int:
        """Count the samples of the current turn."""
        return self._buffer.end - self._turn.start if self._turn else 0

    def _forget_silence(self, turn: Turn) -> None:
        """Drop the start of a turn in which nobody has spoken."""
        if self._edges.speech_end <= turn.start:
            later = self._begin_turn(self._buffer.end - _MAX_SILENCE)
            self._buffer.forget_before(later.start)

    def _process(self, samples: Pcm) -> None:
        """Process audio; begin and end turns where speech starts and stops."""
        detection = self._config.turn_detection
        if detection is None and self._turn is None and len(samples):
            self._begin_turn(self._buffer.end)
        self._buffer.append(samples)
        for edge in self._edges.hear(samples, detection or TurnDetection()):
            if detection is None:
                continue
            if edge.begins:
                self._speech_starts(edge.at - detection.prefix_padding_ms * SAMPLE_RATE // 1000)
            elif self._turn is not None:
                self._speech_stops(edge.at)
        if self._turn is not None:
            self._turn.speech_end = self._edges.speech_end
            if detection is not None and self._buffer.end - self._turn.start > _MAX_TURN:
                self._cut_turn(self._turn)
        elif detection is not None:
            padding = detection.prefix_padding_ms * SAMPLE_RATE // 1000
            self._buffer.forget_before(self._buffer.end - padding - _LOOKBACK)
        self._transcriber.look()

    def _speech_starts(self, at: int) -> None:
        if self._turn is not None:
            return
        turn = self._begin_turn(max(at, self._turn_end, self._buffer.start))
        self._send(
            {
                "type": "input_audio_buffer.speech_started",
                "audio_start_ms": turn.start * 1000 // SAMPLE_RATE,
                "item_id": turn.item_id,
            }
        )

    def _speech_stops(self, at: int) -> None:
        assert self._turn is not None
        self._send(
            {
                "type": "input_audio_buffer.speech_stopped",
                "audio_end_ms": at * 1000 // SAMPLE_RATE,
                "item_id": self._turn.item_id,
            }
        )
        self._end_turn(at)

    def _cut_turn(self, turn: Turn) -> None:
        """Split a turn that is too long at its quietest moment."""
        begin = self._buffer.end - _CUT_WINDOW
        at = begin + quietest_moment(self._buffer.copy(begin, self._buffer.end))
        self._speech_stops(max(at, turn.start + 1))
        self._speech_starts(self._turn_end)

    def _begin_turn(self, start: int) -> Turn:
        model = self._models.named(self._config.transcription.model)
        turn = self._turn = Turn(
            item_id=f"item_{uuid.uuid4().hex[:20]}",
            start=start,
            pipeline=model.live,
            languages=spoken_languages(self._config, self._models),
            keywords=self._config.transcription.keywords,
            logprobs=self._config.logprobs,
            speech_end=self._edges.speech_end,
        )
        self._transcriber.begin(turn)
        return turn

    def _commit(self, _: Mapping[str, Any]) -> None:
        self._process(self._input.rest())
        self._input = AudioInput(self._config.audio_format)
        held = self._turn_samples()
        if held < _MIN_COMMIT:
            error = InvalidRequestError(
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of"
                f" audio, but buffer only has {held * 1000 / SAMPLE_RATE:.2f}ms of audio."
            )
            error.code = "input_audio_buffer_commit_empty"
            raise error
        self._end_turn(self._buffer.end)
        self._edges.end_turn()

    def _clear(self, _: Mapping[str, Any]) -> None:
        self._transcriber.discard()
        self._turn = None
        self._turn_end = self._buffer.end
        self._buffer.forget_before(self._turn_end)
        self._input = AudioInput(self._config.audio_format)
        self._edges.end_turn()
        self._send({"type": "input_audio_buffer.cleared"})

    def _end_turn(self, end: int) -> None:
        """End the current turn, and queue it for transcription."""
        turn, self._turn = self._turn, None
        assert turn is not None
        turn.samples = self._buffer.copy(turn.start, end)
        self._turn_end = end
        # A window that is being taken would find the next turn's sound in the place of this one's.
        self._transcriber.discard()
        self._buffer.forget_before(end)
        previous, self._last_item = self._last_item, turn.item_id
        self._send(
            {
                "type": "input_audio_buffer.committed",
                "item_id": turn.item_id,
                "previous_item_id": previous,
            }
        )
        item = user_item(turn.item_id)
        if self._is_old:
            self._send(
                {"type": "conversation.item.created", "previous_item_id": previous, "item": item}
            )
        else:
            self._send(
                {"type": "conversation.item.added", "previous_item_id": previous, "item": item}
            )
            self._send(
                {"type": "conversation.item.done", "previous_item_id": previous, "item": item}
            )
        self._transcriber.commit(turn)

    def _send_config(self, what: str) -> None:
        own = {"id": self.id, "expires_at": self._expires}
        session = {
            **own,
            **(self._config.as_old_json() if self._is_old else self._config.as_json()),
        }
        prefix = "transcription_session" if self._is_old else "session"
        self._send_any({"type": f"{prefix}.{what}", "session": session})

    def _send(self, event: ServerEvent) -> None:
        self._send_any(event)

    def _send_any(self, event: Mapping[str, Any]) -> None:
        self._send_json({"event_id": f"event_{uuid.uuid4().hex[:20]}", **event})


def spoken_languages(config: SessionConfig, models: ServedModels) -> frozenset[str]:
    """Return the candidate languages. Raises `ApiError` for an unknown model or language."""
    transcription = config.transcription
    supported = models.named(transcription.model).languages
    language = normalize_language(transcription.language, supported=supported)
    if language is not None:
        return frozenset({language})
    known = supported & {language_code(hint) for hint in transcription.languages}
    return known or supported


def check_hints(config: SessionConfig, models: ServedModels) -> None:
    """Check language and keywords. Raises `ApiError` if the model does not know or write them."""
    spoken_languages(config, models)
    models.named(config.transcription.model).check_keywords(
        config.transcription.keywords, param=f"{TRANSCRIPTION}.keywords"
    )


def with_model(config: SessionConfig, name: str) -> SessionConfig:
    """Set the model if the configuration has none."""
    transcription = config.transcription
    if not name or transcription.model:
        return config
    return replace(config, transcription=replace(transcription, model=name))
