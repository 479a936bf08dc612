"""The parameters and answers of whisper-asr-webservice, which Bazarr and others speak.

https://github.com/ahmetoner/whisper-asr-webservice: parameters come in the query string, answers
look as openai/whisper's writers write them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from parakeet_api.formats.rendering import (
    Rendered,
    render,
    to_json,
    verbose_json_body,
)
from parakeet_api.formats.request_params import (
    Form,
    ResponseFormat,
    Task,
    TranscriptionParams,
    read_boolean,
    read_choice,
    read_languages,
    read_track,
)
from parakeet_api.languages import english_name
from parakeet_api.settings import Settings
from parakeet_api.speech.language_detection import rank_languages
from parakeet_api.transcript import Transcript, Word, join_words

Output = Literal["txt", "vtt", "srt", "tsv", "json"]

UNDETERMINED = {"detected_language": "undetermined", "language_code": "und"}
"""ISO 639-2's name and code for a language that is not known: Bazarr looks up the name where it
does not know the code, and takes any other name for a failure of the server's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsrParams:
    """What a client asked for."""

    output: Output
    task: Task
    languages: frozenset[str]
    """ISO 639-1 codes: what the recording may be spoken in."""
    word_timestamps: bool
    """List words; for `json`."""
    raw_pcm: bool
    """The upload is 16 kHz mono 16-bit samples without a header."""
    audio_track: int | Literal["all"] | None
    allow_partial: bool


def parse_asr_params(form: Form, *, languages: frozenset[str]) -> AsrParams:
    """Read and check the parameters of a request to a model that speaks `languages`.

    Raises `InvalidRequestError` naming the parameter.
    """
    return AsrParams(
        output=read_choice(form, "output", Output, default="txt"),
        task=read_choice(form, "task", Task, default="transcribe"),
        languages=read_languages(form, languages),
        word_timestamps=read_boolean(form, "word_timestamps", default=False),
        raw_pcm=not read_boolean(form, "encode", default=True),
        audio_track=read_track(form),
        allow_partial=read_boolean(form, "allow_partial", default=False),
    )


def render_asr(transcript: Transcript, params: AsrParams, *, settings: Settings) -> Rendered:
    """Write a transcript as whisper's writer of that name does."""
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


def describe_language(words: list[Word], *, candidates: frozenset[str]) -> dict[str, object]:
    """Tell the language of a recording's first words, as `/detect-language` answers.

    A model of one language hears every recording in it: then there is no confidence to tell.
    """
    ranked = rank_languages(join_words(words), candidates=candidates)
    if not ranked:
        return dict(UNDETERMINED)
    likeliest = ranked[0]
    confidence = {"confidence": round(likeliest.confidence, 4)} if len(candidates) > 1 else {}
    return {
        "detected_language": english_name(likeliest.code),
        "language_code": likeliest.code,
        **confidence,
    }


def _subtitles(transcript: Transcript, name: ResponseFormat, settings: Settings) -> Rendered:
    return render(transcript, TranscriptionParams(response_format=name), settings=settings)


def _lines(transcript: Transcript) -> str:
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def _tsv(transcript: Transcript) -> str:
    """Give times in milliseconds."""
    rows = [
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{segment.text}\n"
        for segment in transcript.segments
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _json(transcript: Transcript, params: AsrParams) -> dict[str, object]:
    body = verbose_json_body(transcript, TranscriptionParams(languages=params.languages))
    segments = body["segments"]
    if params.word_timestamps:
        assert isinstance(segments, list)
        segments = [
            entry | {"words": [_word(word) for word in segment.words]}
            for entry, segment in zip(segments, transcript.segments, strict=True)
        ]
    answer = {"text": transcript.text, "segments": segments, "language": transcript.language}
    return answer | ({"warnings": body["warnings"]} if transcript.caveats else {})


def _word(word: Word) -> dict[str, object]:
    logprob = word.logprob
    return {
        "word": f" {word.text}",
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": None if logprob is None else math.exp(logprob),
    }
