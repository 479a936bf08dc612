"""Which pages of other origins may call this server from a browser (CORS)."""

from __future__ import annotations

from flask import Flask, Response, request

EVERYONE = "*"

_METHODS = "GET, POST, DELETE"
_EXPOSED = (
    "Retry-After, X-Parakeet-Model, X-Parakeet-Model-Note, X-Request-Id, X-Transcript-Warnings"
)
"""Headers of an answer that such a page may read beside the usual ones."""
_PREFLIGHT_S = 7200
"""How long a browser may cache an answer: Chromium's maximum."""


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Allow pages of these origins to use the API, without cookies.

    Call it before all other hooks: a preflight request carries no key.
    """

    def allowed() -> bool:
        return EVERYONE in origins or request.headers.get("Origin", "").lower() in origins

    def answer_preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        response = Response(status=204)
        if allowed():
            requested = request.headers.get("Access-Control-Request-Headers", "")
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            # SDKs send a dozen headers of their own; none allows more than other clients may do.
            response.headers["Access-Control-Allow-Headers"] = requested or "Authorization"
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
