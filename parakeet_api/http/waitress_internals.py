"""Modified versions of waitress' server, channel, parser, tasks and threads.

All private interfaces of waitress that the service relies on are used in this module;
`tests/http/test_waitress_internals.py` checks that the pinned version has them.

waitress receives a whole body before the application is called. Here the application is called when
the head has been read, and reads the body from a `RequestBody` while it arrives: a request can be
refused before its body is sent, and nothing is parsed or written in the thread that serves all
connections. A short body may be received in memory before the application is called.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from http import HTTPStatus
from queue import Empty, Queue
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

from parakeet_api.errors import ApiError, InvalidRequestError, ServerError, UploadTooLargeError
from parakeet_api.http.admission import Admission
from parakeet_api.http.request_body import MAX_HELD, RequestBody

logger = logging.getLogger(__name__)

_WINDOW_S = 60
_MIN_BYTES = 16 * 1024
"""Bytes that a transfer must move in each window: 2 kbit/s, a tenth of the slowest mobile network.
Otherwise a client could keep a connection forever with a byte from time to time."""
UPLOAD_SLACK = 1024 * 1024
"""Bytes above the limit that are still read, so that a small excess is answered by Flask."""
_LINGER_S = 30.0
"""How long a rejected client may keep sending before its connection is closed; nginx's value."""
_MAX_DISCARDED = 256 * 1024
"""Bytes of a rejected request's body that are received and dropped, so that its connection can
serve the next request; if more remain, it is closed."""
_IDLE_THREAD_S = 5.0
"""Idle time after which a thread ends."""
_SHORT_WAIT_S = 0.1
"""How long a request waits for the rest of a short body before it is started. Most bodies arrive
sooner, and a thread that need not wait for the body saves 0.2 ms of CPU time."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DETACH = "parakeet.detach"
"""The key of `Channel.detach` in the WSGI environment of a WebSocket request."""
_MAX_EARLY = 64 * 1024
"""Bytes that may come after such a request before it is answered; clients should send none."""
_DETACH_S = 10.0
"""How long the server's thread may take to release a connection."""


class Dispatcher(ThreadedTaskDispatcher):
    """Threads for requests: one is started when all others are busy, idle ones end after a while.

    A request has a thread while its body is received. One that waits for a slow client takes 60 KB
    of memory, and there are no more of them than connections.
    """

    def __init__(self, *, max_threads: int, max_idle: int) -> None:
        """Start at most `max_threads`; of those without a request, keep at most `max_idle`."""
        super().__init__()
        self._max_threads = max_threads
        self._max_idle = max_idle
        self._numbers = itertools.count()

    def add_task(self, task: Any) -> None:
        """Queue a request for the next free thread."""
        with self.lock:
            self.queue.append(task)
            idle = len(self.threads) - self.stop_count - self.active_count
            if len(self.queue) <= idle or len(self.threads) >= self._max_threads:
                self.queue_cv.notify()
                return
            number = next(self._numbers)
            self.threads.add(number)
            self.active_count += 1
        try:
            self.start_new_thread(self.handler_thread, number)
        except RuntimeError:
            # The system's limit of threads is reached; the request waits for an existing one.
            logger.warning("no more threads can be started than %d", len(self.threads) - 1)
            with self.lock:
                self.threads.discard(number)
                self.active_count -= 1
                self.queue_cv.notify()

    def handler_thread(self, thread_no: int) -> None:
        """Process requests until idle for a while, or until `shutdown`."""
        while (task := self._next_task(thread_no)) is not None:
            try:
                task.service()
            except BaseException:
                logger.exception("a request's thread failed")

    def _next_task(self, number: int) -> Any:
        """Wait for a request; return `None` if this thread should end."""
        with self.lock:
            while not self.queue and not self.stop_count:
                if len(self.threads) - self.active_count >= self._max_idle:
                    break
                self.active_count -= 1
                notified = self.queue_cv.wait(_IDLE_THREAD_S)
                self.active_count += 1
                if not (notified or self.queue):
                    break
            if self.queue and not self.stop_count:
                return self.queue.popleft()
            self.active_count -= 1
            self.threads.discard(number)
            if self.stop_count:
                self.stop_count -= 1
                self.thread_exit_cv.notify()
            return None


class Parser(HTTPRequestParser):
    """A request as it arrives; its body goes to `body`."""

    body: RequestBody | None = None
    is_started = False
    """Whether the application has been called, or will be."""
    is_awaited = False
    """Whether it is started after a short wait at the latest."""
    is_upgrade = False
    """Whether it is a WebSocket request."""
    _waits_for_continue = False

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel.adj)
        self._channel = channel

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head; prepare for the body."""
        super().parse_header(header_plus)
        # waitress would send `100 Continue` now. A request may be refused until its body is read.
        self._waits_for_continue, self.expect_continue = self.expect_continue, False
        if self.body_rcv is not None:
            self.body = RequestBody(
                on_first_read=self._send_continue, on_room=self._channel.server.pull_trigger
            )
            buffer: Any = self.body
            self.body_rcv.buf = buffer
        self.is_upgrade = (
            self.body is None
            and str(self.command) == "GET"
            and self.headers.get("UPGRADE", "").lower() == "websocket"
        )

    def received(self, data: bytes) -> int:
        """Process received bytes; return how many of them belong to this request."""
        consumed = int(super().received(data))
        if self.completed and self.body is not None:
            self.body.end(self.failure(self.adj) if self.error is not None else None)
        return consumed

    def get_body_stream(self) -> Any:
        """Return the stream for `wsgi.input`."""
        return super().get_body_stream() if self.body is None else self.body

    def is_short(self) -> bool:
        """Return whether the whole body fits into memory and is sent without `100 Continue`."""
        return not (self.chunked or self._waits_for_continue) and self.content_length <= MAX_HELD

    def is_whole(self) -> bool:
        """Return whether everything has been received."""
        return self.completed and self.error is None

    def is_rest_short(self) -> bool:
        """Return whether what is still to come of the body is small enough to be discarded."""
        if self.body is None or self.is_whole():
            return True
        missing = self.content_length - len(self.body)
        return not (self.chunked or self._waits_for_continue) and missing <= _MAX_DISCARDED

    def failure(self, adj: Adjustments) -> ApiError:
        """Return the error response for a request that waitress rejects."""
        error: Any = self.error
        if error.code == UploadTooLargeError.status:
            limit = adj.max_request_body_size - UPLOAD_SLACK
            return UploadTooLargeError.above(limit, sent=self.content_length or None)
        if error.code == ServerError.status:
            return ServerError("The server had an error while processing your request.")
        failure = InvalidRequestError(f"{error.reason}: {error.body}")
        # waitress answers an unknown transfer encoding with 501, which clients would send again.
        failure.status = error.code if error.code < ServerError.status else 400
        return failure

    def _send_continue(self) -> None:
        if self._waits_for_continue:
            self._waits_for_continue = False
            # If the client has disconnected, the reader is notified separately.
            with contextlib.suppress(ClientDisconnected):
                self._channel.write_soon(_CONTINUE)


class ClosingTask(WSGITask):
    """The application's response to a request.

    It closes the connection if the server is stopping, or if much of a body was left unread.
    """

    channel: Channel
    request: Parser  # type: ignore[assignment]

    def get_environment(self) -> dict[str, Any]:
        """Return the request's WSGI environment."""
        environ: dict[str, Any] = super().get_environment()
        if self.request.is_upgrade:
            environ[DETACH] = self.channel.detach
        return environ

    def write(self, data: bytes) -> None:
        """Write a part of the response, unless the connection has been detached."""
        if not self.channel.is_detached:
            super().write(data)

    def build_response_header(self) -> bytes:
        """Write the header."""
        if (
            self.channel.server.admission.stopping
            or self.request.is_upgrade
            or not self.request.is_rest_short()
        ):
            self.set_close_on_finish()
        header: bytes = super().build_response_header()
        # In any case the client may still be sending.
        if self.close_on_finish and not self.request.is_whole():
            self.channel.refused = True
        return header


class JsonErrorTask(ErrorTask):
    """The response to a request that waitress rejects: too large a body, or invalid HTTP."""

    channel: Channel
    request: Any
    """The stubs call it an error; it is a `Parser` with one."""

    def execute(self) -> None:
        """Write the response, after which the connection is closed."""
        failure = self.request.failure(self.channel.adj)
        body = json.dumps(failure.body()).encode()
        self.status = f"{failure.status} {HTTPStatus(failure.status).phrase}"
        self.response_headers = [("Content-Type", "application/json")]
        self.content_length = len(body)
        self.set_close_on_finish()
        self.channel.refused = True
        self.write(body)


class Channel(HTTPChannel):
    """A connection: starts requests when their heads have been read, and lingers after a rejection.

    Closing a socket with unread data resets the connection, and a client that is still sending then
    loses the response. So the rest is received for a while, and dropped.
    """

    task_class = ClosingTask
    error_task_class = JsonErrorTask
    server: Server
    request: Parser | None
    requests: list[Parser]
    requests_lock: threading.Lock
    refused = False
    """Whether a response was sent before the whole request was received."""
    is_detached = False
    """Whether the connection has been handed out."""
    _early = b""
    """Data received after a WebSocket request."""
    _linger_until: float | None = None
    _last_activity = 0.0
    _moved = 0
    """Bytes received and sent since the last `is_stuck`."""
    _seen_request: object = None
    _seen_unsent = 0

    def parser_class(self, _: Adjustments) -> Parser:  # type: ignore[override]
        """Create a parser for the next request."""
        return Parser(self)

    def service(self) -> None:
        """Process a request, unless `cancel` has removed it in the meantime."""
        if self.requests:
            super().service()

    @property
    def last_activity(self) -> float:
        """When something was last sent or received."""
        return self._last_activity

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        # waitress uses the wall clock: if it is adjusted, all connections look idle, or none.
        self._last_activity = time.monotonic()

    def readable(self) -> bool:
        """Return whether more can be received; not while the application reads more slowly."""
        return bool(super().readable()) and not self._is_held_back()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Return the socket and the data received after the WebSocket request.

        Called by that request's thread; the application's response is then dropped. Raises
        `ConnectionAbortedError` if the connection has ended.
        """
        handed: Queue[socket.socket | None] = Queue()
        trigger: Any = self.server.trigger
        # In the server's own thread, which is the only one that may touch its map.
        trigger.pull_trigger(lambda: handed.put(self._let_go()))
        try:
            sock = handed.get(timeout=_DETACH_S)
        except Empty:
            sock = None
        if sock is None:
            raise ConnectionAbortedError
        return sock, self._early

    def _let_go(self) -> socket.socket | None:
        """Remove the connection from the server's loop, unless it has ended."""
        with self.requests_lock:
            if not self.connected or self.will_close:
                return None
            self.del_channel(self.server._map)  # type: ignore[attr-defined]  # noqa: SLF001
            self.is_detached = True
            self.connected = False
        return self.socket

    def is_under_way(self) -> bool:
        """Return whether a request or its answer is under way."""
        if self._linger_until is not None:
            return False
        return bool(self.request or self.requests or self.total_outbufs_len)

    def is_waiting(self) -> bool:
        """Return whether the server only waits for this client to send a request or its rest."""
        return not self.total_outbufs_len and (not self.requests or self._receiving() is not None)

    def is_stuck(self) -> bool:
        """Return whether a transfer has made hardly any progress since the last call."""
        receiving = None if self._is_held_back() else self._receiving()
        stuck = self._moved < min(_MIN_BYTES, self._seen_unsent) or (
            receiving is not None and receiving is self._seen_request and self._moved < _MIN_BYTES
        )
        self._seen_request, self._seen_unsent = receiving, self.total_outbufs_len
        self._moved = 0
        return stuck

    def received(self, data: bytes) -> bool:
        """Process received data; after a rejection, drop it."""
        self._moved += len(data)
        if self._linger_until is not None:
            if time.monotonic() > self._linger_until:
                self.will_close = True
            return False
        with self.requests_lock:
            # A thread may have set either after this was found readable.
            if self.will_close or self.close_when_flushed:
                return False
            self._parse(data)
        return True

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send as much as the socket accepts."""
        sent: int = super().send(data, do_close)
        self._moved += sent
        return sent

    def handle_close(self) -> None:
        """Close the connection; a rejected client first gets time to stop sending."""
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
        self._abort_bodies()
        super().handle_close()

    def cancel(self) -> None:
        """Cancel the request in progress."""
        self._abort_bodies()
        super().cancel()

    def _parse(self, data: bytes) -> None:
        """Pass the bytes to their requests; start those whose head is complete."""
        if self.requests and self.requests[-1].is_upgrade:
            self._early += data
            return
        while data:
            request = self.request = self.request or self.parser_class(self.adj)
            if request.error is not None:
                # Where the next request begins is unknown, so the response closes the connection.
                return
            consumed = request.received(data)
            if request.completed:
                if not request.empty:
                    self._start(request)
                if request.error is None:
                    self.request = None
            data = data[consumed:]
            if request.is_upgrade:
                self._early = data
                return
        receiving = self.request
        if receiving is not None and receiving.body is not None:
            if receiving.is_short():
                self.server.start_soon(self, receiving)
            else:
                self._start(receiving)

    def start(self, request: Parser) -> None:
        """Start a request that is still being received, unless it has been cancelled."""
        with self.requests_lock:
            if self.connected and self.request is request:
                self._start(request)

    def _start(self, request: Parser) -> None:
        if not request.is_started:
            request.is_started = True
            self.requests.append(request)
            # Later ones are started by `service`, one after the other.
            if len(self.requests) == 1:
                task: Any = self
                self.server.add_task(task)

    def _receiving(self) -> Parser | None:
        """Return the request that is being received, unless others are worked on before it."""
        if self.requests and self.requests[0] is not self.request:
            return None
        return self.request

    def _is_held_back(self) -> bool:
        request = self.request
        if len(self._early) > _MAX_EARLY:
            return True
        return request is not None and request.body is not None and request.body.is_full

    def _abort_bodies(self) -> None:
        for received in (self.request, *self.requests):
            if received is not None and received.body is not None:
                received.body.abort()


class Server(TcpWSGIServer):
    """waitress' server, in which slow clients cannot block others."""

    channel_class = Channel
    admission: Admission
    next_channel_cleanup: float = math.inf  # type: ignore[assignment]
    """waitress' own, by the wall clock: never."""
    _next_maintenance = 0.0
    _starting: deque[tuple[float, Channel, Parser]]
    """Requests whose short body is awaited, and until when."""
    accepts_elsewhere: Callable[[], bool] = staticmethod(lambda: False)
    """Whether other processes accept the connections, and pass some on to this one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._starting = deque()
        super().__init__(*args, **options)

    def adopt(self, sock: socket.socket, address: tuple[str, int], received: bytes) -> None:
        """Take over a connection accepted by another process, with the data read from it."""

        def begin() -> None:
            self._make_room_if_full()
            channel = Channel(self, sock, address, self.adj, map=self._map)  # type: ignore[attr-defined]
            if received:
                channel.received(received)

        # In the server's own thread, which is the only one that may touch its map.
        trigger: Any = self.trigger  # The stubs call it a number.
        trigger.pull_trigger(begin)

    def readable(self) -> bool:
        """Return whether connections can be accepted; once a minute, close those that are stuck."""
        now = time.monotonic()
        if now >= self._next_maintenance:
            self._next_maintenance = now + _WINDOW_S
            self.maintenance(now)
        self._start_overdue(now)
        return bool(super().readable()) and not self.accepts_elsewhere()

    def start_soon(self, channel: Channel, request: Parser) -> None:
        """Start a request when its body is complete, or else after a short wait."""
        if not (request.is_started or request.is_awaited):
            request.is_awaited = True
            self._starting.append((time.monotonic() + _SHORT_WAIT_S, channel, request))

    def _start_overdue(self, now: float) -> None:
        while self._starting and (self._starting[0][2].is_started or self._starting[0][0] <= now):
            _, channel, request = self._starting.popleft()
            channel.start(request)

    def maintenance(self, now: float) -> None:
        """Close connections that are idle too long, as waitress does, or nearly stalled.

        `now` is of the monotonic clock.
        """
        super().maintenance(int(now))
        for channel in self.channels():
            if channel.is_stuck() or channel.will_close:
                # Now: waitress waits until it could write, which a client that does not read
                # can put off forever.
                channel.handle_close()

    def handle_accept(self) -> None:
        """Accept a connection; at the limit, close another one for it."""
        self._make_room_if_full()
        super().handle_accept()

    def channels(self) -> list[Channel]:
        """List the connections."""
        channels: Any = self.active_channels  # A dictionary, whatever the stubs say.
        return list(channels.values())

    def under_way(self) -> int:
        """Count the connections whose request or answer is under way."""
        return sum(channel.is_under_way() for channel in self.channels())

    def cancel_all(self) -> None:
        """Cancel all requests."""
        for channel in self.channels():
            channel.cancel()

    def _make_room_if_full(self) -> None:
        if len(self._map) + 1 >= self.adj.connection_limit:  # type: ignore[attr-defined]
            self._make_room()

    def _make_room(self) -> None:
        """Close a connection without a request in progress, of the address with the most of them.

        Of those, close the one that has been inactive longest: an idle one or a slow upload.
        """
        waiting = [channel for channel in self.channels() if channel.is_waiting()]
        if waiting:
            held = Counter(channel.addr[0] for channel in waiting)
            victim = min(waiting, key=lambda c: (-held[c.addr[0]], c.last_activity))
            victim.handle_close()
