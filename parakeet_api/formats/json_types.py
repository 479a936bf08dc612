"""Types of the fields of JSON responses, with the keywords of JSON Schema that describe them.

The TypedDicts beside the renderers are made of these. `openapi.schemas` publishes them: docstrings
of classes and fields are the descriptions there, so they are written for clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any


class Keywords:
    """Keywords of JSON Schema, as metadata of an `Annotated` type."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Add the keywords to the type's own schema; pydantic calls this."""
        return handler(core_schema) | self._values


Count = Annotated[int, Keywords(minimum=0)]
Seconds = Annotated[float, Keywords(minimum=0)]
Share = Annotated[float, Keywords(minimum=0, maximum=1)]
Logprob = Annotated[float, Keywords(maximum=0)]
"""Natural logarithm of a probability."""
UnixTime = Annotated[int, Keywords(minimum=0, description="Seconds since 1970.")]
LanguageCode = Annotated[str, Keywords(description="An ISO 639-1 code.")]
SpokenText = Annotated[str, Keywords(description="The transcript; empty if there is no speech.")]
