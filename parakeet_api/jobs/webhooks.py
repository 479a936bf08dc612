"""Call webhooks when jobs end, only on hosts that the operator allows.

Clients choose the URL, so it is untrusted: the host that is checked is the one that httpx connects
to, redirects are not followed, and proxies and ~/.netrc of the environment are ignored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import httpx

from parakeet_api import __version__
from parakeet_api.allowed_hosts import AllowedHosts
from parakeet_api.jobs.job import Job
from parakeet_api.jobs.store import JobStore

logger = logging.getLogger(__name__)

RETRY_DELAYS_S = (5.0, 15.0, 45.0, 135.0, 405.0)
"""Pauses between attempts: six attempts in ten minutes, enough for a receiver to restart."""
_TIMEOUT_S = 10.0
"""For connecting, and for the response."""
_MAX_REASON_LENGTH = 300
"""Characters of an error message that are stored."""


class WebhookSender:
    """Call the webhooks of finished jobs, from one thread.

    A call is repeated until the response is 2xx or `delays_s` are used up. Pending calls are made
    after a restart, so a receiver may get the same job twice.
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
        """Time of the next attempt by job id, on the monotonic clock."""
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Wake the thread: a job has ended."""
        self._wake.set()

    def close(self, *, within_s: float) -> None:
        """Stop; wait at most `within_s` for the current call."""
        self._closing = True
        self._wake.set()
        self._thread.join(within_s)

    def _work(self) -> None:
        while not self._closing:
            try:
                pause_s = self._call_all()
            # Thread boundary: disk errors may be temporary.
            except Exception:
                logger.exception("webhooks could not be called")
                pause_s = self._delays_s[0]
            self._wake.wait(pause_s)
            self._wake.clear()

    def _call_all(self) -> float | None:
        """Make the calls that are due; give the seconds until the next one, or `None`."""
        pending = self._store.pending_webhooks(max_attempts=len(self._delays_s) + 1)
        self._due = {job.id: self._due.get(job.id, 0.0) for job in pending}
        for job in pending:
            if self._closing:
                return None
            if self._due[job.id] <= time.monotonic():
                self._call(job)
        waiting = [due - time.monotonic() for due in self._due.values()]
        return max(0.0, min(waiting)) if waiting else None

    def _call(self, job: Job) -> None:
        assert job.webhook is not None
        error = self._attempt(job.webhook.url, self._body(job))
        self._store.record_attempt(job, error=error)
        if error is None or job.webhook.attempts == len(self._delays_s):
            del self._due[job.id]
        else:
            self._due[job.id] = time.monotonic() + self._delays_s[job.webhook.attempts]
        if error is not None:
            logger.warning("the webhook of job %s failed: %s", job.id, error)

    def _attempt(self, url: str, body: bytes) -> str | None:
        """Call a webhook; give the error message, or `None`."""
        try:
            # Checked again: ALLOW_WEBHOOKS may have changed since the job was accepted.
            self._hosts.check(url)
            post(url, body)
        # Any error: it must not stop the webhooks of other jobs.
        except Exception as error:
            return (str(error) or type(error).__name__)[:_MAX_REASON_LENGTH]
        return None


def post(url: str, body: bytes) -> None:
    """POST JSON. Raises `httpx.HTTPError` unless the response is 2xx."""
    headers = {"Content-Type": "application/json", "User-Agent": f"parakeet-api/{__version__}"}
    with (
        httpx.Client(trust_env=False, follow_redirects=False, timeout=_TIMEOUT_S) as client,
        # A stream, so that the body of the response is not read.
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        if not response.is_success:
            raise httpx.HTTPError(f"answered {response.status_code} {response.reason_phrase}")
