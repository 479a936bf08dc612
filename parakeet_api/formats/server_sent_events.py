"""One transcription as server-sent events, in OpenAI's shapes.

    data: {"type": "transcript.text.delta", "delta": " of the words"}
    data: {"type": "transcript.text.done", "text": "...", "usage": {...}}

The deltas add up to the text of the end exactly. Two kinds of events are this server's own and
come only if asked for with `include[]`: `transcript.progress` and `transcript.peaks`.
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
    HasLogprobs,
    HasWarnings,
    TranscriptText,
    VerboseTranscriptionJson,
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
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Pcm, Transcript, join_words

MEDIA_TYPE = "text/event-stream; charset=utf-8"
KEEP_ALIVE = ": keep-alive\n\n"
"""A comment, which every client skips: it tells proxies that the connection lives."""

PEAKS_PER_SECOND = 10
"""A picture of an hour has 36,000 peaks; a wide screen shows 4,000."""

WaitingState = Literal["queued", "loading", "transcribing"]


class TextDelta(HasLogprobs):
    """Words that are final; with the ones before they add up to the text exactly."""

    type: Literal["transcript.text.delta"]
    delta: str
    """The words; all but the first begin with a space."""


class ProgressEvent(TypedDict):
    """How far the work is; with `include[]=progress`. Sent at least every second."""

    type: Literal["transcript.progress"]
    state: WaitingState
    """What is being done."""
    queue_position: Count | None
    """Requests still to be begun, this one included; null once it has begun."""
    done_s: Seconds
    """How much of the recording is recognised, seconds."""
    total_s: Seconds | None
    """Length of the recording by its header, often an estimate, seconds."""


class PeaksEvent(TypedDict):
    """A picture of the stretch that was recognised; with `include[]=peaks`."""

    type: Literal["transcript.peaks"]
    start_s: Seconds
    """Where the stretch starts, seconds."""
    per_second: Annotated[Count, Keywords(const=PEAKS_PER_SECOND)]
    """Peaks in a second."""
    values: Annotated[str, Keywords(contentEncoding="base64")]
    """One byte a peak, 255 = full scale, in base64."""


class TokenDetails(TypedDict):
    """Of what kind they are."""

    text_tokens: Count
    """Always 0."""
    audio_tokens: Count
    """Frames heard."""


class TokenUsage(TypedDict):
    """What the request used, in tokens: frames of 80 ms heard, pieces of words written."""

    type: Literal["tokens"]
    input_tokens: Count
    """Frames heard."""
    input_token_details: TokenDetails
    output_tokens: Count
    """Pieces of words written."""
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
    """The end of a stream that went well."""

    type: Literal["transcript.text.done"]
    usage: TokenUsage


class EventWriter:
    """Write one transcription's events; each method gives text to send, perhaps none."""

    def __init__(self, params: TranscriptionParams, *, settings: Settings) -> None:
        self._params = params
        self._settings = settings
        self._at_start = True
        self._done_s = 0.0
        self._total_s: float | None = None
        self._queue_position: int | None = None

    def queued(self, position: int) -> str:
        """Tell how many requests, this one included, are still to be begun."""
        self._queue_position = position
        return self._state("queued")

    def begun(self) -> str:
        """Tell that it is this request's turn."""
        self._queue_position = None
        return self._state()

    def progress(self, progress: Progress) -> str:
        """Tell the words that became final, and how far the recording is done."""
        start_s, self._done_s, self._total_s = self._done_s, progress.done_s, progress.total_s
        return self._peaks(start_s, progress.samples) + self._delta(progress) + self._state()

    def silence(self, *, model_is_loading: bool) -> str:
        """Keep the connection alive while there is nothing to tell."""
        if "progress" not in self._params.include:
            return KEEP_ALIVE
        return self._state("loading" if model_is_loading else "transcribing")

    def done(self, transcript: Transcript) -> str:
        """Tell the whole text and, for the formats that are more than text, the rendering."""
        event: TextDone = {
            "type": "transcript.text.done",
            **transcript_text(transcript, self._params),
            "usage": _usage(transcript),
            **warnings_field(transcript.caveats),
            **self._rendering(transcript),
        }
        return _event(event)

    def error(self, failure: ApiError) -> str:
        """Tell that the transcription ends here, in the shape that OpenAI's clients raise."""
        return _event(failure.body())

    def _delta(self, progress: Progress) -> str:
        words = progress.words
        if not words:
            return ""
        lead = "" if self._at_start else " "
        event: TextDelta = {
            "type": "transcript.text.delta",
            "delta": lead + join_words(words),
        }
        if "logprobs" in self._params.include:
            event["logprobs"] = token_logprobs(words, at_start=self._at_start)
        self._at_start = False
        return _event(event)

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

    def _peaks(self, start_s: float, samples: Pcm) -> str:
        if "peaks" not in self._params.include or not len(samples):
            return ""
        event: PeaksEvent = {
            "type": "transcript.peaks",
            "start_s": round(start_s, 3),
            "per_second": PEAKS_PER_SECOND,
            "values": base64.b64encode(peaks(samples)).decode("ascii"),
        }
        return _event(event)

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
    """Give the loudest sample of each `1 / PEAKS_PER_SECOND` s as a byte, 255 = full scale."""
    width = SAMPLE_RATE // PEAKS_PER_SECOND
    padded = np.zeros(math.ceil(len(samples) / width) * width, np.int32)
    padded[: len(samples)] = samples
    loudest = np.abs(padded).reshape(-1, width).max(axis=1)
    return bytes((loudest >> 7).clip(max=255).astype(np.uint8))


def _usage(transcript: Transcript) -> TokenUsage:
    """Count tokens, as the schema of a stream's end asks.

    The model hears one frame of 80 ms at a time and writes pieces of words: these are its tokens.
    """
    heard = math.ceil(transcript.duration * SAMPLE_RATE / FRAME)
    written = sum(len(word.tokens) for word in transcript.words)
    return {
        "type": "tokens",
        "input_tokens": heard,
        "input_token_details": {"text_tokens": 0, "audio_tokens": heard},
        "output_tokens": written,
        "total_tokens": heard + written,
    }


def _event(body: Mapping[str, object]) -> str:
    return f"data: {to_json(body)}\n\n"
