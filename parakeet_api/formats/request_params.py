"""Parse and validate the form fields of a transcription request, which have OpenAI's names."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Literal

from parakeet_api.errors import InvalidRequestError, UnsupportedLanguageError, echo
from parakeet_api.formats.form_fields import (
    Form,
    list_field,
    one_of,
    read_boolean,
    read_choice,
    read_choices,
    read_field,
)
from parakeet_api.formats.speaker_params import (
    DecodeReference,
    ResponseFormat,
    default_format,
    read_speakers,
    refuse_reference,
)
from parakeet_api.keywords import Keyword, parse_keywords
from parakeet_api.languages import language_code, normalize_language
from parakeet_api.transcript import NO_SPEAKERS, SpeakerRequest

Granularity = Literal["word", "segment"]
Include = Literal["logprobs", "progress", "peaks"]
"""Additional parts of a response; `progress` and `peaks` are this server's own."""
Task = Literal["transcribe", "translate"]

URL_FIELD = "url"
"""Field with the address of a recording, instead of a file; Groq's API has the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionParams:
    """The parameters of a request.

    Parameters of OpenAI's models that this kind of model has no use for (`prompt`, `temperature`,
    `chunking_strategy`) are checked and have no effect.
    """

    model: str = ""
    """Name of the model; empty = the first."""
    response_format: ResponseFormat = "json"
    languages: frozenset[str] = frozenset({"en"})
    """ISO 639-1 codes of the languages that may be spoken, at least one."""
    granularities: frozenset[Granularity] = frozenset({"segment"})
    """What `verbose_json` lists."""
    include: frozenset[Include] = frozenset()
    stream: bool = False
    """Respond with server-sent events."""
    task: Task = "transcribe"
    audio_track: int | Literal["all"] | None = None
    """Number of the sound track, from 1; `all` = mixed; `None` = what a player would choose."""
    allow_partial: bool = False
    """Whether a truncated file is transcribed as far as it goes."""
    keywords: tuple[Keyword, ...] = ()
    """Phrases that may be said."""
    speakers: SpeakerRequest = NO_SPEAKERS
    """Who spoke, if that is asked."""


def parse_params(
    form: Form,
    *,
    languages: frozenset[str],
    model: str = "",
    task: Task = "transcribe",
    decode_reference: DecodeReference = refuse_reference,
) -> TranscriptionParams:
    """Parse the fields of a request to `model`, which has these languages (ISO 639-1 codes).

    Unknown fields are ignored: clients send fields of other servers. `decode_reference` decodes
    the voices of known speakers. Raises `InvalidRequestError` naming the parameter.
    """
    _check_temperature(read_field(form, "temperature"))
    _check_chunking_strategy(form)
    response_format: ResponseFormat = read_choice(
        form, "response_format", ResponseFormat, default=default_format(form)
    )
    return TranscriptionParams(
        model=model,
        response_format=response_format,
        languages=read_languages(form, languages),
        granularities=read_choices(form, "timestamp_granularities", Granularity)
        or frozenset({"segment"}),
        include=read_choices(form, "include", Include),
        stream=read_boolean(form, "stream", default=False),
        task=task,
        audio_track=read_track(form),
        allow_partial=read_boolean(form, "allow_partial", default=False),
        keywords=read_keywords(form, "keywords"),
        speakers=read_speakers(form, response_format, decode=decode_reference),
    )


def read_keywords(form: Form, name: str) -> tuple[Keyword, ...]:
    """Read a list of phrases. Raises `InvalidRequestError` naming the first that is wrong."""
    return parse_keywords(list_field(form, name), param=f"{name}[]")


def read_languages(form: Form, supported: frozenset[str]) -> frozenset[str]:
    """Narrow the model's languages to those that the client expects."""
    language = normalize_language(read_field(form, "language"), supported=supported)
    if language is not None:
        return frozenset({language})
    hints = list_field(form, "languages")
    known = supported & {language_code(hint) for hint in hints}
    if hints and not known:
        # Hints: one supported language is enough, but without any the transcript would be wrong.
        raise UnsupportedLanguageError(
            f"languages[]={echo(', '.join(hints))} has none that the loaded model speaks:"
            f" {', '.join(sorted(supported))}.",
            param="languages[]",
        )
    return known or supported


def read_track(form: Form) -> int | Literal["all"] | None:
    """Read the sound track to transcribe: a number from 1, `all`, or none."""
    text = read_field(form, "audio_track")
    return parse_track(text) if text else None


def parse_track(text: str) -> int | Literal["all"]:
    """Parse a sound track's number, from 1, or `all`. Raises `InvalidRequestError`."""
    if text.lower() == "all":
        return "all"
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) == 0:
        raise InvalidRequestError(
            f"audio_track={echo(text)} is neither the number of a sound track, from 1, nor all.",
            param="audio_track",
        )
    return int(text)


def _check_chunking_strategy(form: Form) -> None:
    """Accept `auto`, and OpenAI's object as JSON or as `chunking_strategy[type]=...`."""
    name = "chunking_strategy"
    text = read_field(form, name)
    # The key of a part without a name is `None`.
    keys = list(filter(None, form.keys()))
    if any(key.startswith(f"{name}[") and read_field(form, key) for key in keys):
        one_of(f"{name}[type]", read_field(form, f"{name}[type]"), Literal["server_vad", "auto"])
    elif text and text.lower() != "auto":
        try:
            strategy = json.loads(text)
        except (ValueError, RecursionError):
            strategy = None
        if not isinstance(strategy, dict) or strategy.get("type") not in ("server_vad", "auto"):
            raise InvalidRequestError(
                f'{name}={echo(text)} is neither auto nor {{"type": "server_vad", ...}}.',
                param=name,
            )


def _check_temperature(text: str) -> None:
    if not text:
        return
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidRequestError(
            f"temperature={echo(text)} is not a number from 0 to 1.", param="temperature"
        )
