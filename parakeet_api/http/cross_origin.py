"""Pages of other origins: which of them may call this server from a browser (CORS)."""

from __future__ import annotations

from flask import Flask, Response, request

EVERYONE = "*"

_METHODS = "GET, POST, DELETE"
_EXPOSED = (
    "Retry-After, X-Parakeet-Model, X-Parakeet-Model-Note, X-Request-Id, X-Transcript-Warnings"
)
"""Headers of an answer that such a page may read beside the usual ones."""
_PREFLIGHT_S = 7200
"""How long a browser remembers an answer: the longest that Chromium does."""


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Let pages of these origins use the API; cookies are never part of it.

    Call it before anything else that looks at a request: a preflight carries no key.
    """

    def allowed() -> bool:
        return EVERYONE in origins or request.headers.get("Origin", "").lower() in origins

    def answer_preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        response = Response(status=204)
        if allowed():
            wanted = request.headers.get("Access-Control-Request-Headers", "")
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            # SDKs have a dozen of their own; none can do more than a client that is no browser.
            response.headers["Access-Control-Allow-Headers"] = wanted or "Authorization"
            response.headers["Access-Control-Max-Age"] = str(_PREFLIGHT_S)
            # For pages from the internet that call a server of the home network.
            if request.headers.get("Access-Control-Request-Private-Network") == "true":
                response.headers["Access-Control-Allow-Private-Network"] = "true"
        return response

    def name_origin(response: Response) -> Response:
        if EVERYONE in origins:
            response.headers["Access-Control-Allow-Origin"] = EVERYONE
        else:
            response.vary.add("Origin")
            if allowed():
                response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        if allowed():
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        return response

    app.before_request(answer_preflight)
    app.after_request(name_origin)
