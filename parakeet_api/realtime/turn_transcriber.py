"""Recognises the turns of one session in a thread of its own: windows while one goes on, then all.

What windows of all sessions have to recognise meets in the batcher's queue, and goes ahead of
recordings.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from parakeet_api.errors import ApiError, ServerError
from parakeet_api.formats.rendering import token_logprobs
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

_STEP = round(0.4 * SAMPLE_RATE)
"""A window is recognised once so much has come after the last one."""
_FIRST = round(1.2 * SAMPLE_RATE)
"""The first window of a turn: from less a model guesses. Of 177 words the tests' model told 5 wrong
with windows from 0.4 s on, all at the beginning of a turn, and 2 with these."""
_CONTEXT = round(3.0 * SAMPLE_RATE)
"""What it hears again of the words that are final already."""
_LONGEST = 12 * SAMPLE_RATE
"""A client that sends faster than people speak is followed in windows of this length."""
_MAX_COMMITTED = 8
"""Turns that may wait for their transcripts; then no more is received."""

Send = Callable[[ServerEvent], None]


@dataclass(eq=False, slots=True, kw_only=True)
class Turn:
    """What somebody says without a pause, or what the client commits."""

    item_id: str
    start: int
    """First sample, counted from the session's beginning."""
    pipeline: Pipeline
    """Of the model that the client chose."""
    languages: frozenset[str]
    logprobs: bool
    speech_end: int = 0
    """One past the last sample of speech that is known of."""
    heard: int = 0
    """One past the last sample of the last window."""
    spoken: SpokenWords = field(default_factory=SpokenWords)
    samples: Pcm | None = None
    """All of its sound, once it has ended."""


class TurnTranscriber:
    """Tells the words of one turn after the other."""

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
        """Follow a turn while it goes on."""
        with self._changed:
            self._live = turn

    def look(self) -> None:
        """Notice that there is more sound."""
        with self._changed:
            self._changed.notify_all()

    def commit(self, turn: Turn) -> None:
        """Transcribe a turn that has ended; wait while too many others are waiting."""
        with self._changed:
            self._live = None
            self._committed.append(turn)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._committed) <= _MAX_COMMITTED or self._is_over)

    def discard(self) -> None:
        """Forget the turn that goes on."""
        with self._changed:
            self._live = None

    def finish(self) -> None:
        """Transcribe what is committed, and end the thread."""
        with self._changed:
            self._is_finishing = True
            self._changed.notify_all()
        self._thread.join()

    def cancel(self) -> None:
        """Drop everything and let the thread end, within half a second or a forward pass."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether nothing is transcribed any more."""
        return self._is_over

    def _cancelled(self) -> bool:
        return self._is_over

    def _work(self) -> None:
        try:
            while (turn := self._next()) is not None:
                if turn.samples is None:
                    self._glance(turn)
                else:
                    self._complete(turn, turn.samples)
        except RequestCancelled:
            pass
        except Exception:
            # A thread's border.
            logger.exception("a live session's thread failed")
        finally:
            self.cancel()

    def _next(self) -> Turn | None:
        """Wait for a turn to transcribe or to look at; `None` at the end."""
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
        """Tell whether a window would show more of a turn."""
        new = self._buffer.end - (turn.heard or turn.start)
        return new >= (_STEP if turn.heard else _FIRST) and (
            turn.speech_end > turn.heard - _STEP or turn.spoken.has_guesses
        )

    def _glance(self, turn: Turn) -> None:
        """Recognise a window of a turn that goes on; tell the words that are final."""
        known = max(turn.heard, turn.start) - turn.start - round(SURE_S * SAMPLE_RATE) - _CONTEXT
        # On the grid of the turn's frames, where words are timed alike.
        start = max(0, known) // FRAME * FRAME
        end = min(self._buffer.end - turn.start, start + _LONGEST)
        samples = self._buffer.copy(turn.start + start, turn.start + end)
        try:
            words = turn.pipeline.glance(
                Chunk(0, start, samples, start, end),
                languages=turn.languages,
                cancelled=self._cancelled,
            )
        except RequestCancelled:
            raise
        except Exception as error:
            # Whatever it is: the turn's end tries again, and tells.
            logger.debug("a window was not recognised", exc_info=error)
            words = []
        turn.heard = turn.start + end
        with self._changed:
            if self._live is not turn:
                # Its sound may belong to the next one already.
                return
        self._tell(turn, turn.spoken.hear(words, until=end / SAMPLE_RATE))

    def _tell(self, turn: Turn, words: list[Word]) -> None:
        """Send words that are final; all deltas of a turn make one text."""
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
                samples, languages=turn.languages, cancelled=self._cancelled
            )
        except RequestCancelled:
            raise
        except Exception as error:
            # Whatever it is, it is this turn's: the session goes on.
            self._fail(turn, error)
            return
        self._tell(turn, turn.spoken.finish(words))
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
