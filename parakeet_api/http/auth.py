"""Which requests are allowed: API keys, and the operator's endpoints."""

from __future__ import annotations

import hashlib

from flask import request

from parakeet_api.errors import (
    AuthenticationError,
    ForbiddenError,
)
from parakeet_api.http.api_keys import is_accepted, sent_key
from parakeet_api.http.proxies import is_local
from parakeet_api.http.services import services


def require_api_key() -> None:
    """Refuse a request without a valid key, where keys are set."""
    if services().settings.api_keys:
        require_key(request_key())


def require_key(given: str) -> None:
    """Refuse a key that is none of those that are set. Raises `AuthenticationError`."""
    if is_accepted(given, services().settings.api_keys):
        return
    if not given:
        raise AuthenticationError(
            "You didn't provide an API key. You need to provide your API key in an Authorization"
            " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    raise AuthenticationError("Incorrect API key provided.")


def require_operator() -> None:
    """Refuse everyone but operators: without keys, every client that is not on this machine."""
    if services().settings.api_keys:
        require_api_key()
    elif not is_local(request.environ) or _is_foreign_page():
        raise ForbiddenError(
            "Without API_KEY this is for the server's own machine alone. Set API_KEY to do it from"
            " elsewhere."
        )


def _is_foreign_page() -> bool:
    """Return whether a browser sends this for a page of another origin."""
    origin = request.headers.get("Origin")
    return origin is not None and origin != request.host_url.rstrip("/")


def accepted_key_hash() -> str | None:
    """Hash the valid key of a request; `None` without one, and where no keys are set."""
    given = request_key()
    if not is_accepted(given, services().settings.api_keys):
        return None
    return hashlib.sha256(given.encode()).hexdigest()


def request_key() -> str:
    """Return the key that a request sends; empty where there is none."""
    return sent_key(request.headers.get("Authorization", ""))
