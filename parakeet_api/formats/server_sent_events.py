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
from typing import Any, Literal

import numpy as np

from parakeet_api.errors import ApiError
from parakeet_api.formats.rendering import (
    json_body,
    render,
    to_json,
    token_logprobs,
    verbose_json_body,
    warnings_list,
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
        body = json_body(transcript, self._params)
        event = {"type": "transcript.text.done"} | body | {"usage": _usage(transcript)}
        if transcript.caveats:
            event["warnings"] = warnings_list(transcript.caveats)
        return _event(event | self._rendering(transcript))

    def error(self, failure: ApiError) -> str:
        """Tell that the transcription ends here, in the shape that OpenAI's clients raise."""
        return _event(failure.body())

    def _delta(self, progress: Progress) -> str:
        words = progress.words
        if not words:
            return ""
        lead = "" if self._at_start else " "
        event: dict[str, object] = {
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
        return _event(
            {
                "type": "transcript.progress",
                "state": state,
                "queue_position": self._queue_position,
                "done_s": round(self._done_s, 3),
                "total_s": self._total_s and round(self._total_s, 3),
            }
        )

    def _peaks(self, start_s: float, samples: Pcm) -> str:
        if "peaks" not in self._params.include or not len(samples):
            return ""
        return _event(
            {
                "type": "transcript.peaks",
                "start_s": round(start_s, 3),
                "per_second": PEAKS_PER_SECOND,
                "values": base64.b64encode(peaks(samples)).decode("ascii"),
            }
        )

    def _rendering(self, transcript: Transcript) -> dict[str, object]:
        chosen = self._params.response_format
        if chosen == "verbose_json":
            return {chosen: verbose_json_body(transcript, self._params)}
        if chosen in ("srt", "vtt"):
            return {chosen: render(transcript, self._params, settings=self._settings).body}
        return {}


def peaks(samples: Pcm) -> bytes:
    """Give the loudest sample of each `1 / PEAKS_PER_SECOND` s as a byte, 255 = full scale."""
    width = SAMPLE_RATE // PEAKS_PER_SECOND
    padded = np.zeros(math.ceil(len(samples) / width) * width, np.int32)
    padded[: len(samples)] = samples
    loudest = np.abs(padded).reshape(-1, width).max(axis=1)
    return bytes((loudest >> 7).clip(max=255).astype(np.uint8))


def _usage(transcript: Transcript) -> dict[str, object]:
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


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {to_json(body)}\n\n"
