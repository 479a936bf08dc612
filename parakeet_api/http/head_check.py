"""Requests that their head alone refuses: by key, by rate, because the queue is full, by address.

The server asks when a head has been read. What is refused then is answered at once, and nothing of
its body is stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from parakeet_api.http.web import record

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

REFUSAL = "parakeet.refusal"
"""Where the environment of a request has what its head was answered with."""
ADMITTED = "parakeet.admitted"
"""In the environment of a request whose head has passed: it has been counted."""
HEAD_ALONE = "parakeet.head_alone"
"""In the environment of a head that is looked at; a list, which the refusal is added to."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What to answer."""

    response: Response
    failure: str | None
    """The error's code."""


def install_head_check(app: Flask) -> None:
    """Let `check_head` ask an application; before its other functions that look at requests."""
    inner: Any = app.wsgi_app

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if HEAD_ALONE not in environ:
            answer: Iterable[bytes] = inner(environ, start_response)
            return answer
        refusal = _refusal(app, environ)
        if refusal is not None:
            environ[HEAD_ALONE].append(refusal)
        start_response("204 No Content", [])
        return []

    app.wsgi_app = application  # type: ignore[method-assign]
    app.before_request(_repeat_refusal)


def check_head(
    application: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]],
    environ: WSGIEnvironment,
) -> Refusal | None:
    """Give the refusal of a request whose body is still to come; `None` where it is welcome."""
    found: list[Refusal] = []
    head = environ | {HEAD_ALONE: found, "wsgi.input": io.BytesIO()}
    application(head, lambda *_: lambda _: None)
    return found[0] if found else None


def _refusal(app: Flask, environ: WSGIEnvironment) -> Refusal | None:
    with app.request_context(environ):
        try:
            refused = app.preprocess_request()
            if refused is None and request.routing_exception is not None:
                raise request.routing_exception
        except Exception as error:
            # What a request raises is answered, whatever it is.
            refused = app.handle_user_exception(error)
        if refused is None:
            return None
        return Refusal(app.make_response(refused), record().failure)


def _repeat_refusal() -> Response | None:
    refusal: Refusal | None = request.environ.get(REFUSAL)
    if refusal is None:
        return None
    record().failure = refusal.failure
    return refusal.response
