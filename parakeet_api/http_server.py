"""waitress, set up: the listening socket, its limits, and its own refusals in OpenAI's shape."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import waitress.server
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask, WSGITask

from parakeet_api.admission import Admission
from parakeet_api.errors import (
    ApiError,
    InvalidRequestError,
    ServerError,
    SettingsError,
    UploadTooLargeError,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger(__name__)

_SPARE_THREADS = 4
"""Threads for pages and health beyond the ones that requests can occupy."""
_SPARE_CONNECTIONS = 1000
"""Connections that may be open beside the requests: slow uploads, idle browsers. At waitress' 100
one could hang a health check. Each costs a file descriptor."""
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
    except OSError as error:
        raise SettingsError(
            f"HOST={host!r} PORT='{port}' is not an address to listen on: {error.strerror}"
        ) from error
    return listener


def create_server(
    application: WSGIApplication,
    *,
    listener: socket.socket,
    max_upload_bytes: int,
    max_requests: int,
    admission: Admission,
) -> BaseWSGIServer:
    """Listen; `max_requests` transcriptions may be worked on or wait at a time."""
    server = waitress.server.create_server(
        application,
        sockets=[listener],
        threads=max_requests + _SPARE_THREADS,
        connection_limit=max_requests + _SPARE_CONNECTIONS,
        # select() ends at file descriptor 1023.
        asyncore_use_poll=True,
        recv_bytes=_RECEIVE_BYTES,
        max_request_body_size=max_upload_bytes + _UPLOAD_SLACK,
        # With it waitress notices a client that hangs up during its request.
        channel_request_lookahead=1,
        ident=None,
    )
    assert isinstance(server, BaseWSGIServer)
    server.channel_class = Channel
    server.admission = admission  # type: ignore[attr-defined]
    return server


class GracefulStop:
    """What SIGTERM and Ctrl-C do: the first lets the requests under way end, the second does not.

    New transcriptions are refused meanwhile, and connections close with their answer.
    """

    def __init__(self, server: BaseWSGIServer, admission: Admission, *, grace_s: float) -> None:
        self._server = server
        self._admission = admission
        self._grace_s = grace_s
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
        # The main thread sleeps until something happens on a connection.
        self._server.pull_trigger()

    def _under_way(self) -> int:
        """Count the connections whose request is worked on, or whose answer is still being sent."""
        return sum(
            bool(channel.requests or channel.total_outbufs_len) for channel in self._channels()
        )

    def _cancel(self) -> None:
        """Let the requests see that nobody waits for them any more, and end."""
        for channel in self._channels():
            channel.cancel()
        self._admission.wait_until_empty(_CANCEL_S)

    def _channels(self) -> list[Any]:
        channels: Any = self._server.active_channels  # A dictionary, whatever the stubs say.
        return list(channels.values())


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
        self.status = f"{failure.status} {self.request.error.reason}"
        self.response_headers = [("Content-Type", "application/json")]
        self.content_length = len(body)
        self.set_close_on_finish()
        self.channel.refused = True
        self.write(body)

    def _failure(self) -> ApiError:
        error = self.request.error
        if error.code == UploadTooLargeError.status:
            limit = self.channel.adj.max_request_body_size - _UPLOAD_SLACK
            return UploadTooLargeError.above(limit, sent=self.request.content_length or None)
        if error.code == ServerError.status:
            return ServerError("The server had an error while processing your request.")
        failure = InvalidRequestError(f"{error.reason}: {error.body}")
        failure.status = error.code
        return failure


class Channel(HTTPChannel):
    """A connection that lets a refused client read why.

    A socket closed with unread data in it resets the connection, and a client that is still
    sending then loses the answer. So the rest is read for a while, and thrown away.
    """

    task_class = ClosingTask
    error_task_class = JsonErrorTask
    server: Any
    """waitress' server, which also holds our `admission`."""
    refused = False
    """Whether the answer came before the request was read to its end."""
    _linger_until: float | None = None

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
        super().handle_close()

    def received(self, data: bytes) -> bool:
        """Take what was sent; after a refusal, drop it."""
        if self._linger_until is None:
            return super().received(data)
        if time.monotonic() > self._linger_until:
            self.will_close = True
        return False
