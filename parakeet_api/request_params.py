"""A transcription request's form fields, in OpenAI's names, checked before anything is started."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

from parakeet_api.errors import InvalidRequestError
from parakeet_api.languages import normalize_language
from parakeet_api.rendering import ResponseFormat

Granularity = Literal["word", "segment"]

_LONGEST_ECHO = 60
"""Characters of a client's value that an error message repeats."""


class Form(Protocol):
    """The text fields of a multipart form."""

    def getlist(self, key: str) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class TranscriptionParams:
    """What a client asked for.

    `prompt` and `temperature` steer a decoder that this model does not have: they are checked,
    and change nothing.
    """

    response_format: ResponseFormat
    language: str | None
    """ISO 639-1 code; `None` = not said."""
    granularities: frozenset[Granularity]


def parse_params(form: Form, *, languages: frozenset[str]) -> TranscriptionParams:
    """Read and check the fields of a request.

    Unknown fields are ignored, as clients send each other's. Raises `InvalidRequestError` naming
    the parameter.
    """
    _check_temperature(_field(form, "temperature"))
    language = _field(form, "language")
    return TranscriptionParams(
        response_format=cast(
            ResponseFormat,
            _one_of("response_format", _field(form, "response_format") or "json", ResponseFormat),
        ),
        language=normalize_language(language, supported=languages) if language else None,
        granularities=frozenset(
            cast(Granularity, _one_of("timestamp_granularities[]", value, Granularity))
            for value in _list_field(form, "timestamp_granularities")
        )
        or frozenset({"segment"}),
    )


def _field(form: Form, name: str) -> str:
    """Give a field's text, stripped; empty where it was not sent."""
    values = form.getlist(name)
    return values[-1].strip() if values else ""


def _list_field(form: Form, name: str) -> list[str]:
    """Gather a list sent as `name[]`, as repeated `name`, with commas, or as a JSON list."""
    texts = [*form.getlist(f"{name}[]"), *form.getlist(name)]
    return [value for text in texts for value in _split_list(text) if value]


def _split_list(text: str) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        return [value.strip() if isinstance(value, str) else repr(value) for value in values]
    return [value.strip() for value in text.split(",")]


def _one_of(name: str, value: str, choices: Any) -> str:
    if value.lower() not in get_args(choices):
        raise InvalidRequestError(
            f"{name}={_echo(value)} is not one of: {', '.join(get_args(choices))}.",
            param=name,
        )
    return value.lower()


def _check_temperature(text: str) -> None:
    if not text:
        return
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidRequestError(
            f"temperature={_echo(text)} is not a number from 0 to 1.", param="temperature"
        )


def _echo(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "...")
