"""The outcome of a request: the text of a whole answer, or an error's code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.fire.journal import CUT

PATIENCE_S = 300.0
"""An answer that takes longer is a finding. Beside the faults: a stop, a start, a load."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request."""

    text: str | None = None
    """The body of a whole answer."""
    code: str = ""
    """Else the error's, or `CUT`."""


def read_answer(answer: httpx.Response) -> Outcome:
    """Read a whole answer."""
    return outcome_of(answer.status_code, answer.headers, answer.text)


def outcome_of(status: int, headers: Any, body: str) -> Outcome:
    """Read an answer; an error must be in OpenAI's shape."""
    if status < 300:
        return Outcome(text=body)
    try:
        error = json.loads(body)["error"]
        in_shape = set(error) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        in_shape = False
    if not in_shape or (status == 503 and not headers.get("Retry-After")):
        return Outcome(code=f"{status} out of shape: {body[:200]!r}")
    return Outcome(code=error["code"] or "invalid_request")


def read_stream(answer: httpx.Response, response_format: str) -> Outcome:
    """Read a stream to its end; its deltas must add up to its text."""
    if answer.status_code != 200:
        answer.read()
        return read_answer(answer)
    text = ""
    for line in answer.iter_lines():
        event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
        if "error" in event:
            return Outcome(code=event["error"]["code"])
        text += event.get("delta", "")
        if event.get("type") == "transcript.text.done":
            if text != event["text"]:
                return Outcome(code=f"the deltas add up to {text[-100:]!r}")
            return Outcome(text=_body_of(event, response_format))
    return Outcome(code=CUT)


def _body_of(done: dict[str, Any], response_format: str) -> str:
    """Return the body that the same request would have got without a stream."""
    if response_format == "text":
        return str(done["text"])
    rendering = done.get(response_format, done)
    return rendering if isinstance(rendering, str) else json.dumps(rendering)
