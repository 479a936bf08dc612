"""Short-lived keys for web pages: `ek_` and a signed configuration.

Nothing is stored. A key is signed with the API key of the request that created it: other servers
with that API key accept it too, and it becomes invalid with that API key. If no keys are set, it is
signed with a random key of this process.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parakeet_api.errors import AuthenticationError

PREFIX = "ek_"


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A key, its configuration and its expiry."""

    value: str
    session: dict[str, Any]
    """As in `session.update`."""
    expires_at: int
    """Seconds since 1970."""


class ClientSecrets:
    """Creates and verifies short-lived keys."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._signers = [_signer(key) for key in api_keys] or [secrets.token_bytes(32)]

    def make(self, session: dict[str, Any], *, seconds: int, key: str) -> ClientSecret:
        """Create a key for sessions with a configuration; `key` is the requester's API key."""
        expires_at = int(time.time()) + seconds
        body = json.dumps({"session": session, "expires_at": expires_at}, separators=(",", ":"))
        signer = _signer(key) if _signer(key) in self._signers else self._signers[0]
        payload = _encoded(body.encode())
        value = f"{PREFIX}{payload}.{_encoded(_signature(signer, payload))}"
        return ClientSecret(value, session, expires_at)

    def read(self, value: str) -> ClientSecret:
        """Verify a key. Raises `AuthenticationError` if it is invalid or expired."""
        payload, _, signature = value.removeprefix(PREFIX).partition(".")
        given = signature.encode()
        matches = [
            hmac.compare_digest(_encoded(_signature(signer, payload)).encode(), given)
            for signer in self._signers
        ]
        if not any(matches):
            raise AuthenticationError("Incorrect API key provided.")
        try:
            body = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (ValueError, binascii.Error) as error:
            raise AuthenticationError("Incorrect API key provided.") from error
        if body["expires_at"] < time.time():
            raise AuthenticationError("The client secret has expired.")
        return ClientSecret(value, body["session"], body["expires_at"])


def _signer(key: str) -> bytes:
    return hashlib.sha256(b"parakeet client secret " + key.encode()).digest()


def _signature(signer: bytes, payload: str) -> bytes:
    return hmac.digest(signer, payload.encode("utf-8", "replace"), "sha256")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
