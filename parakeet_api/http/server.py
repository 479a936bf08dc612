"""waitress, set up: the listening socket, its limits, and its own refusals in OpenAI's shape."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

from parakeet_api.errors import (
    DISK_FULL,
    ApiError,
    InvalidRequestError,
    ServerError,
    ServiceUnavailableError,
    SettingsError,
    UploadTooLargeError,
)
from parakeet_api.http.admission import Admission
from parakeet_api.http.head_check import ADMITTED, REFUSAL, Refusal
from parakeet_api.http.upload_form import UploadForm

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger(__name__)

HeadCheck = Callable[[dict[str, Any]], Refusal | None]
"""Given a request's environment without its body, gives the answer if that is a refusal."""
_SPARE_THREADS = 4
"""Threads for pages and health beyond the ones that requests can occupy."""
_SPARE_CONNECTIONS = 1000
"""Connections that may be open beside the requests: slow uploads, idle browsers. At waitress' 100
one could hang a health check."""
_FILES_PER_CONNECTION = 3
"""Its socket, and where it brings an upload, the file and the handle that keeps it for a stream."""
_OTHER_FILES = 200
"""Libraries, the model, the data base, pipes to ffmpeg."""
_WINDOW_S = 60
_LEAST_BYTES = 16 * 1024
"""What a transfer must move in each window: 2 kbit/s, a tenth of the slowest mobile network. A byte
now and then would hold a connection for ever."""
_LONGEST_HEAD = 64 * 1024
"""Bytes of a request's head; browsers and SDKs send 1 to 8 KiB."""
_ANSWER_BYTES = 1024**3
"""Answers up to here, so all of them, wait on disk for clients that read slowly: at waitress' 16 MB
the thread would wait with them."""
_UPLOAD_SLACK = 1024 * 1024
"""Bytes above the limit that are still read, so that a small excess is answered by Flask."""
_RECEIVE_BYTES = 64 * 1024
"""An upload of 1 GB takes a third of the time that it takes with waitress' 8 KiB."""
_DRAIN_POLL_S = 0.05
_CANCEL_S = 5.0
"""A request that is cancelled sees it twice a second, unless a model is being loaded for it."""
_LINGER_S = 30.0
"""How long a refused client may go on sending before its connection is cut: nginx's value."""


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address; nobody can connect before `create_server` listens on it.

    Raises `SettingsError` where that is impossible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # `::` then also means every IPv4 address.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        # Names that no name server could be asked for are a UnicodeError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"HOST={host!r} PORT='{port}' is not an address to listen on: {reason}"
        ) from error
    return listener


def create_server(
    application: WSGIApplication,
    *,
    listener: socket.socket,
    uploads: Path,
    max_upload_bytes: int,
    max_requests: int,
    admission: Admission,
    check_head: HeadCheck | None = None,
) -> Server:
    """Listen; `max_requests` transcriptions may be worked on or wait at a time.

    Files that are sent go to the folder `uploads`, unless `check_head` refuses their request.
    """
    most_files = _allow_files(
        _FILES_PER_CONNECTION * (max_requests + _SPARE_CONNECTIONS) + _OTHER_FILES
    )
    settings = Adjustments(
        sockets=[listener],
        threads=max_requests + _SPARE_THREADS,
        connection_limit=(most_files - _OTHER_FILES) // _FILES_PER_CONNECTION,
        max_request_header_size=_LONGEST_HEAD,
        outbuf_high_watermark=_ANSWER_BYTES,
        # select() ends at file descriptor 1023.
        asyncore_use_poll=True,
        recv_bytes=_RECEIVE_BYTES,
        max_request_body_size=max_upload_bytes + _UPLOAD_SLACK,
        # With it waitress notices a client that hangs up during its request.
        channel_request_lookahead=1,
        # Flask believes none of them, unless TRUSTED_PROXY says so.
        clear_untrusted_proxy_headers=False,
        ident=None,
    )
    dispatcher = Dispatcher(settings.threads)
    server = Server(
        application,
        map={},
        _sock=listener,
        dispatcher=dispatcher,
        adj=settings,
        sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
        bind_socket=False,
    )
    server.admission = admission
    server.uploads = uploads
    server.check_head = check_head
    return server


def _allow_files(wanted: int) -> int:
    """Let this process open so many files, or as many as it may; give how many that are.

    Many systems start a process with 1024, of which ten times as many are allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class Elsewhere(Protocol):
    """Requests that are received by other processes."""

    def under_way(self) -> int:
        """Count them."""
        ...

    def cancel(self) -> None:
        """Let them see that nobody waits for them any more."""
        ...


class GracefulStop:
    """What SIGTERM and Ctrl-C do: the first lets the requests under way end, the second does not.

    New transcriptions are refused meanwhile, and connections close with their answer.
    """

    def __init__(
        self,
        server: BaseWSGIServer,
        admission: Admission,
        *,
        grace_s: float,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._server = server
        self._admission = admission
        self._grace_s = grace_s
        self._elsewhere = elsewhere
        self._drained = threading.Event()

    def install(self) -> None:
        """Take over both signals; only the main thread may do this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _: object) -> None:
        if self._drained.is_set():
            # Ends the server's loop, which runs in this thread.
            raise KeyboardInterrupt
        if self._admission.stopping:
            logger.warning("stopping at once")
            logging.shutdown()
            os._exit(128 + number)
        self._admission.stop()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        deadline = time.monotonic() + self._grace_s
        logger.info("stopping: %d requests under way", self._under_way())
        while self._under_way() and time.monotonic() < deadline:
            time.sleep(_DRAIN_POLL_S)
        if left := self._under_way():
            logger.warning("%d requests did not end within %.0f s", left, self._grace_s)
            self._cancel()
        self._drained.set()
        signal.raise_signal(signal.SIGTERM)
        # The main thread sleeps until something happens on a connection, unless the signal has
        # ended that already.
        with contextlib.suppress(OSError):
            self._server.pull_trigger()

    def _under_way(self) -> int:
        """Count the connections whose request or answer is under way.

        A request that still arrives is one: its client is to hear why it is refused.
        """
        here = sum(
            bool(channel.request or channel.requests or channel.total_outbufs_len)
            for channel in self._channels()
        )
        return here + (self._elsewhere.under_way() if self._elsewhere else 0)

    def _cancel(self) -> None:
        """Let the requests see that nobody waits for them any more, and end."""
        if self._elsewhere:
            self._elsewhere.cancel()
        for channel in self._channels():
            channel.cancel()
        self._admission.wait_until_empty(_CANCEL_S)

    def _channels(self) -> list[Any]:
        channels: Any = self._server.active_channels  # A dictionary, whatever the stubs say.
        return list(channels.values())


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

    refusal: Refusal | None = None
    """What is answered to the head, whatever the body is."""
    admitted = False
    """Whether the head was looked at and has passed."""

    def __init__(
        self, adj: Adjustments, uploads: Path, refusal_of: Callable[[Parser], Refusal | None] | None
    ) -> None:
        super().__init__(adj)
        self._uploads = uploads
        self._refusal_of = refusal_of

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
            consumed = int(super().received(data))
            if self.headers_finished and not self.completed and not self.admitted:
                self._look_at_head()
            # Of a refused request the rest is nothing that could be another one.
            return consumed if self.refusal is None else len(data)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            logger.error("a request's body cannot be stored: %s", error)
            self.error = DiskFullError(str(error))
            self.completed = True
            return len(data)

    def _look_at_head(self) -> None:
        """Refuse the request, if its head says so, before anything of its body is taken."""
        if self._refusal_of is not None:
            self.refusal = self._refusal_of(self)
        self.completed = self.refusal is not None
        self.admitted = not self.completed


class ClosingTask(WSGITask):
    """A request's work; while the server is stopping, its connection ends with the answer."""

    channel: Channel
    request: Any
    """A `Parser`; the stubs call it an error."""

    def get_environment(self) -> dict[str, Any]:
        """Give the request's environment, with what is known from its head."""
        environ: dict[str, Any] = super().get_environment()
        if self.request.refusal is not None:
            environ[REFUSAL] = self.request.refusal
        elif self.request.admitted and self.channel.server.check_head is not None:
            environ[ADMITTED] = True
        return environ

    def build_response_header(self) -> bytes:
        """Write the header."""
        if self.channel.server.admission.stopping or self.request.refusal is not None:
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
            limit = self.channel.adj.max_request_body_size - _UPLOAD_SLACK
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
        is_checked = self.server.check_head is not None
        return Parser(adj, self.server.uploads, self._refusal_of if is_checked else None)

    def _refusal_of(self, request: Parser) -> Refusal | None:
        """Ask the application about a head."""
        assert self.server.check_head is not None
        whole: Any = request
        refusal = self.server.check_head(ClosingTask(self, whole).get_environment())
        self.refused = refusal is not None
        return refusal

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
        if self.request is not None and self.request.error is None and not self.refused:
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
            return False if self.refused else super().received(data)
        if time.monotonic() > self._linger_until:
            self.will_close = True
        return False


class Server(TcpWSGIServer):
    """waitress' server; slow clients cannot keep others out."""

    channel_class = Channel
    admission: Admission
    uploads: Path
    check_head: HeadCheck | None = None
    """Asked about each request with a body when its head has been read."""
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
