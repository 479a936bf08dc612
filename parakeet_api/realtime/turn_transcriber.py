"""Transcribe the turns of one session in a thread: windows of the current turn, then the whole.

The windows of all sessions share the batcher's queue, where they take precedence over recordings.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from parakeet_api.errors import ApiError, ServerError
from parakeet_api.formats.rendering import token_logprobs
from parakeet_api.keywords import Keyword
from parakeet_api.metrics import Metrics
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.pipeline import Pipeline
from parakeet_api.realtime.audio_buffer import AudioBuffer
from parakeet_api.realtime.events import (
    CompletedEvent,
    DeltaEvent,
    ServerEvent,
    error_details,
)
from parakeet_api.realtime.spoken_words import SURE_S, SpokenWords
from parakeet_api.speech.language_detection import detect_language
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Pcm, Word, join_words

logger = logging.getLogger(__name__)

_WINDOW_STEP = round(0.4 * SAMPLE_RATE)
"""New audio needed for the next window."""
_FIRST_WINDOW = round(1.2 * SAMPLE_RATE)
"""Minimum length of a turn's first window: with less audio a model guesses. Of 177 words, the
tests' model sent 5 wrong ones with first windows of 0.4 s, all at the start of a turn, and 2 with
this length."""
_CONTEXT = round(3.0 * SAMPLE_RATE)
"""Audio of words already final that each window includes as context."""
_MAX_WINDOW = 12 * SAMPLE_RATE
"""Maximum length of a window, if a client sends audio faster than real time."""
_MAX_COMMITTED = 8
"""Queued turns, beyond which receiving pauses."""

Send = Callable[[ServerEvent], None]


@dataclass(eq=False, slots=True, kw_only=True)
class Turn:
    """A stretch of speech without a long pause, or of audio that the client commits."""

    item_id: str
    start: int
    """First sample, counted from the start of the session."""
    pipeline: Pipeline
    """The pipeline of the selected model."""
    languages: frozenset[str]
    keywords: tuple[Keyword, ...]
    logprobs: bool
    speech_end: int = 0
    """Position after the last sample of detected speech."""
    heard: int = 0
    """Position after the last sample of the last window."""
    spoken: SpokenWords = field(default_factory=SpokenWords)
    samples: Pcm | None = None
    """All audio of the turn, once it has ended."""


class TurnTranscriber:
    """Transcribes turns one after the other, and sends their words."""

    def __init__(self, buffer: AudioBuffer, send: Send, *, metrics: Metrics) -> None:
        self._buffer = buffer
        self._send = send
        self._metrics = metrics
        self._changed = threading.Condition()
        self._live: Turn | None = None
        self._committed: deque[Turn] = deque()
        self._is_finishing = False
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="realtime", daemon=True)
        self._thread.start()

    def begin(self, turn: Turn) -> None:
        """Start recognising windows of a new turn."""
        with self._changed:
            self._live = turn

    def look(self) -> None:
        """Signal that more audio has arrived."""
        with self._changed:
            self._changed.notify_all()

    def commit(self, turn: Turn) -> None:
        """Queue a turn that has ended; wait while the queue is too long."""
        with self._changed:
            self._live = None
            self._committed.append(turn)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._committed) <= _MAX_COMMITTED or self._is_over)

    def discard(self) -> None:
        """Discard the current turn."""
        with self._changed:
            self._live = None

    def finish(self) -> None:
        """Transcribe the queued turns, and end the thread."""
        with self._changed:
            self._is_finishing = True
            self._changed.notify_all()
        self._thread.join()

    def cancel(self) -> None:
        """Drop everything; the thread ends within half a second or a forward pass."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether transcription has stopped."""
        return self._is_over

    def _cancelled(self) -> bool:
        return self._is_over

    def _work(self) -> None:
        try:
            while (turn := self._next()) is not None:
                if turn.samples is None:
                    self._recognize_window(turn)
                else:
                    self._complete(turn, turn.samples)
        except RequestCancelled:
            pass
        except Exception:
            # Log the error; the thread then ends, and `is_over` ends the session.
            logger.exception("a live session's thread failed")
        finally:
            self.cancel()

    def _next(self) -> Turn | None:
        """Wait for a turn with work to do; return `None` at the end."""
        with self._changed:
            while not self._is_over:
                if self._committed:
                    turn = self._committed.popleft()
                    self._changed.notify_all()
                    return turn
                if self._is_finishing:
                    return None
                if self._live is not None and self._is_due(self._live):
                    return self._live
                self._changed.wait()
        return None

    def _is_due(self, turn: Turn) -> bool:
        """Tell whether another window may give more words of a turn."""
        new = self._buffer.end - (turn.heard or turn.start)
        return new >= (_WINDOW_STEP if turn.heard else _FIRST_WINDOW) and (
            turn.speech_end > turn.heard - _WINDOW_STEP or turn.spoken.has_guesses
        )

    def _recognize_window(self, turn: Turn) -> None:
        """Recognise a window of the current turn; send the words that become final."""
        known = max(turn.heard, turn.start) - turn.start - round(SURE_S * SAMPLE_RATE) - _CONTEXT
        # Aligned with the turn's frames, so that words get the same times in all windows.
        start = max(0, known) // FRAME * FRAME
        end = min(self._buffer.end - turn.start, start + _MAX_WINDOW)
        samples = self._buffer.copy(turn.start + start, turn.start + end)
        try:
            words = turn.pipeline.glance(
                Chunk(0, start, samples, start, end),
                languages=turn.languages,
                keywords=turn.keywords,
                cancelled=self._cancelled,
            )
        except RequestCancelled:
            raise
        except Exception as error:
            # Not reported: the end of the turn tries again and reports an error.
            logger.debug("a window was not recognised", exc_info=error)
            words = []
        turn.heard = turn.start + end
        with self._changed:
            if self._live is not turn:
                # The copied audio may already belong to the next turn.
                return
        self._send_words(turn, turn.spoken.hear(words, until=end / SAMPLE_RATE))

    def _send_words(self, turn: Turn, words: list[Word]) -> None:
        """Send final words; the deltas of a turn join to one text."""
        if not words:
            return
        at_start = len(turn.spoken.final) == len(words)
        delta: DeltaEvent = {
            "type": "conversation.item.input_audio_transcription.delta",
            "item_id": turn.item_id,
            "content_index": 0,
            "delta": ("" if at_start else " ") + join_words(words),
        }
        if turn.logprobs:
            delta["logprobs"] = token_logprobs(words, at_start=at_start)
        self._send(delta)
        now_s = (self._buffer.end - turn.start) / SAMPLE_RATE
        for word in words:
            self._metrics.realtime_delay_seconds.observe(max(0.0, now_s - word.end))

    def _complete(self, turn: Turn, samples: Pcm) -> None:
        """Transcribe a whole turn."""
        try:
            words = turn.pipeline.words_of(
                samples,
                languages=turn.languages,
                keywords=turn.keywords,
                cancelled=self._cancelled,
            )
        except RequestCancelled:
            raise
        except Exception as error:
            # Only this turn has failed; the session continues.
            self._fail(turn, error)
            return
        self._send_words(turn, turn.spoken.finish(words))
        text = join_words(words)
        language = detect_language(text, candidates=turn.languages)
        completed: CompletedEvent = {
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": turn.item_id,
            "content_index": 0,
            "transcript": text,
            "languages": [{"code": language}] if language else [],
            "usage": {"type": "duration", "seconds": round(len(samples) / SAMPLE_RATE, 3)},
        }
        if turn.logprobs:
            completed["logprobs"] = token_logprobs(words, at_start=True)
        self._send(completed)

    def _fail(self, turn: Turn, error: Exception) -> None:
        if not isinstance(error, ApiError):
            logger.error("a turn was not transcribed", exc_info=error)
            error = ServerError("The server had an error while transcribing this turn.")
        self._send(
            {
                "type": "conversation.item.input_audio_transcription.failed",
                "item_id": turn.item_id,
                "content_index": 0,
                "error": error_details(error),
            }
        )
