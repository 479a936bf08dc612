"""Read and check the API key of a request."""

from __future__ import annotations

import hmac
from collections.abc import Iterable


def sent_key(authorization: str) -> str:
    """Return the key of a header `Authorization: Bearer KEY`; empty if there is none."""
    scheme, _, given = authorization.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def is_accepted(given: str, keys: Iterable[str]) -> bool:
    """Return whether a key is one of `keys`."""
    # Compare with all keys in constant time, so that the response time reveals nothing.
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    return any(matches)
