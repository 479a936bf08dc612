"""Render one transcription as server-sent events, in OpenAI's format.

    data: {"type": "transcript.text.delta", "delta": " of the words"}
    data: {"type": "transcript.text.done", "text": "...", "usage": {...}}

All deltas together are exactly the final text. With `response_format=diarized_json`, a
`transcript.text.segment` follows the delta of each segment. `transcript.progress` and
`transcript.peaks` are this server's own; they are sent only if `include[]` lists them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from parakeet_api.errors import ApiError
from parakeet_api.formats.json_types import Count, Keywords, Seconds
from parakeet_api.formats.rendering import (
    DiarizedSegmentJson,
    HasLogprobs,
    HasWarnings,
    TranscriptText,
    VerboseTranscriptionJson,
    diarized_segment,
    render,
    to_json,
    token_logprobs,
    transcript_text,
    verbose_json_body,
    warnings_field,
)
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.pipeline import Progress
from parakeet_api.settings import Settings
from parakeet_api.transcript import (
    FRAME,
    SAMPLE_RATE,
    Pcm,
    Segment,
    Transcript,
    Word,
    join_words,
)

MEDIA_TYPE = "text/event-stream; charset=utf-8"
KEEP_ALIVE = ": keep-alive\n\n"
"""A comment, which clients ignore; it keeps proxies from closing the connection."""

PEAKS_PER_SECOND = 10
"""36,000 peaks an hour; a wide screen shows 4,000."""

WaitingState = Literal["queued", "loading", "transcribing"]


class TextDelta(HasLogprobs):
    """Final words; all deltas together are exactly the text."""

    type: Literal["transcript.text.delta"]
    delta: str
    """The words; all but the first begin with a space."""
    segment_id: NotRequired[str]
    """The segment that they belong to; with `response_format=diarized_json`."""


class ProgressEvent(TypedDict):
    """Progress; with `include[]=progress`. Sent at least every second."""

    type: Literal["transcript.progress"]
    state: WaitingState
    """The current step."""
    queue_position: Count | None
    """Position in the queue, from 1; null once the request has left it."""
    done_s: Seconds
    """Audio recognised so far, seconds."""
    total_s: Seconds | None
    """Length of the recording by its header, often an estimate, seconds."""


class TextSegment(DiarizedSegmentJson):
    """A complete segment of one speaker; with `response_format=diarized_json`."""


class PeaksEvent(TypedDict):
    """Waveform peaks of the audio that was recognised; with `include[]=peaks`."""

    type: Literal["transcript.peaks"]
    start_s: Seconds
    """Where this audio starts, seconds."""
    per_second: Annotated[Count, Keywords(const=PEAKS_PER_SECOND)]
    """Peaks per second."""
    values: Annotated[str, Keywords(contentEncoding="base64")]
    """One byte per peak, 255 = full scale, in base64."""


class TokenDetails(TypedDict):
    """Input tokens by kind."""

    text_tokens: Count
    """Always 0."""
    audio_tokens: Count
    """Frames of audio."""


class TokenUsage(TypedDict):
    """What the request used: frames of 80 ms as input tokens, the transcript's tokens as output."""

    type: Literal["tokens"]
    input_tokens: Count
    """Frames of audio."""
    input_token_details: TokenDetails
    output_tokens: Count
    """Tokens of the transcript."""
    total_tokens: Count
    """Their sum."""


class Renderings(TypedDict):
    """The formats that are more than text."""

    verbose_json: NotRequired[VerboseTranscriptionJson]
    srt: NotRequired[str]
    """Subtitles; with `response_format=srt`."""
    vtt: NotRequired[str]
    """Subtitles; with `response_format=vtt`."""


class TextDone(TranscriptText, Renderings, HasWarnings):
    """The end of a successful stream."""

    type: Literal["transcript.text.done"]
    usage: TokenUsage


RecognizedEvent = TextDelta | TextSegment | PeaksEvent
"""What becomes known with a chunk."""


class EventWriter:
    """Render one transcription's events; each method returns the text to send, perhaps empty."""

    def __init__(self, params: TranscriptionParams, *, settings: Settings) -> None:
        self._params = params
        self._settings = settings
        self._at_start = True
        self._segments = 0
        self._done_s = 0.0
        self._total_s: float | None = None
        self._queue_position: int | None = None

    def queued(self, position: int) -> str:
        """Report the position in the queue, from 1."""
        self._queue_position = position
        return self._state("queued")

    def started(self) -> str:
        """Report that the request has left the queue."""
        self._queue_position = None
        return self._state()

    def progress(self, progress: Progress) -> str:
        """Report the words that became final, and the progress."""
        return "".join(map(_event, self.recognized(progress))) + self._state()

    def recognized(self, progress: Progress) -> list[RecognizedEvent]:
        """Return the events of what became final, in order, as objects instead of text."""
        start_s, self._done_s, self._total_s = self._done_s, progress.done_s, progress.total_s
        if self._params.response_format == "diarized_json":
            spoken = [event for part in progress.segments for event in self._segment(part)]
            return [*self._peaks(start_s, progress.samples), *spoken]
        return [*self._peaks(start_s, progress.samples), *self._delta(progress.words)]

    def silence(self, *, model_is_loading: bool) -> str:
        """Keep the connection alive while there is nothing to report."""
        if "progress" not in self._params.include:
            return KEEP_ALIVE
        return self._state("loading" if model_is_loading else "transcribing")

    def done(self, transcript: Transcript) -> str:
        """Report the whole text and, for verbose_json, srt and vtt, the rendering."""
        event: TextDone = {
            "type": "transcript.text.done",
            **transcript_text(transcript, self._params),
            "usage": _usage(transcript),
            **warnings_field(transcript.caveats),
            **self._rendering(transcript),
        }
        return _event(event)

    def error(self, failure: ApiError) -> str:
        """Report an error that ends the stream, in the format that OpenAI's clients raise."""
        return _event(failure.body())

    def _segment(self, segment: Segment) -> list[TextDelta | TextSegment]:
        self._segments += 1
        whole: TextSegment = {**diarized_segment(self._segments, segment)}
        deltas = self._delta(segment.words)
        for delta in deltas:
            delta["segment_id"] = whole["id"]
        return [*deltas, whole]

    def _delta(self, words: tuple[Word, ...]) -> list[TextDelta]:
        if not words:
            return []
        lead = "" if self._at_start else " "
        event: TextDelta = {
            "type": "transcript.text.delta",
            "delta": lead + join_words(words),
        }
        if "logprobs" in self._params.include:
            event["logprobs"] = token_logprobs(words, at_start=self._at_start)
        self._at_start = False
        return [event]

    def _state(self, state: WaitingState = "transcribing") -> str:
        if "progress" not in self._params.include:
            return ""
        if self._queue_position is not None:
            state = "queued"
        event: ProgressEvent = {
            "type": "transcript.progress",
            "state": state,
            "queue_position": self._queue_position,
            "done_s": round(self._done_s, 3),
            "total_s": self._total_s and round(self._total_s, 3),
        }
        return _event(event)

    def _peaks(self, start_s: float, samples: Pcm) -> list[PeaksEvent]:
        if "peaks" not in self._params.include or not len(samples):
            return []
        event: PeaksEvent = {
            "type": "transcript.peaks",
            "start_s": round(start_s, 3),
            "per_second": PEAKS_PER_SECOND,
            "values": base64.b64encode(peaks(samples)).decode("ascii"),
        }
        return [event]

    def _rendering(self, transcript: Transcript) -> Renderings:
        match self._params.response_format:
            case "verbose_json":
                return {"verbose_json": verbose_json_body(transcript, self._params)}
            case "srt":
                return {"srt": render(transcript, self._params, settings=self._settings).body}
            case "vtt":
                return {"vtt": render(transcript, self._params, settings=self._settings).body}
        return {}


def peaks(samples: Pcm) -> bytes:
    """Return the loudest sample of each `1 / PEAKS_PER_SECOND` s as a byte, 255 = full scale."""
    width = SAMPLE_RATE // PEAKS_PER_SECOND
    padded = np.zeros(math.ceil(len(samples) / width) * width, np.int32)
    padded[: len(samples)] = samples
    loudest = np.abs(padded).reshape(-1, width).max(axis=1)
    return bytes((loudest >> 7).clip(max=255).astype(np.uint8))


def _usage(transcript: Transcript) -> TokenUsage:
    """Count tokens, as OpenAI's schema of the last event requires.

    Input tokens are the encoder's frames of 80 ms.
    """
    frames = math.ceil(transcript.duration * SAMPLE_RATE / FRAME)
    output_tokens = sum(len(word.tokens) for word in transcript.words)
    return {
        "type": "tokens",
        "input_tokens": frames,
        "input_token_details": {"text_tokens": 0, "audio_tokens": frames},
        "output_tokens": output_tokens,
        "total_tokens": frames + output_tokens,
    }


def _event(body: Mapping[str, object]) -> str:
    return f"data: {to_json(body)}\n\n"
