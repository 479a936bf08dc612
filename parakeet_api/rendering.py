"""A transcript -> the body and media type of an answer, in each of OpenAI's formats."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from parakeet_api.languages import english_name
from parakeet_api.settings import Settings
from parakeet_api.subtitles import make_cues, to_srt, to_vtt
from parakeet_api.transcript import Segment, Transcript, Word

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A body and what it is."""

    body: str
    media_type: str
    """For the Content-Type header."""


def render(
    transcript: Transcript,
    response_format: ResponseFormat,
    *,
    settings: Settings,
    granularities: frozenset[str] = frozenset({"segment"}),
) -> Rendered:
    """Write a transcript in one of OpenAI's formats; all of them have the same words.

    `granularities` are those that `verbose_json` lists, of `segment` and `word`; the other
    formats have no place for them.
    """
    chosen = _FORMATS[response_format]
    return Rendered(chosen.write(transcript, settings, granularities), chosen.media_type)


def _json(transcript: Transcript) -> dict[str, object]:
    return {"text": transcript.text, "usage": _usage(transcript)}


def _verbose_json(transcript: Transcript, granularities: frozenset[str]) -> dict[str, object]:
    body: dict[str, object] = {
        "task": "transcribe",
        "language": english_name(transcript.language),
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
    }
    if "word" in granularities:
        body["words"] = [_word(word) for word in transcript.words]
    if "segment" in granularities:
        body["segments"] = [
            _segment(number, segment) for number, segment in enumerate(transcript.segments)
        ]
    return body | {"usage": _usage(transcript)}


def _word(word: Word) -> dict[str, object]:
    return {"word": word.text, "start": _seconds(word.start), "end": _seconds(word.end)}


def _segment(number: int, segment: Segment) -> dict[str, object]:
    """Give the ten fields of Whisper's segments, with its meanings."""
    return {
        "id": number,
        # Whisper's frames are 10 ms, and this is where its window began; here a segment is its
        # own window.
        "seek": round(segment.start * 100),
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": f" {segment.text}",
        "tokens": [token.id for word in segment.words for token in word.tokens],
        # Decoding is a search for the likeliest words; nothing is sampled.
        "temperature": 0.0,
        "avg_logprob": _mean_logprob(segment),
        "compression_ratio": _compression_ratio(segment.text),
        # A transducer has no such output; a segment exists only because words were found.
        "no_speech_prob": 0.0,
    }


def _mean_logprob(segment: Segment) -> float | None:
    """Average over the tokens; `None` where one is unknown.

    The schema asks for a number, but every number would be a claim (0 says certain), and OpenAI's
    SDK passes null on.
    """
    logprobs = [token.logprob for word in segment.words for token in word.tokens]
    known = [logprob for logprob in logprobs if logprob is not None and math.isfinite(logprob)]
    return fmean(known) if known and len(known) == len(logprobs) else None


def _compression_ratio(text: str) -> float:
    """Tell how repetitive a text is, as openai/whisper does in `utils.compression_ratio`."""
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded))


def _usage(transcript: Transcript) -> dict[str, object]:
    return {"type": "duration", "seconds": _seconds(transcript.duration)}


def _seconds(value: float) -> float:
    return round(value, 3)


def _dump(body: dict[str, object]) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False)


class _Format(NamedTuple):
    media_type: str
    write: Callable[[Transcript, Settings, frozenset[str]], str]


_FORMATS: Mapping[ResponseFormat, _Format] = {
    "json": _Format(
        "application/json",
        lambda transcript, *_: _dump(_json(transcript)),
    ),
    "text": _Format(
        "text/plain; charset=utf-8",
        lambda transcript, *_: f"{transcript.text}\n",
    ),
    "srt": _Format(
        "application/x-subrip; charset=utf-8",
        lambda transcript, settings, _: to_srt(make_cues(transcript.segments, settings=settings)),
    ),
    "verbose_json": _Format(
        "application/json",
        lambda transcript, _, granularities: _dump(_verbose_json(transcript, granularities)),
    ),
    "vtt": _Format(
        "text/vtt; charset=utf-8",
        lambda transcript, settings, _: to_vtt(make_cues(transcript.segments, settings=settings)),
    ),
}
