"""Read the fields of a form: text, choices, booleans, lists in any spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, get_args

from parakeet_api.errors import InvalidRequestError, echo
from parakeet_api.settings import parse_boolean

_UNSET = frozenset({"null", "undefined", "none"})
"""Texts that JavaScript's FormData and Python's str() make of an unset value."""


class Form(Protocol):
    """The text fields of a multipart form."""

    def getlist(self, key: str) -> Sequence[str]: ...

    def keys(self) -> Iterable[str]: ...


def read_field(form: Form, name: str) -> str:
    """Return a field's text, stripped; empty if it was not sent."""
    values = form.getlist(name)
    return _strip_unset(values[-1]) if values else ""


def _strip_unset(text: str) -> str:
    """Strip a value; empty if it is one of `_UNSET`."""
    value = text.strip()
    return "" if value.lower() in _UNSET else value


def list_field(form: Form, name: str, *, comma: bool = True) -> list[str]:
    """Collect a list: `name[]`, `name[0]`, repeated `name`, as a JSON list, or with commas.

    Without `comma`, values may hold commas themselves.
    """
    # The key of a part without a name is `None`.
    numbered = [key for key in filter(None, form.keys()) if _is_numbered(key, name)]
    texts = [
        text
        for key in (f"{name}[]", name, *sorted(numbered, key=_number_in))
        for text in form.getlist(key)
    ]
    return [
        value
        for text in map(_strip_unset, texts)
        for value in _split_list(text, comma=comma)
        if value
    ]


def _is_numbered(key: str, name: str) -> bool:
    return key.startswith(name) and re.fullmatch(r"\[[0-9]{1,4}\]", key[len(name) :]) is not None


def _number_in(key: str) -> int:
    return int(key.rpartition("[")[2].rstrip("]"))


def _split_list(text: str, *, comma: bool) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        return [value.strip() if isinstance(value, str) else repr(value) for value in values]
    return [value.strip() for value in (text.split(",") if comma else [text])]


def read_choices(form: Form, name: str, choices: Any) -> frozenset[Any]:
    """Read a list of a `Literal`'s values."""
    return frozenset(one_of(f"{name}[]", value, choices) for value in list_field(form, name))


def read_choice(form: Form, name: str, choices: Any, *, default: str) -> Any:
    """Read a field that is one of a `Literal`'s values, in any case."""
    return one_of(name, read_field(form, name) or default, choices)


def read_boolean(form: Form, name: str, *, default: bool) -> bool:
    """Read a field that is true or false."""
    text = read_field(form, name).lower() or str(default)
    try:
        return parse_boolean(text)
    except ValueError as error:
        raise InvalidRequestError(f"{name}={echo(text)} is not {error}.", param=name) from error


def one_of(name: str, value: str, choices: Any) -> Any:
    """Return a value of a `Literal`, in lower case. Raises `InvalidRequestError`."""
    if value.lower() not in get_args(choices):
        raise InvalidRequestError(
            f"{name}={echo(value)} is not one of: {', '.join(get_args(choices))}.",
            param=name,
        )
    return value.lower()
