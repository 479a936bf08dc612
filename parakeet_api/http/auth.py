"""Authorise requests: API keys, and the operator's endpoints."""

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
    """Reject a request without a valid key, if keys are set."""
    if services().settings.api_keys:
        require_key(request_key())


def require_key(given: str) -> None:
    """Reject an unknown key. Raises `AuthenticationError`."""
    if is_accepted(given, services().settings.api_keys):
        return
    if not given:
        raise AuthenticationError(
            "You didn't provide an API key. You need to provide your API key in an Authorization"
            " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    raise AuthenticationError("Incorrect API key provided.")


def require_operator() -> None:
    """Reject all but operators: if no keys are set, every client on another machine."""
    if services().settings.api_keys:
        require_api_key()
    elif not is_local(request.environ) or _is_foreign_page():
        raise ForbiddenError(
            "Without API_KEY this is for the server's own machine alone. Set API_KEY to do it from"
            " elsewhere."
        )


def _is_foreign_page() -> bool:
    """Return whether a page of another origin sends this request."""
    origin = request.headers.get("Origin")
    return origin is not None and origin != request.host_url.rstrip("/")


def accepted_key_hash() -> str | None:
    """Return the hash of a request's valid key; `None` without one or if no keys are set."""
    given = request_key()
    if not is_accepted(given, services().settings.api_keys):
        return None
    return hashlib.sha256(given.encode()).hexdigest()


def request_key() -> str:
    """Return the key of a request; empty if there is none."""
    return sent_key(request.headers.get("Authorization", ""))
