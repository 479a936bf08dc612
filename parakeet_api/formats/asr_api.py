"""The parameters and responses of whisper-asr-webservice, which Bazarr and others use.

https://github.com/ahmetoner/whisper-asr-webservice: parameters are in the query string, responses
like those of openai/whisper's writers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from parakeet_api.formats.form_fields import Form, read_boolean, read_choice
from parakeet_api.formats.json_types import Keywords, Seconds, Share, SpokenText
from parakeet_api.formats.rendering import (
    HasSpeaker,
    HasWarnings,
    Rendered,
    SegmentJson,
    render,
    segments_list,
    speaker_field,
    speaker_lines,
    to_json,
    warnings_field,
)
from parakeet_api.formats.request_params import (
    Task,
    TranscriptionParams,
    read_keywords,
    read_languages,
    read_track,
)
from parakeet_api.formats.speaker_params import (
    DecodeReference,
    ResponseFormat,
    refuse_reference,
    speaker_request,
)
from parakeet_api.keywords import Keyword
from parakeet_api.languages import english_name
from parakeet_api.settings import Settings
from parakeet_api.speech.language_detection import rank_languages, tagged_languages
from parakeet_api.transcript import (
    NO_SPEAKERS,
    ChannelChoice,
    Segment,
    SpeakerRequest,
    Transcript,
    Word,
    join_words,
)

Output = Literal["txt", "vtt", "srt", "tsv", "json"]


class AsrWordJson(HasSpeaker):
    """A word, its punctuation included."""

    word: str
    """The word, after a space."""
    start: Seconds
    """Its start, seconds."""
    end: Seconds
    """Its end, seconds."""
    probability: Share | None
    """The model's probability of its tokens; null where unknown."""


class HasAsrWords(TypedDict):
    """The words of a segment."""

    words: NotRequired[list[AsrWordJson]]
    """With `word_timestamps=true`."""


class AsrSegmentJson(SegmentJson, HasAsrWords):
    """A sentence, or the stretch between two long pauses, with Whisper's ten fields."""


class AsrTranscriptionJson(HasWarnings):
    """The response of `output=json`."""

    text: SpokenText
    segments: list[AsrSegmentJson]
    """The sentences."""
    language: str | None
    """ISO 639-1 code of the language spoken, where known."""


class DetectedLanguage(TypedDict):
    """The language of a recording, one of the model's."""

    detected_language: Annotated[str, Keywords(examples=["english"])]
    """Its English name, or `undetermined`."""
    language_code: Annotated[str, Keywords(examples=["en"])]
    """Its ISO 639-1 code, or `und`."""
    confidence: NotRequired[Share]
    """How certain; absent if the model has only one language."""


UNDETERMINED: DetectedLanguage = {"detected_language": "undetermined", "language_code": "und"}
"""The name and code of ISO 639-2 for an unknown language. Bazarr looks up the name if it does not
know the code, and treats any other name as a server error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsrParams:
    """The parameters of a request."""

    output: Output
    task: Task
    languages: frozenset[str]
    """ISO 639-1 codes of the languages that may be spoken."""
    word_timestamps: bool
    """List words; for `json`."""
    raw_pcm: bool
    """The upload is 16 kHz mono 16-bit samples without a header."""
    audio_track: int | Literal["all"] | None
    allow_partial: bool
    keywords: tuple[Keyword, ...] = ()
    """Phrases that may be said: `hotwords`, as other servers of this API call them."""
    speakers: SpeakerRequest = NO_SPEAKERS
    """Who spoke, if that is asked."""


def parse_asr_params(
    form: Form,
    *,
    languages: frozenset[str],
    decode_reference: DecodeReference = refuse_reference,
) -> AsrParams:
    """Parse the parameters of a request to a model with these languages (ISO 639-1 codes).

    `decode_reference` decodes the voices of known speakers. Raises `InvalidRequestError` naming
    the parameter.
    """
    channels: ChannelChoice = read_choice(form, "channels", ChannelChoice, default="mix")
    diarize = read_boolean(form, "diarize", default=False)
    return AsrParams(
        output=read_choice(form, "output", Output, default="txt"),
        task=read_choice(form, "task", Task, default="transcribe"),
        languages=read_languages(form, languages),
        word_timestamps=read_boolean(form, "word_timestamps", default=False),
        raw_pcm=not read_boolean(form, "encode", default=True),
        audio_track=read_track(form),
        allow_partial=read_boolean(form, "allow_partial", default=False),
        keywords=read_keywords(form, "hotwords"),
        speakers=speaker_request(form, channels, diarize=diarize, decode=decode_reference),
    )


def render_asr(transcript: Transcript, params: AsrParams, *, settings: Settings) -> Rendered:
    """Write a transcript like openai/whisper's writer of the same name."""
    rendered = _render(transcript, params, settings)
    return dataclasses.replace(rendered, caveats=transcript.caveats)


def _render(transcript: Transcript, params: AsrParams, settings: Settings) -> Rendered:
    match params.output:
        case "txt":
            return Rendered(_lines(transcript), "text/plain; charset=utf-8")
        case "tsv":
            return Rendered(_tsv(transcript), "text/tab-separated-values; charset=utf-8")
        case "json":
            return Rendered(to_json(_json(transcript, params)), "application/json")
        case "srt" | "vtt":
            return _subtitles(transcript, params.output, settings)


def describe_language(words: list[Word], *, candidates: frozenset[str]) -> DetectedLanguage:
    """Detect the language of a recording's first words, for `/detect-language`.

    A model with one language always gives that one, without a confidence.
    """
    ranked = tagged_languages(words, candidates=candidates) or rank_languages(
        join_words(words), candidates=candidates
    )
    if not ranked:
        return UNDETERMINED.copy()
    likeliest = ranked[0]
    detected: DetectedLanguage = {
        "detected_language": english_name(likeliest.code),
        "language_code": likeliest.code,
    }
    if len(candidates) > 1:
        detected["confidence"] = round(likeliest.confidence, 4)
    return detected


def _subtitles(transcript: Transcript, name: ResponseFormat, settings: Settings) -> Rendered:
    return render(transcript, TranscriptionParams(response_format=name), settings=settings)


def _lines(transcript: Transcript) -> str:
    return "".join(f"{line}\n" for line in speaker_lines(transcript))


def _tsv(transcript: Transcript) -> str:
    """Write tab-separated values; times in milliseconds."""
    rows = [
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{segment.text}\n"
        for segment in transcript.segments
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _json(transcript: Transcript, params: AsrParams) -> AsrTranscriptionJson:
    return {
        "text": transcript.text,
        "segments": [
            {**entry, **_words(segment, params)}
            for entry, segment in zip(segments_list(transcript), transcript.segments, strict=True)
        ],
        "language": transcript.language,
        **warnings_field(transcript.caveats),
    }


def _words(segment: Segment, params: AsrParams) -> HasAsrWords:
    return {"words": [_word(word) for word in segment.words]} if params.word_timestamps else {}


def _word(word: Word) -> AsrWordJson:
    logprob = word.logprob
    return {
        "word": f" {word.text}",
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": None if logprob is None else math.exp(logprob),
        **speaker_field(word),
    }
