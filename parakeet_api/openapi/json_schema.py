"""JSON Schemas written by hand: of parameters, forms and errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Json = dict[str, Any]


def ref(name: str) -> Json:
    """Refer to one of `schemas.BODIES`."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Json:
    """Describe a string."""
    return {"type": "string", "description": description, **more}


def number(description: str, **more: Any) -> Json:
    """Describe a number."""
    return {"type": "number", "description": description, **more}


def flag(description: str, **more: Any) -> Json:
    """Describe a boolean."""
    return {"type": "boolean", "description": description, **more}


def array(items: Json, description: str, **more: Any) -> Json:
    """Describe a list."""
    return {"type": "array", "items": items, "description": description, **more}


def constant(value: str) -> Json:
    """Describe a constant string."""
    return {"type": "string", "const": value}


def or_null(schema: Json) -> Json:
    """Allow null in addition."""
    if "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | enum


def record(
    description: str, properties: Mapping[str, Json], *, optional: Iterable[str] = ()
) -> Json:
    """Describe an object whose fields are all required, except the `optional` ones."""
    required = [name for name in properties if name not in set(optional)]
    return {
        "type": "object",
        "description": description,
        "properties": dict(properties),
        "required": required,
    }
