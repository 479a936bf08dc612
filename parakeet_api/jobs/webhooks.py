"""Tell webhooks that jobs have ended: only on hosts that the operator listed.

A client names the address, so it is hostile: what is compared with the list is what httpx connects
to, no redirect is followed, and nothing of the environment (proxies, ~/.netrc) is used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import httpx

from parakeet_api import __version__
from parakeet_api.errors import InvalidRequestError
from parakeet_api.jobs.job import Job
from parakeet_api.jobs.store import JobStore

logger = logging.getLogger(__name__)

RETRY_DELAYS_S = (5.0, 15.0, 45.0, 135.0, 405.0)
"""Pauses between calls: six calls in ten minutes, in which a receiver can restart."""
_TIMEOUT_S = 10.0
"""For connecting, and for each answer."""
_USUAL_PORTS = {"http": 80, "https": 443}
_LONGEST_URL = 2048
_LONGEST_REASON = 300
"""Characters of a failed call's reason that are kept."""


class AllowedHosts:
    """The hosts that webhooks may be on, as `host` (its usual ports, 80 and 443) or `host:port`."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._allowed = {
            (listed.raw_host, port)
            for listed in (httpx.URL(f"//{host}") for host in hosts)
            for port in ((listed.port,) if listed.port else _USUAL_PORTS.values())
        }

    def check(self, text: str) -> None:
        """Raise `InvalidRequestError` for an address that must not be called."""
        if not self._allowed:
            raise _refused("this server calls no webhooks (ALLOW_WEBHOOKS is empty)")
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise _refused(f"it is not a URL ({error})") from error
        if url.scheme not in _USUAL_PORTS or not url.host or len(text) > _LONGEST_URL:
            raise _refused(
                "it is not a URL that begins with http:// or https://, of at most"
                f" {_LONGEST_URL} characters"
            )
        if url.userinfo:
            raise _refused("it holds a user name or password")
        # A dot at its end makes a name absolute, not another one.
        host = url.raw_host.removesuffix(b".")
        port = _USUAL_PORTS[url.scheme] if url.port is None else url.port
        if (host, port) not in self._allowed:
            raise _refused("its host and port are not among those of ALLOW_WEBHOOKS")


class Courier:
    """Call the webhooks of finished jobs, from one thread.

    A call is repeated until it is answered 2xx or `delays_s` are used up; what is still to be told
    when the process ends is told after the next start. So a receiver may hear of a job twice.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        hosts: AllowedHosts,
        body: Callable[[Job], bytes],
        delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._body = body
        self._delays_s = delays_s
        self._due: dict[str, float] = {}
        """When a job whose webhook failed is next, by id, on the monotonic clock."""
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Tell that a job has finished."""
        self._wake.set()

    def close(self, *, within_s: float) -> None:
        """Call no more; wait so long for the call under way."""
        self._closing = True
        self._wake.set()
        self._thread.join(within_s)

    def _work(self) -> None:
        while not self._closing:
            try:
                pause_s = self._call_all()
            # A thread's border: a disk that refuses now may not in a while.
            except Exception:
                logger.exception("webhooks could not be called")
                pause_s = self._delays_s[0]
            self._wake.wait(pause_s)
            self._wake.clear()

    def _call_all(self) -> float | None:
        """Make the calls that are due; give the seconds until the next one, if there is one."""
        untold = self._store.untold(most_attempts=len(self._delays_s) + 1)
        self._due = {job.id: self._due.get(job.id, 0.0) for job in untold}
        for job in untold:
            if self._closing:
                return None
            if self._due[job.id] <= time.monotonic():
                self._call(job)
        waiting = [due - time.monotonic() for due in self._due.values()]
        return max(0.0, min(waiting)) if waiting else None

    def _call(self, job: Job) -> None:
        assert job.webhook is not None
        error = self._outcome(job.webhook.url, self._body(job))
        self._store.note_call(job, error=error)
        if error is None or job.webhook.attempts == len(self._delays_s):
            del self._due[job.id]
        else:
            self._due[job.id] = time.monotonic() + self._delays_s[job.webhook.attempts]
        if error is not None:
            logger.warning("the webhook of job %s failed: %s", job.id, error)

    def _outcome(self, url: str, body: bytes) -> str | None:
        """Call; give what went wrong, if anything did."""
        try:
            # Again, as the list may have been changed since the job was accepted.
            self._hosts.check(url)
            post(url, body)
        # Whatever it is, the webhooks of other jobs must not wait for it.
        except Exception as error:
            return (str(error) or type(error).__name__)[:_LONGEST_REASON]
        return None


def post(url: str, body: bytes) -> None:
    """Send JSON. Raises `httpx.HTTPError` unless it is answered 2xx."""
    headers = {"Content-Type": "application/json", "User-Agent": f"parakeet-api/{__version__}"}
    with (
        httpx.Client(trust_env=False, follow_redirects=False, timeout=_TIMEOUT_S) as client,
        # The answer's body is not read, however long.
        client.stream("POST", url, content=body, headers=headers) as answer,
    ):
        if not answer.is_success:
            raise httpx.HTTPError(f"answered {answer.status_code} {answer.reason_phrase}")


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"webhook_url cannot be used: {reason}.", param="webhook_url")
