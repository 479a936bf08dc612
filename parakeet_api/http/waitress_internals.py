"""All private interfaces of waitress that the service uses."""

from __future__ import annotations

import json
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

from parakeet_api.errors import (
    DISK_FULL,
    ApiError,
    InvalidRequestError,
    ServerError,
    ServiceUnavailableError,
    UploadTooLargeError,
)
from parakeet_api.http.admission import Admission
from parakeet_api.http.upload_form import UploadForm

logger = logging.getLogger(__name__)

_WINDOW_S = 60
_LEAST_BYTES = 16 * 1024
"""What a transfer must move in each window: 2 kbit/s, a tenth of the slowest mobile network. A byte
now and then would hold a connection for ever."""
UPLOAD_SLACK = 1024 * 1024
"""Bytes above the limit that are still read, so that a small excess is answered by Flask."""
_LINGER_S = 30.0
"""How long a refused client may go on sending before its connection is cut: nginx's value."""


class Dispatcher(ThreadedTaskDispatcher):
    """Threads for requests, each started when all before it are at work."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add_task(self, task: Any) -> None:
        """Let a request be worked on as soon as a thread is free."""
        with self.lock:
            self.queue.append(task)
            idle = len(self.threads) - self.stop_count - self.active_count
            if len(self.queue) <= idle or len(self.threads) >= self._most:
                self.queue_cv.notify()
                return
            number = len(self.threads)
            self.threads.add(number)
            self.active_count += 1
        self.start_new_thread(self.handler_thread, number)


class DiskFullError(Error):
    """The body cannot be stored."""

    code = ServiceUnavailableError.status
    reason = "Service Unavailable"


class Parser(HTTPRequestParser):
    """A request as it arrives; a form's files go straight to where they stay.

    One that the disk has no room for is refused.
    """

    def __init__(self, adj: Adjustments, uploads: Path) -> None:
        super().__init__(adj)
        self._uploads = uploads

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head; choose where the body goes."""
        super().parse_header(header_plus)
        if self.body_rcv is not None:
            form = UploadForm.for_body(self._uploads, self.headers.get("CONTENT_TYPE", ""))
            if form is not None:
                buffer: Any = form
                self.body_rcv.buf = buffer

    def received(self, data: bytes) -> int:
        """Take what was sent; give how much of it belongs to this request."""
        try:
            return int(super().received(data))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            logger.error("a request's body cannot be stored: %s", error)
            self.error = DiskFullError(str(error))
            self.completed = True
            return len(data)


class ClosingTask(WSGITask):
    """A request's work; while the server is stopping, its connection ends with the answer."""

    channel: Channel

    def build_response_header(self) -> bytes:
        """Write the header."""
        if self.channel.server.admission.stopping:
            self.set_close_on_finish()
        header: bytes = super().build_response_header()
        return header


class JsonErrorTask(ErrorTask):
    """Answer what waitress refuses: a body above the limit, or bytes that are no HTTP request."""

    channel: Channel
    request: Any
    """The stubs call it an error; it is a request that holds one."""

    def execute(self) -> None:
        """Write the answer, after which the connection ends."""
        failure = self._failure()
        body = json.dumps(failure.body()).encode()
        self.status = f"{failure.status} {HTTPStatus(failure.status).phrase}"
        self.response_headers = [("Content-Type", "application/json")]
        if failure.retry_after_s is not None:
            self.response_headers.append(("Retry-After", str(failure.retry_after_s)))
        self.content_length = len(body)
        self.set_close_on_finish()
        self.channel.refused = True
        # What came of an upload is gone before its client can look.
        self.request.close()
        self.write(body)

    def _failure(self) -> ApiError:
        error = self.request.error
        if error.code == UploadTooLargeError.status:
            limit = self.channel.adj.max_request_body_size - UPLOAD_SLACK
            return UploadTooLargeError.above(limit, sent=self.request.content_length or None)
        if error.code == ServiceUnavailableError.status:
            return ServiceUnavailableError.disk_full()
        if error.code == ServerError.status:
            return ServerError("The server had an error while processing your request.")
        failure = InvalidRequestError(f"{error.reason}: {error.body}")
        # waitress says 501 to an encoding that nobody knows; clients would send it again.
        failure.status = error.code if error.code < ServerError.status else 400
        return failure


class Channel(HTTPChannel):
    """A connection that lets a refused client read why.

    A socket closed with unread data in it resets the connection, and a client that is still
    sending then loses the answer. So the rest is read for a while, and thrown away.
    """

    task_class = ClosingTask
    error_task_class = JsonErrorTask
    server: Server
    refused = False
    """Whether the answer came before the request was read to its end."""
    _linger_until: float | None = None
    _last_activity = 0.0
    _moved = 0
    """Bytes received and sent since the last look at it."""
    _seen_request: object = None
    _seen_unsent = 0

    def parser_class(self, adj: Adjustments) -> Parser:  # type: ignore[override]
        """Make a parser for the next request: what waitress calls it for."""
        return Parser(adj, self.server.uploads)

    def service(self) -> None:
        """Work on a request, unless `cancel` has taken it away since a thread was found for it."""
        if self.requests:
            super().service()

    @property
    def last_activity(self) -> float:
        """When something was last sent or received."""
        return self._last_activity

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        # waitress goes by the wall clock: when that is set, all connections look idle, or none.
        self._last_activity = time.monotonic()

    def is_stuck(self) -> bool:
        """Tell whether what was under way at the last call has hardly moved since."""
        receiving = None if self.requests else self.request
        stuck = self._moved < min(_LEAST_BYTES, self._seen_unsent) or (
            receiving is not None and receiving is self._seen_request and self._moved < _LEAST_BYTES
        )
        self._seen_request, self._seen_unsent = receiving, self.total_outbufs_len
        self._moved = 0
        return stuck

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send what the socket takes."""
        sent: int = super().send(data, do_close)
        self._moved += sent
        return sent

    def send_continue(self) -> None:
        """Ask a client that waits for it to send its body; not one that is refused already."""
        if self.request is not None and self.request.error is None:
            super().send_continue()

    def handle_close(self) -> None:
        """Close; a refused client first gets the time to stop sending."""
        sock, lingers = self.socket, self._linger_until is not None
        if sock is not None and self.refused and self.will_close and not lingers:
            self._linger_until = time.monotonic() + _LINGER_S
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            else:
                self.will_close = False
                return
        if self.request is not None:
            # What came of an upload goes with its connection.
            self.request.close()
        super().handle_close()

    def received(self, data: bytes) -> bool:
        """Take what was sent; after a refusal, drop it."""
        self._moved += len(data)
        if self._linger_until is None:
            return super().received(data)
        if time.monotonic() > self._linger_until:
            self.will_close = True
        return False


class Server(TcpWSGIServer):
    """waitress' server; slow clients cannot keep others out."""

    channel_class = Channel
    admission: Admission
    uploads: Path
    next_channel_cleanup: float = math.inf  # type: ignore[assignment]
    """waitress' own, by the wall clock: never."""
    _next_look = 0.0
    accepts_elsewhere: Callable[[], bool] = staticmethod(lambda: False)
    """Whether other processes take the connections, and pass on those that are for this one."""

    def adopt(self, sock: socket.socket, address: tuple[str, int], received: bytes) -> None:
        """Take over a connection that another process accepted, with what it has read from it."""

        def begin() -> None:
            channel = Channel(self, sock, address, self.adj, map=self._map)  # type: ignore[attr-defined]
            if received:
                channel.received(received)

        # In the server's own thread, which is the only one that may touch its map.
        trigger: Any = self.trigger  # The stubs call it a number.
        trigger.pull_trigger(begin)

    def readable(self) -> bool:
        """Tell whether connections can be accepted; once a minute, look after those there are."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _WINDOW_S
            self.maintenance(now)
        return bool(super().readable()) and not self.accepts_elsewhere()

    def maintenance(self, now: float) -> None:
        """Close what is idle for too long, as waitress does, and what hardly moves.

        `now` is of the monotonic clock.
        """
        super().maintenance(int(now))
        for channel in self._channels():
            if channel.is_stuck() or channel.will_close:
                # Now: waitress waits until it could write, which a client that does not read
                # can put off for ever.
                channel.handle_close()

    def handle_accept(self) -> None:
        """Accept a connection; where all are taken, at the cost of another."""
        if len(self._map) + 1 >= self.adj.connection_limit:  # type: ignore[attr-defined]
            self._make_room()
        super().handle_accept()

    def _make_room(self) -> None:
        """Close a connection that no request is worked on for, of the address with most of them.

        Of those the one that has been quiet for longest: an idle one, or one that trickles.
        """
        waiting = [c for c in self._channels() if not c.requests and not c.total_outbufs_len]
        if waiting:
            held = Counter(channel.addr[0] for channel in waiting)
            victim = min(waiting, key=lambda c: (-held[c.addr[0]], c.last_activity))
            victim.handle_close()

    def _channels(self) -> list[Channel]:
        channels: Any = self.active_channels  # A dictionary, whatever the stubs say.
        return list(channels.values())
