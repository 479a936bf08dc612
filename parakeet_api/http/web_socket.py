"""A WebSocket on a connection that waitress has handed out.

The package `websockets` implements the protocol without I/O; this module does the I/O. One thread
receives, and any may send. All waits for a client are bounded by the limits below.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from parakeet_api.errors import InvalidRequestError

_logger = logging.getLogger("websockets.server")
# Below this level it logs every connection and its headers, which contain keys.
_logger.setLevel(logging.WARNING)

_RECEIVE_BYTES = 64 * 1024
_MAX_MESSAGE = 16 * 1024 * 1024
"""Maximum bytes of a message: OpenAI accepts 15 MiB of audio, four minutes of PCM at 24 kHz."""
_TICK_S = 1.0
_PING_S = 20.0
"""An inactive client is pinged after this time, and must respond within the same time."""
_SEND_S = 10.0
"""Timeout of a send."""
_CLOSE_S = 2.0
"""Timeout of the closing handshake."""
_MAX_REASON = 120
"""Bytes of the reason of a close frame: 123, and no character is cut in two."""

Detach = Callable[[], tuple[socket.socket, bytes]]


class SocketClosedError(Exception):
    """The client has disconnected, or does not read."""


class Handshake:
    """A validated WebSocket handshake."""

    def __init__(
        self, path: str, headers: Sequence[tuple[str, str]], *, subprotocols: frozenset[str]
    ) -> None:
        """Validate the request; select the first of the `subprotocols` that the client offers.

        Raises `InvalidRequestError` if it is not a WebSocket request.
        """

        def select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            return next((name for name in offered if name in subprotocols), None)

        self._protocol = ServerProtocol(
            select_subprotocol=select, max_size=_MAX_MESSAGE, logger=_logger
        )
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        self._protocol.receive_data("\r\n".join(lines).encode("latin-1", "replace"))
        requests = [e for e in self._protocol.events_received() if isinstance(e, Request)]
        if not requests:
            raise InvalidRequestError("The head of the request is too large for a WebSocket.")
        self._answer: Response = self._protocol.accept(requests[0])
        if self._answer.status_code != _SWITCHING_PROTOCOLS:
            raise InvalidRequestError(
                "This address speaks WebSocket, and the request is not a valid handshake:"
                f" {self._protocol.handshake_exc}."
            )

    def complete(self, detach: Detach, *, headers: Mapping[str, str]) -> WebSocket:
        """Take over the connection and send the response, with additional headers."""
        for name, value in headers.items():
            self._answer.headers[name] = value
        sock, early = detach()
        self._protocol.send_response(self._answer)
        return WebSocket(sock, self._protocol, early=early)


_SWITCHING_PROTOCOLS = 101


class WebSocket:
    """An open connection."""

    def __init__(self, sock: socket.socket, protocol: ServerProtocol, *, early: bytes) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._protocol = protocol
        self._early = early
        self._lock = threading.Lock()
        """Guards the protocol and sending."""
        self._is_gone = False
        self._heard = time.monotonic()
        """When the client last sent anything, or was pinged."""
        self._is_asked = False

    def messages(self) -> Generator[str | bytes | None]:
        """Yield messages as they arrive, and `None` each second without one, until the end."""
        parts = bytearray()
        is_text = True
        while self._is_open():
            frames = self._receive()
            if not frames:
                yield None
            for frame in frames:
                if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    continue
                if frame.opcode is not Opcode.CONT:
                    is_text = frame.opcode is Opcode.TEXT
                parts += frame.data
                if frame.fin:
                    message, parts = bytes(parts), bytearray()
                    yield self._decoded(message) if is_text else message

    def send(self, text: str) -> None:
        """Send a message. Raises `SocketClosedError`."""
        with self._lock:
            if not self._is_open():
                raise SocketClosedError
            self._protocol.send_text(text.encode(errors="replace"))
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Perform the closing handshake, and close the connection.

        Called by the receiving thread.
        """
        with contextlib.suppress(SocketClosedError), self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(code, _shortened(reason))
            self._flush()
        deadline = time.monotonic() + _CLOSE_S
        while not self._is_gone and time.monotonic() < deadline:
            self._receive()
        self._sock.close()

    def abort(self) -> None:
        """Make the receiving thread see the end of the connection."""
        self._is_gone = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _is_open(self) -> bool:
        return not self._is_gone and self._protocol.state is State.OPEN

    def _decoded(self, message: bytes) -> str | None:
        try:
            return message.decode()
        except UnicodeDecodeError:
            with contextlib.suppress(SocketClosedError), self._lock:
                self._protocol.fail(CloseCode.INVALID_DATA, "A text message is not UTF-8.")
                self._flush()
            return None

    def _receive(self) -> list[Frame]:
        """Wait at most a second for data; return the frames."""
        data, self._early = self._early, b""
        try:
            if not data and not self._await(select.POLLIN, _TICK_S):
                self._ask()
                return []
            data = data or self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            # A closed socket has a negative descriptor.
            data = b""
        self._heard, self._is_asked = time.monotonic(), False
        with self._lock:
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
                self._is_gone = True
            frames = [e for e in self._protocol.events_received() if isinstance(e, Frame)]
            with contextlib.suppress(SocketClosedError):
                self._flush()
        return frames

    def _ask(self) -> None:
        """Ping an inactive client; close the connection if it does not respond."""
        if time.monotonic() - self._heard < _PING_S:
            return
        if self._is_asked:
            self.abort()
            return
        self._heard, self._is_asked = time.monotonic(), True
        with contextlib.suppress(SocketClosedError), self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_ping(b"")
                self._flush()

    def _flush(self) -> None:
        """Send the protocol's pending data, with the lock held. Raises `SocketClosedError`."""
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._send_all(data)
                else:
                    self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.abort()
            raise SocketClosedError from error

    def _send_all(self, data: bytes) -> None:
        rest = memoryview(data)
        deadline = time.monotonic() + _SEND_S
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                if not self._await(select.POLLOUT, deadline - time.monotonic()):
                    raise TimeoutError from None

    def _await(self, event: int, timeout_s: float) -> bool:
        """Wait until the socket is ready to receive or send; return whether it is."""
        poll = select.poll()
        poll.register(self._sock, event)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))


def _shortened(reason: str) -> str:
    return reason.encode()[:_MAX_REASON].decode(errors="ignore")
