"""A transcript -> the body and media type of an answer, in each of OpenAI's formats."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from parakeet_api.formats.request_params import ResponseFormat, TranscriptionParams
from parakeet_api.formats.subtitles import make_cues, to_srt, to_vtt
from parakeet_api.languages import english_name
from parakeet_api.settings import Settings
from parakeet_api.transcript import Caveat, Segment, Transcript, Word

WARNINGS_HEADER = "X-Transcript-Warnings"
_LONGEST_HEADER = 4000
"""Bytes. Proxies refuse heads of more than 8 KB."""

UNKNOWN_LANGUAGE = "unknown"
"""Where a client's schema demands a language and none was said or recognised."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A body and what it is."""

    body: str
    media_type: str
    """For the Content-Type header."""
    caveats: tuple[Caveat, ...] = ()
    """What else is to be told of the transcript."""

    @property
    def headers(self) -> dict[str, str]:
        """Give the headers that the answer has beside its type."""
        if not self.caveats:
            return {}
        listed = warnings_list(self.caveats)
        while len(json.dumps(listed)) > _LONGEST_HEADER:
            listed.pop()
        return {WARNINGS_HEADER: json.dumps(listed)}

    @property
    def content(self) -> Any:
        """Give the body as a value: parsed where it is JSON, else the text."""
        return json.loads(self.body) if self.media_type == "application/json" else self.body


def render(transcript: Transcript, params: TranscriptionParams, *, settings: Settings) -> Rendered:
    """Write a transcript in the format asked for; all of them have the same words."""
    chosen = _FORMATS[params.response_format]
    return Rendered(
        chosen.write(transcript, params, settings), chosen.media_type, transcript.caveats
    )


def warnings_list(caveats: Sequence[Caveat]) -> list[dict[str, object]]:
    """List caveats as answers do."""
    return [dataclasses.asdict(caveat) for caveat in caveats]


def token_logprobs(words: Sequence[Word], *, at_start: bool) -> list[dict[str, object]]:
    """List words' tokens as OpenAI's `include[]=logprobs` does.

    Their texts add up to the words' text, which begins with a space unless it is the transcript's
    start.
    """
    return [
        {
            "token": text,
            "logprob": _finite(token.logprob),
            "bytes": list(text.encode()),
        }
        for number, word in enumerate(words)
        for token, text in zip(
            word.tokens, _token_texts(word, at_start=at_start and number == 0), strict=True
        )
    ]


def languages_spoken(transcript: Transcript) -> dict[str, object]:
    """Give OpenAI's field `languages`, where the language is known."""
    return {"languages": [{"code": transcript.language}]} if transcript.language else {}


def to_json(body: Mapping[str, object]) -> str:
    """Write JSON on one line."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False)


def json_body(transcript: Transcript, params: TranscriptionParams) -> dict[str, object]:
    """Give the object of `response_format=json`."""
    return {
        "text": transcript.text,
        **languages_spoken(transcript),
        **_logprobs(transcript, params),
        "usage": _usage(transcript),
    }


def verbose_json_body(transcript: Transcript, params: TranscriptionParams) -> dict[str, object]:
    """Give the object of `response_format=verbose_json`, the list of tokens left out."""
    language = transcript.language
    body: dict[str, object] = {
        "task": params.task,
        "language": english_name(language) if language else UNKNOWN_LANGUAGE,
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
    }
    if "word" in params.granularities:
        body["words"] = [_word(word, params) for word in transcript.words]
    if "segment" in params.granularities:
        body["segments"] = [
            _segment(number, segment) for number, segment in enumerate(transcript.segments)
        ]
    if len(transcript.tracks) > 1:
        body["tracks"] = [dataclasses.asdict(track) for track in transcript.tracks]
    if transcript.caveats:
        body["warnings"] = warnings_list(transcript.caveats)
    return body | {"usage": _usage(transcript)}


def _logprobs(transcript: Transcript, params: TranscriptionParams) -> dict[str, object]:
    if "logprobs" not in params.include:
        return {}
    return {"logprobs": token_logprobs(transcript.words, at_start=True)}


def _token_texts(word: Word, *, at_start: bool) -> list[str]:
    texts = [token.text for token in word.tokens]
    if texts:
        texts[0] = ("" if at_start else " ") + texts[0].lstrip()
    return texts


def _word(word: Word, params: TranscriptionParams) -> dict[str, object]:
    entry: dict[str, object] = {
        "word": word.text,
        "start": _seconds(word.start),
        "end": _seconds(word.end),
    }
    if "logprobs" in params.include:
        entry["logprob"] = _finite(word.logprob)
    return entry


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


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity."""
    return logprob if logprob is not None and math.isfinite(logprob) else None


class _Format(NamedTuple):
    media_type: str
    write: Callable[[Transcript, TranscriptionParams, Settings], str]


_FORMATS: Mapping[ResponseFormat, _Format] = {
    "json": _Format(
        "application/json",
        lambda transcript, params, _: to_json(json_body(transcript, params)),
    ),
    "text": _Format(
        "text/plain; charset=utf-8",
        lambda transcript, *_: f"{transcript.text}\n",
    ),
    "srt": _Format(
        "application/x-subrip; charset=utf-8",
        lambda transcript, _, settings: to_srt(make_cues(transcript.segments, settings=settings)),
    ),
    "verbose_json": _Format(
        "application/json",
        lambda transcript, params, _: to_json(
            verbose_json_body(transcript, params) | _logprobs(transcript, params)
        ),
    ),
    "vtt": _Format(
        "text/vtt; charset=utf-8",
        lambda transcript, _, settings: to_vtt(make_cues(transcript.segments, settings=settings)),
    ),
}
