"""Normalise paths with an extra slash or a repeated prefix, as in a pasted base URL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_MODEL_NAME = re.compile(r"^(/+v1)*/+models/+")
"""What follows may hold slashes, doubled ones too."""


class SpellingOfPaths:
    """A WSGI middleware that passes each path in its documented spelling."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the application with the documented spelling."""
        environ["PATH_INFO"] = usual_spelling(environ.get("PATH_INFO", ""))
        return self._app(environ, start_response)


def usual_spelling(path: str) -> str:
    """Return a path in its documented spelling.

    A base URL may end with a slash or with the `/v1` that the client adds, or be the URL of an
    endpoint.
    """
    named = _MODEL_NAME.match(path)
    head, name = (named[0], path[named.end() :]) if named else (path, "")
    head = re.sub(r"/{2,}", "/", head)
    head = re.sub(r"^(/v1)+(?=/v1/)", "", head)
    head = re.sub(r"^(.*/audio/(?:transcriptions|translations))(?:/v1)?/audio/.*$", r"\1", head)
    return head + name if name else head.rstrip("/") or "/"
