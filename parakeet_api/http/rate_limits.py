"""Limit each client's rate of transcriptions, by its key or else its address."""

from __future__ import annotations

import math
import time
from ipaddress import ip_address, ip_network

from flask import Flask, Response, request
from flask_limiter import Limiter
from flask_limiter.errors import RateLimitExceeded
from limits.errors import ConfigurationError

from parakeet_api.errors import RateLimitError, SettingsError
from parakeet_api.http.auth import accepted_key_hash
from parakeet_api.http.error_answers import answer_error
from parakeet_api.settings import Settings

_IPV6_CLIENT_BITS = 64
"""Bits of an IPv6 address that identify a client: it may use all addresses of its /64 network."""


def limit_rates(app: Flask, settings: Settings) -> None:
    """Reject requests above `RATE_LIMIT` with 429, before an upload is received.

    While the storage fails, each process counts for itself. Raises
    `SettingsError` for a storage whose package is not installed.
    """
    if settings.rate_limit is None:
        return
    try:
        limiter = Limiter(
            _client,
            app=app,
            application_limits=[settings.rate_limit],
            application_limits_exempt_when=_is_cheap,
            strategy="moving-window",
            storage_uri=settings.rate_limit_storage,
            in_memory_fallback_enabled=True,
            fail_on_first_breach=True,
            key_prefix="parakeet",
        )
    except ConfigurationError as error:
        raise SettingsError(
            f"RATE_LIMIT_STORAGE needs a package that is not here: pip install redis ({error})"
        ) from error

    def refuse(_: RateLimitExceeded) -> Response:
        breached = [limit for limit in limiter.current_limits if limit.breached]
        reset_at = max((limit.reset_at for limit in breached), default=0.0)
        error = RateLimitError(f"Rate limit reached: {settings.rate_limit}. Try again later.")
        error.retry_after_s = max(1, math.ceil(reset_at - time.time()))
        return answer_error(error)

    app.register_error_handler(RateLimitExceeded, refuse)


def _is_cheap() -> bool:
    """Return whether a request is neither a POST nor a live session."""
    if (request.endpoint or "").endswith(".realtime"):
        return False
    return request.method != "POST" or request.blueprint == "admin"


def _client() -> str:
    """Identify the client; not by an invalid key, which it could change with each request."""
    return accepted_key_hash() or _network(request.remote_addr or "unknown")


def _network(address: str) -> str:
    try:
        version = ip_address(address).version
    except ValueError:
        return address
    if version == 4:  # noqa: PLR2004
        return address
    return str(ip_network(f"{address}/{_IPV6_CLIENT_BITS}", strict=False))
