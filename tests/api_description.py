"""Access to the OpenAPI document for tests: its operations, and its schemas made strict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """A method of a path."""

    method: str
    path: str
    """With names in braces."""
    body: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.body["operationId"])

    def answers(self) -> Iterator[tuple[int, str]]:
        """Return every status and media type that is described."""
        for status, answer in self.body["responses"].items():
            for media_type in answer["content"]:
                yield int(status), media_type


def operations(document: Mapping[str, Any]) -> list[Operation]:
    return [
        Operation(method.upper(), path, body)
        for path, item in document["paths"].items()
        for method, body in item.items()
        if method in METHODS
    ]


def operation_of(document: Mapping[str, Any], method: str, path: str) -> Operation:
    """Find what describes a request."""

    def fits(operation: Operation) -> bool:
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(operation.path))
        return operation.method == method and re.fullmatch(pattern, path) is not None

    found = [operation for operation in operations(document) if fits(operation)]
    assert found, f"{method} {path} is not described"
    return found[0]


def closed(schema: Any) -> Any:
    """Forbid undescribed fields in responses; requests may have additional ones."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: value if key in ("requestBody", "examples", "example") else closed(value)
        for key, value in schema.items()
    }
    if schema.get("type") == "object" and "properties" in schema:
        strict["additionalProperties"] = False
    return strict


def validate(document: Mapping[str, Any], schema: Mapping[str, Any], value: object) -> None:
    """Check a value against one of the document's schemas, made strict."""
    whole = {**closed(schema), "components": closed(document["components"])}
    jsonschema_rs.Draft202012Validator(whole).validate(value)
