"""A process that receives and decodes clips and renders transcripts, but has no model.

One interpreter can do that for about 400 clips a second, while a fast GPU recognises twice as many.
This process only answers plain requests: a short recording, sent at once, with valid parameters.
It sends the samples to the process with the model and receives the words. Everything else, and
every failure, is passed on to that process together with the connection and the data read from it;
that process responds as if it had accepted the connection itself.

    python -m parakeet_api.http.clip_front LISTENER CONTROL      two file descriptors; `clip_desk`
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import selectors
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from parakeet_api.http.api_keys import is_accepted, sent_key
from parakeet_api.http.clip_link import (
    LinkClosedError,
    receive,
    send,
    send_socket,
)
from parakeet_api.http.clip_request import PassOnError, RequestHead, parse_head, response
from parakeet_api.http.clip_transcriber import ClientGoneError, ClipTranscriber, FrontOptions
from parakeet_api.http.upload_form import MULTIPART, UploadForm
from parakeet_api.logs import set_up_logging

logger = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 16 * 1024
_MAX_BODY_BYTES = 4 * 1024 * 1024
"""Two minutes of wav; a larger request is not a clip, or is slow to arrive."""
_RECEIVE_BYTES = 256 * 1024
_BLOCK_BYTES = 256 * 1024
_PASSED_ON_HEADERS = ("transfer-encoding", "expect", "upgrade", "content-encoding", "origin")
"""Headers of requests that are not plain."""
_SLOW_S = 5.0
"""A request that takes longer to arrive is passed on."""
_IDLE_S = 60.0
"""The same for a connection without a request."""
_SEND_S = 10.0
"""How long a client may take for an answer of some kilobytes."""
_TICK_S = 1.0
_MAX_HELD_BYTES = 256 * 1024 * 1024
"""Limit of all requests in memory, including those in progress. Further ones are passed on to the
process with the model, which writes them to disk while they arrive."""
_MAX_CONNECTIONS = 1000
"""Further ones are passed on to the process with the model, which decides which one to close."""
_LAST_ANSWERS_S = 2.0
"""Time to finish responses after the process with the model has ended."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(eq=False, slots=True)
class _Connection:
    """A client connection and the data received so far."""

    sock: socket.socket
    address: tuple[str, int]
    received: bytearray = field(default_factory=bytearray)
    head: RequestHead | None = None
    since: float = field(default_factory=time.monotonic)
    """When the request began, or the last one ended."""


class _Held:
    """Count the bytes of requests that are held in memory."""

    def __init__(self) -> None:
        self._bytes = 0
        self._counting = threading.Lock()

    def add(self, size: int) -> bool:
        """Add `size`, which may be negative; return whether the total is within the limit."""
        with self._counting:
            self._bytes += size
            return self._bytes <= _MAX_HELD_BYTES


class Front:
    """Serve clips over HTTP with another process' model; pass everything else on to it."""

    def __init__(
        self, listener: socket.socket, control: socket.socket, options: FrontOptions
    ) -> None:
        self._listener = listener
        self._control = control
        self._options = options
        self._settings = options.settings
        self._sending = threading.Lock()
        """Held while something is sent over `control`."""
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        """Connections that the loop waits for."""
        self._answered: deque[_Connection] = deque()
        """Connections to return to the loop after a response."""
        self._waking, self._wake = socket.socketpair()
        self._workers = ThreadPoolExecutor(options.threads, thread_name_prefix="clip")
        self._busy = 0
        self._counting = threading.Lock()
        self._held = _Held()
        self._transcriber = ClipTranscriber(options, pass_link=self._pass_link)

    def run(self) -> None:
        """Serve until the process with the model ends."""
        self._listener.setblocking(False)
        self._waking.setblocking(False)
        self._watch(self._listener, self._accept)
        self._watch(self._waking, self._resume)
        gone: list[bool] = []
        self._watch(self._control, lambda: gone.append(True))
        with self._sending:
            send(self._control, ("ready",))
        next_tick = time.monotonic()
        while not gone:
            for key, _ in self._selector.select(_TICK_S):
                key.data()
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK_S
                self._pass_on_slow_ones()
        self._close()

    def _close(self) -> None:
        """Accept no more connections, and finish the responses in progress."""
        self._listener.close()
        for connection in [*self._connections]:
            self._leave(connection)
            connection.sock.close()
        ends = time.monotonic() + _LAST_ANSWERS_S
        while self._busy and time.monotonic() < ends:
            time.sleep(0.01)
        while self._answered:
            self._answered.popleft().sock.close()
        self._workers.shutdown(wait=False)
        self._transcriber.close()
        self._selector.close()
        self._waking.close()
        self._wake.close()

    def _watch(self, sock: socket.socket, then: Callable[[], object]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, then)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:
            # Another process has accepted it, or the client has disconnected.
            return
        sock.setblocking(False)
        connection = _Connection(sock, address)
        if len(self._connections) < _MAX_CONNECTIONS:
            self._wait_for(connection)
        else:
            self._pass_on(connection)

    def _wait_for(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self._watch(connection.sock, lambda: self._read(connection))

    def _leave(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)

    def _resume(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._waking.recv(4096)
        while self._answered:
            self._wait_for(self._answered.popleft())

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave(connection)
            self._release(connection)
            connection.sock.close()
            return
        if not connection.received:
            connection.since = time.monotonic()
        connection.received += data
        if self._held.add(len(data)):
            self._look_at(connection)
        else:
            self._leave(connection)
            self._pass_on(connection)

    def _look_at(self, connection: _Connection) -> None:
        """Start processing a complete request; pass on a request that is not plain."""
        try:
            connection.head = connection.head or self._head_of(connection)
            if connection.head is None:
                return
            missing = connection.head.size + connection.head.body_size - len(connection.received)
            if missing < 0 or self._busy >= self._options.threads:
                raise PassOnError
        except PassOnError:
            self._leave(connection)
            self._pass_on(connection)
            return
        if missing == 0:
            self._leave(connection)
            with self._counting:
                self._busy += 1
            self._workers.submit(self._work, connection, connection.head)

    def _head_of(self, connection: _Connection) -> RequestHead | None:
        """Parse the head if it is complete. Raises `PassOnError`."""
        end = connection.received.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
        if end < 0:
            if len(connection.received) >= _MAX_HEAD_BYTES:
                raise PassOnError
            return None
        head = parse_head(bytes(connection.received[:end]))
        if not self._is_plain(head.headers):
            raise PassOnError
        return head

    def _is_plain(self, headers: Mapping[str, str]) -> bool:
        keys = self._settings.api_keys
        length = headers.get("content-length", "")
        return (
            headers.get("content-type", "").lower().startswith(MULTIPART)
            and length.isdecimal()
            and length.isascii()
            and int(length) <= min(_MAX_BODY_BYTES, self._settings.max_upload_bytes)
            and headers.get("connection", "").lower() in ("", "close", "keep-alive")
            and not any(name in headers for name in _PASSED_ON_HEADERS)
            and (not keys or is_accepted(sent_key(headers.get("authorization", "")), keys))
        )

    def _pass_on_slow_ones(self) -> None:
        now = time.monotonic()
        for connection in [*self._connections]:
            if now - connection.since > (_SLOW_S if connection.received else _IDLE_S):
                self._leave(connection)
                self._pass_on(connection)

    def _pass_on(self, connection: _Connection) -> None:
        """Pass a connection and the data read from it to the process with the model."""
        with self._sending, contextlib.suppress(LinkClosedError):
            send_socket(
                self._control,
                connection.sock,
                ("connection", connection.address),
                bytes(connection.received),
            )
        self._release(connection)
        connection.sock.close()

    def _release(self, connection: _Connection) -> None:
        """Discard the data of a connection."""
        self._held.add(-len(connection.received))
        connection.received = bytearray()

    def _pass_link(self, link: socket.socket) -> None:
        with self._sending:
            send_socket(self._control, link, ("link", None), b"")

    def _work(self, connection: _Connection, head: RequestHead) -> None:
        """Answer a request, or pass it on."""
        try:
            stays = self._answer(connection, head)
        except ClientGoneError:
            self._release(connection)
            connection.sock.close()
        except Exception as error:
            # The process with the model will get the same error, and respond with it.
            logger.debug("passed on: %r", error)
            self._pass_on(connection)
        else:
            self._release(connection)
            if stays:
                connection.head = None
                connection.since = time.monotonic()
                self._answered.append(connection)
                self._wake.send(b"x")
            else:
                connection.sock.close()
        finally:
            with self._counting:
                self._busy -= 1

    def _answer(self, connection: _Connection, head: RequestHead) -> bool:
        """Respond to a request; return whether the connection stays open."""
        given = head.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12]
        form = UploadForm.for_body(
            self._settings.temp_uploads_dir, head.headers.get("content-type", "")
        )
        if form is None:
            raise PassOnError
        with closing(form):
            with memoryview(connection.received) as view:
                for start in range(head.size, len(view), _BLOCK_BYTES):
                    form.append(bytes(view[start : start + _BLOCK_BYTES]))
            model, rendered = self._transcriber.transcribe(
                form.result(),
                head,
                request_id=request_id,
                sock=connection.sock,
                peer=connection.address[0],
            )
        closes = head.headers.get("connection", "").lower() == "close"
        answer = response(rendered, request_id, model.checkpoint, model.note, closes=closes)
        connection.sock.settimeout(_SEND_S)
        try:
            connection.sock.sendall(answer)
        except OSError as error:
            raise ClientGoneError from error
        connection.sock.setblocking(False)
        return not closes


def main() -> None:
    """Serve, with the options that the parent process sends first."""
    listener, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    # The process with the model handles both signals, and ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _, data = receive(control)
    # Our own parent wrote it.
    options: FrontOptions = pickle.loads(data)  # noqa: S301
    settings = options.settings
    set_up_logging(level=settings.log_level, log_format=settings.log_format)
    try:
        Front(listener, control, options).run()
    finally:
        # Threads that still wait for words would keep the process alive.
        os._exit(0)


if __name__ == "__main__":
    main()
