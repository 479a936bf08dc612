"""Fetch a recording from a URL, on hosts that the operator allows.

Clients choose the URL, so it is untrusted: redirects are checked like the first address, and
proxies and ~/.netrc of the environment are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO

import httpx
from werkzeug.exceptions import RequestEntityTooLarge

from parakeet_api import __version__
from parakeet_api.allowed_hosts import AllowedHosts
from parakeet_api.errors import RecordingUrlError
from parakeet_api.model.batching import RequestCancelled

_MAX_REDIRECTS = 5
_CONNECT_S = 10.0
_SILENCE_S = 30.0
"""How long the host may send nothing."""
_TOTAL_S = 1800.0
"""How long all of it may take: a request thread waits for it."""
_BLOCK_BYTES = 256 * 1024


def fetch_recording(
    url: str,
    into: IO[bytes],
    *,
    hosts: AllowedHosts,
    limit: int | None,
    cancelled: Callable[[], bool] = lambda: False,
    total_s: float = _TOTAL_S,
) -> None:
    """Write what a URL leads to into a file.

    Raises `InvalidRequestError` for an address that is not allowed, `RecordingUrlError` if the host
    does not send the recording, `RequestEntityTooLarge` for more than `limit` bytes,
    `RequestCancelled`, and `OSError` if the file cannot be written.
    """
    address = hosts.check(url)
    deadline = time.monotonic() + total_s
    with httpx.Client(
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
        headers={"User-Agent": f"parakeet-api/{__version__}", "Accept-Encoding": "identity"},
    ) as client:
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                with client.stream("GET", address) as response:
                    if not response.has_redirect_location:
                        _store(response, into, limit, cancelled, deadline)
                        return
                    target = str(address.join(response.headers["location"]))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error).strip() or type(error).__name__
                raise RecordingUrlError.from_host(address.host, reason) from error
            address = hosts.check(target)
    raise RecordingUrlError.from_host(address.host, f"more than {_MAX_REDIRECTS} redirects")


def _store(
    response: httpx.Response,
    into: IO[bytes],
    limit: int | None,
    cancelled: Callable[[], bool],
    deadline: float,
) -> None:
    if not response.is_success:
        reason = f"it answered {response.status_code} {response.reason_phrase}".rstrip()
        raise RecordingUrlError.from_host(response.url.host, reason)
    size = 0
    for block in response.iter_bytes(_BLOCK_BYTES):
        size += len(block)
        if limit is not None and size > limit:
            raise RequestEntityTooLarge
        if cancelled():
            raise RequestCancelled
        if time.monotonic() > deadline:
            raise RecordingUrlError.from_host(response.url.host, "it sends too slowly")
        into.write(block)
