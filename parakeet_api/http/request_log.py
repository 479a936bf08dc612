"""Write a log line and update the metrics for each request."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from flask import Response, g, request

from parakeet_api.http.services import services
from parakeet_api.metrics import Metrics
from parakeet_api.served_models import ServedModel

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected; only used in the log."""
CLIENT_GONE = "client gone"
"""The same for a client that disconnected during the response."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MAX_PATH = 200
_NOT_COUNTED = frozenset({None, "pages", "docs"})
"""Blueprints of pages and probes; static files have none."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """The data of a request for the log and the metrics."""

    id: str
    client: str
    """Its address."""
    method: str
    path: str
    endpoint: str | None
    """The route of an API request; pages and probes are not counted."""
    metrics: Metrics
    quiet: bool = False
    """Whether to log the request at DEBUG."""
    started: float = field(default_factory=time.monotonic)
    audio_s: float | None = None
    """Seconds of audio that were transcribed."""
    failure: str | None = None
    """The code of the error that was sent, in a stream also after its status."""

    def body_received(self) -> None:
        """Restart the clock: the duration of an upload depends on the client."""
        self.started = time.monotonic()

    def finish(self, status: int) -> None:
        """Write the log line and count."""
        elapsed_s = time.monotonic() - self.started
        rtfx = self.audio_s / max(elapsed_s, 1e-3) if self.audio_s else None
        self._log(status, elapsed_s, rtfx)
        if self.endpoint is None:
            return
        self.metrics.requests.labels(self.endpoint, self._result(status)).inc()
        self.metrics.request_seconds.labels(self.endpoint).observe(elapsed_s)
        if self.failure:
            self.metrics.errors.labels(self.failure).inc()
        if rtfx:
            self.metrics.rtfx.observe(rtfx)

    def _result(self, status: int) -> str:
        if status == CLIENT_CLOSED_REQUEST or self.failure == CLIENT_GONE:
            return "cancelled"
        if status >= 500:  # noqa: PLR2004
            return "server_error"
        return "client_error" if self.failure else "ok"

    def _log(self, status: int, elapsed_s: float, rtfx: float | None) -> None:
        # Clients choose the path: it must not add lines to the log.
        path = self.path[:_MAX_PATH].encode("unicode_escape").decode("ascii")
        logger.log(
            logging.DEBUG if self.quiet or self.endpoint is None else logging.INFO,
            "%s %s from %s -> %d%s in %.2f s%s [%s]",
            self.method,
            path,
            self.client,
            status,
            f" ({self.failure})" if self.failure else "",
            elapsed_s,
            f", {self.audio_s:.1f} s of audio, RTFx {rtfx:.0f}" if rtfx else "",
            self.id,
            extra={
                "fields": {
                    "request_id": self.id,
                    "client": self.client,
                    "method": self.method,
                    "path": path,
                    "status": status,
                    "error": self.failure,
                    "seconds": round(elapsed_s, 3),
                    "audio_seconds": self.audio_s,
                    "rtfx": rtfx and round(rtfx, 1),
                }
            },
        )


def record() -> RequestRecord:
    """Return the current request's record."""
    current: RequestRecord = g.record
    return current


def begin_request() -> None:
    """Start the request's record, with the id sent by the client or its proxy, if any."""
    given = request.headers.get("X-Request-Id", "")
    is_api = request.url_rule is not None and request.blueprint not in _NOT_COUNTED
    g.record = RequestRecord(
        id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12],
        client=request.remote_addr or "unknown",
        method=request.method,
        path=request.path,
        endpoint=str(request.url_rule) if is_api else None,
        metrics=services().metrics,
    )


def finish_request(response: Response) -> Response:
    """Add the headers of every response; log the request when the last byte is sent."""
    model: ServedModel = g.get("model") or services().models.first
    checkpoint = model.checkpoints.status.checkpoint
    if checkpoint is not None:
        response.headers["X-Parakeet-Model"] = checkpoint.name
        if checkpoint.note is not None:
            response.headers["X-Parakeet-Model-Note"] = checkpoint.note
    response.headers["X-Request-Id"] = record().id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if request.endpoint == "static":
        # File names carry no version: the browser asks each time, and gets a 304.
        response.headers["Cache-Control"] = "no-cache"
    ended = record()
    response.call_on_close(lambda: ended.finish(response.status_code))
    return response
