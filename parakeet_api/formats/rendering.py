"""Render a transcript as a response body in each of OpenAI's formats."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from typing_extensions import TypedDict

from parakeet_api.formats.json_types import Count, Keywords, Logprob, Seconds, SpokenText
from parakeet_api.formats.request_params import Task, TranscriptionParams
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.formats.subtitles import make_cues, to_srt, to_vtt
from parakeet_api.languages import english_name
from parakeet_api.settings import Settings
from parakeet_api.speech.speakers import letter
from parakeet_api.transcript import Caveat, Segment, SoundTrack, Transcript, Word

WARNINGS_HEADER = "X-Transcript-Warnings"
_MAX_HEADER = 4000
"""Bytes; many proxies refuse response heads of more than 8 KB."""

UNKNOWN_LANGUAGE = "unknown"
"""For a required field: no language was given or recognised."""


class WarningJson(TypedDict):
    """A problem of the recording that affects its transcript."""

    code: Annotated[
        str,
        Keywords(
            examples=["truncated_audio", "track_silent", "speech_without_words", "undecodable"]
        ),
    ]
    """For programs."""
    message: str
    """For people."""
    start: Seconds | None
    """Where it begins, seconds; null if it concerns the whole recording."""
    end: Seconds | None
    """Where it ends, seconds."""


class SoundTrackJson(TypedDict):
    """One of a file's sound tracks."""

    number: Count
    """Its number for `audio_track`, from 1."""
    codec: Annotated[str, Keywords(examples=["aac"])]
    """ffmpeg's name for it."""
    language: Annotated[str, Keywords(examples=["eng"])] | None
    """As the file says it."""
    title: str | None
    """As the file says it."""
    default: bool
    """Whether players choose it by default."""
    used: bool
    """Whether it is in the transcript."""


class TokenLogprobJson(TypedDict):
    """A token: a word or a part of one."""

    token: str
    """Its text; the first token of a word begins with a space."""
    logprob: Logprob | None
    """Natural logarithm of the model's probability; null where it gives none."""
    bytes: list[Annotated[int, Keywords(minimum=0, maximum=255, description="A byte.")]]
    """The text in UTF-8."""


class HasSpeaker(TypedDict):
    """Who said it; where the request asks for that."""

    speaker: NotRequired[Annotated[str, Keywords(examples=["A"])]]
    """Who says it: a known speaker's name, or a letter in the order of speaking."""
    channel: NotRequired[Annotated[int, Keywords(minimum=1)]]
    """The channel that it is said on, from 1; where channels are apart."""


class WordJson(HasSpeaker):
    """A word, its punctuation included."""

    word: str
    """The word."""
    start: Seconds
    """Its start, seconds."""
    end: Seconds
    """Its end, seconds."""
    logprob: NotRequired[Logprob | None]
    """The sum over its tokens; with `include[]=logprobs`."""
    from_keyword: NotRequired[Literal[True]]
    """A keyword of the request put it in the place of what the model hears without."""


class SegmentJson(HasSpeaker):
    """A sentence, or the stretch between two long pauses, with Whisper's ten fields."""

    id: Count
    """Position among the segments, from 0."""
    seek: Count
    """Its start in frames of 10 ms, as Whisper counts."""
    start: Seconds
    """Its start, seconds."""
    end: Seconds
    """Its end, seconds."""
    text: str
    """Its words, after a space."""
    tokens: list[
        Annotated[int, Keywords(minimum=0, description="A token's id in the model's vocabulary.")]
    ]
    """Its tokens."""
    temperature: Annotated[float, Keywords(const=0.0)]
    """Always 0: nothing is sampled."""
    avg_logprob: Logprob | None
    """Mean over its tokens; null where one is unknown."""
    compression_ratio: float
    """How repetitive the text is, as Whisper computes it."""
    no_speech_prob: Annotated[float, Keywords(const=0.0)]
    """Always 0: this kind of model has no such output."""


class DiarizedSegmentJson(TypedDict):
    """A sentence, or a part of one, of a single speaker."""

    type: Literal["transcript.text.segment"]
    id: Annotated[str, Keywords(examples=["seg_001"])]
    """Unique among the segments."""
    start: Seconds
    """Its start, seconds."""
    end: Seconds
    """Its end, seconds."""
    text: str
    """Its words."""
    speaker: Annotated[str, Keywords(examples=["A"])]
    """Who says it: a known speaker's name, or a letter in the order of speaking."""
    channel: NotRequired[Annotated[int, Keywords(minimum=1)]]
    """The channel that it is said on, from 1; where channels are apart."""


class LanguageJson(TypedDict):
    """A language."""

    code: Annotated[str, Keywords(examples=["en"])]
    """Its ISO 639-1 code."""


class DurationUsage(TypedDict):
    """What the request used."""

    type: Literal["duration"]
    seconds: Seconds
    """Length of the recording, seconds."""


class HasLogprobs(TypedDict):
    """A field of several responses."""

    logprobs: NotRequired[list[TokenLogprobJson]]
    """The text's tokens; with `include[]=logprobs`. Their texts add up to the text."""


class HasWarnings(TypedDict):
    """A field of several responses."""

    warnings: NotRequired[list[WarningJson]]
    """Problems that affect the transcript; absent if there are none."""


class TranscriptText(HasLogprobs):
    """Common fields of OpenAI's responses and the last event of its streams."""

    text: SpokenText
    languages: NotRequired[list[LanguageJson]]
    """The language spoken; absent if unknown."""


class TranscriptionJson(TranscriptText):
    """The response of `response_format=json`."""

    usage: DurationUsage


class TranscriptLists(HasWarnings, HasLogprobs):
    """The lists of `response_format=verbose_json`."""

    words: NotRequired[list[WordJson]]
    """With `timestamp_granularities[]=word`."""
    segments: NotRequired[list[SegmentJson]]
    """With `timestamp_granularities[]=segment`."""
    tracks: NotRequired[list[SoundTrackJson]]
    """The file's sound tracks, where it has several."""


class VerboseTranscriptionJson(TranscriptLists):
    """The response of `response_format=verbose_json`."""

    task: Task
    """The task of the request."""
    language: Annotated[str, Keywords(examples=["english"])]
    """English name of the language spoken, or `unknown`."""
    duration: Seconds
    """Length of the recording, seconds."""
    text: SpokenText
    usage: DurationUsage


class DiarizedTranscriptionJson(HasWarnings):
    """The response of `response_format=diarized_json`."""

    task: Task
    """The task of the request."""
    duration: Seconds
    """Length of the recording, seconds."""
    text: SpokenText
    segments: list[DiarizedSegmentJson]
    """In order of their start; those of two speakers may overlap."""
    usage: DurationUsage


@dataclass(frozen=True, slots=True)
class Rendered:
    """A response body with its media type."""

    body: str
    media_type: str
    """For the Content-Type header."""
    caveats: tuple[Caveat, ...] = ()
    """Problems that affect the transcript."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the response, besides its media type."""
        if not self.caveats:
            return {}
        listed = warnings_list(self.caveats)
        while len(json.dumps(listed)) > _MAX_HEADER:
            listed.pop()
        return {WARNINGS_HEADER: json.dumps(listed)}

    @property
    def content(self) -> Any:
        """Return the body as a value: parsed where it is JSON, else the text."""
        return json.loads(self.body) if self.media_type == "application/json" else self.body


def render(transcript: Transcript, params: TranscriptionParams, *, settings: Settings) -> Rendered:
    """Write a transcript in the requested format; all formats have the same words."""
    chosen = _FORMATS[params.response_format]
    return Rendered(
        chosen.write(transcript, params, settings), chosen.media_type, transcript.caveats
    )


def warnings_list(caveats: Sequence[Caveat]) -> list[WarningJson]:
    """Return the JSON of caveats."""
    return [
        {
            "code": caveat.code,
            "message": caveat.message,
            "start": caveat.start,
            "end": caveat.end,
        }
        for caveat in caveats
    ]


def warnings_field(caveats: Sequence[Caveat]) -> HasWarnings:
    """Return the field `warnings`, where there are any."""
    return {"warnings": warnings_list(caveats)} if caveats else {}


def token_logprobs(words: Sequence[Word], *, at_start: bool) -> list[TokenLogprobJson]:
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


def to_json(body: Mapping[str, object]) -> str:
    """Write JSON on one line."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False)


def transcript_text(transcript: Transcript, params: TranscriptionParams) -> TranscriptText:
    """Return the text, its language where that is known, and its tokens where they are wanted."""
    fields: TranscriptText = {"text": transcript.text}
    if transcript.language:
        fields["languages"] = [{"code": transcript.language}]
    if "logprobs" in params.include:
        fields["logprobs"] = token_logprobs(transcript.words, at_start=True)
    return fields


def json_body(transcript: Transcript, params: TranscriptionParams) -> TranscriptionJson:
    """Return the object of `response_format=json`."""
    return {**transcript_text(transcript, params), "usage": _usage(transcript)}


def verbose_json_body(
    transcript: Transcript, params: TranscriptionParams
) -> VerboseTranscriptionJson:
    """Return the object of `response_format=verbose_json`, the list of tokens left out."""
    language = transcript.language
    return {
        "task": params.task,
        "language": english_name(language) if language else UNKNOWN_LANGUAGE,
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
        **_lists(transcript, params),
        "usage": _usage(transcript),
    }


def diarized_json_body(
    transcript: Transcript, params: TranscriptionParams
) -> DiarizedTranscriptionJson:
    """Return the object of `response_format=diarized_json`."""
    return {
        "task": params.task,
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
        "segments": [
            diarized_segment(number, segment)
            for number, segment in enumerate(transcript.segments, start=1)
        ],
        "usage": _usage(transcript),
        **warnings_field(transcript.caveats),
    }


def diarized_segment(number: int, segment: Segment) -> DiarizedSegmentJson:
    """Return a segment as OpenAI has it; `number` counts from 1."""
    entry: DiarizedSegmentJson = {
        "type": "transcript.text.segment",
        "id": segment_id(number),
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "speaker": segment.speaker or letter(0),
    }
    if segment.channel is not None:
        entry["channel"] = segment.channel
    return entry


def segment_id(number: int) -> str:
    """Return the id of a diarized segment, counted from 1."""
    return f"seg_{number:03}"


def speaker_lines(transcript: Transcript) -> list[str]:
    """Return a line for each segment, with the speaker's name at a change."""
    lines: list[str] = []
    before: str | None = None
    for segment in transcript.segments:
        name = f"{segment.speaker}: " if segment.speaker not in (None, before) else ""
        lines.append(name + segment.text)
        before = segment.speaker
    return lines


def speaker_field(said: Word | Segment) -> HasSpeaker:
    """Return who said words, and on which channel, where that is known."""
    field: HasSpeaker = {}
    if said.speaker is not None:
        field["speaker"] = said.speaker
    if said.channel is not None:
        field["channel"] = said.channel
    return field


def _lists(transcript: Transcript, params: TranscriptionParams) -> TranscriptLists:
    lists: TranscriptLists = {}
    if "word" in params.granularities:
        lists["words"] = [_word(word, params) for word in transcript.words]
    if "segment" in params.granularities:
        lists["segments"] = segments_list(transcript)
    if len(transcript.tracks) > 1:
        lists["tracks"] = [_track(track) for track in transcript.tracks]
    return {**lists, **warnings_field(transcript.caveats)}


def segments_list(transcript: Transcript) -> list[SegmentJson]:
    """List segments with the ten fields of Whisper's, and its meanings."""
    return [_segment(number, segment) for number, segment in enumerate(transcript.segments)]


def _track(track: SoundTrack) -> SoundTrackJson:
    return {
        "number": track.number,
        "codec": track.codec,
        "language": track.language,
        "title": track.title,
        "default": track.default,
        "used": track.used,
    }


def _logprobs(transcript: Transcript, params: TranscriptionParams) -> HasLogprobs:
    if "logprobs" not in params.include:
        return {}
    return {"logprobs": token_logprobs(transcript.words, at_start=True)}


def _token_texts(word: Word, *, at_start: bool) -> list[str]:
    texts = [token.text for token in word.tokens]
    if texts:
        texts[0] = ("" if at_start else " ") + texts[0].lstrip()
    return texts


def _word(word: Word, params: TranscriptionParams) -> WordJson:
    entry: WordJson = {
        "word": word.text,
        "start": _seconds(word.start),
        "end": _seconds(word.end),
    }
    if "logprobs" in params.include:
        entry["logprob"] = _finite(word.logprob)
    if word.from_keyword:
        entry["from_keyword"] = True
    return {**entry, **speaker_field(word)}


def _segment(number: int, segment: Segment) -> SegmentJson:
    return {
        "id": number,
        # In Whisper, the start of its window in frames of 10 ms; here a segment is its own window.
        "seek": round(segment.start * 100),
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": f" {segment.text}",
        "tokens": [token.id for word in segment.words for token in word.tokens],
        # Decoding does not sample.
        "temperature": 0.0,
        "avg_logprob": _mean_logprob(segment),
        "compression_ratio": _compression_ratio(segment.text),
        # A transducer has no such output, and a segment has at least one word.
        "no_speech_prob": 0.0,
        **speaker_field(segment),
    }


def _mean_logprob(segment: Segment) -> float | None:
    """Average over the tokens; `None` where one is unknown.

    OpenAI's schema requires a number, but any number would be wrong (0 means certain), and its SDK
    accepts null.
    """
    logprobs = [token.logprob for word in segment.words for token in word.tokens]
    known = [logprob for logprob in logprobs if logprob is not None and math.isfinite(logprob)]
    return fmean(known) if known and len(known) == len(logprobs) else None


def _compression_ratio(text: str) -> float:
    """Measure how repetitive a text is, like `utils.compression_ratio` of openai/whisper."""
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded))


def _usage(transcript: Transcript) -> DurationUsage:
    return {"type": "duration", "seconds": _seconds(transcript.duration)}


def _seconds(value: float) -> float:
    return round(value, 3)


def _finite(logprob: float | None) -> float | None:
    """Replace infinity, which JSON lacks, by `None`."""
    return logprob if logprob is not None and math.isfinite(logprob) else None


class _Format(NamedTuple):
    media_type: str
    write: Callable[[Transcript, TranscriptionParams, Settings], str]


def _plain_text(transcript: Transcript) -> str:
    """Write a text on one line; with speakers, on a line for each turn."""
    if all(segment.speaker is None for segment in transcript.segments):
        return f"{transcript.text}\n"
    turns = groupby(transcript.segments, key=lambda segment: segment.speaker)
    return "".join(
        f"{speaker}: {' '.join(segment.text for segment in segments)}\n"
        for speaker, segments in turns
    )


_FORMATS: Mapping[ResponseFormat, _Format] = {
    "json": _Format(
        "application/json",
        lambda transcript, params, _: to_json(json_body(transcript, params)),
    ),
    "text": _Format("text/plain; charset=utf-8", lambda transcript, *_: _plain_text(transcript)),
    "srt": _Format(
        "application/x-subrip; charset=utf-8",
        lambda transcript, _, settings: to_srt(make_cues(transcript.segments, settings=settings)),
    ),
    "verbose_json": _Format(
        "application/json",
        lambda transcript, params, _: to_json(
            {**verbose_json_body(transcript, params), **_logprobs(transcript, params)}
        ),
    ),
    "diarized_json": _Format(
        "application/json",
        lambda transcript, params, _: to_json(diarized_json_body(transcript, params)),
    ),
    "vtt": _Format(
        "text/vtt; charset=utf-8",
        lambda transcript, _, settings: to_vtt(make_cues(transcript.segments, settings=settings)),
    ),
}
