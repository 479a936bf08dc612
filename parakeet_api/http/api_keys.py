"""The key of a request, and whether it is an accepted one."""

from __future__ import annotations

import hmac
from collections.abc import Iterable


def sent_key(authorization: str) -> str:
    """Read the key out of a header `Authorization: Bearer KEY`; empty where there is none."""
    scheme, _, given = authorization.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def is_accepted(given: str, keys: Iterable[str]) -> bool:
    """Return whether a key is one of `keys`."""
    # All are compared, each in constant time: the delay of an answer reveals nothing of a key.
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    return any(matches)
