"""The description of the API, and the page to try it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, render_template

from parakeet_api import __version__
from parakeet_api.http.services import services
from parakeet_api.openapi.document import Facts, describe

docs = Blueprint("docs", __name__)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@docs.get("/openapi.json")
def description() -> dict[str, Any]:
    """Describe this server, as it was set up and with the models that it has."""
    models = services().models
    return describe(
        Facts(
            version=__version__,
            model=models.first.name,
            languages=frozenset().union(*(model.languages for model in models)),
            settings=services().settings,
        )
    )


@docs.get("/docs")
def page() -> Response:
    """Serve the page to try the API."""
    response = Response(render_template("docs.html"), content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _POLICY
    return response
