"""Pass a request's body from the thread that receives it to the thread that reads it."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from parakeet_api.model.batching import RequestCancelled

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_HELD = 512 * 1024
"""Buffered bytes at which the receiver pauses: a clip of 16 s as wav. While a disk hangs, 1,000
uploads take 0.6 GB."""


class RequestBody(io.RawIOBase):
    """A bounded pipe between two threads; its reading end is `wsgi.input`.

    The receiver calls `append` and `end` and never waits: it stops receiving while `is_full`. The
    reader waits in `read`. After `close`, data that still arrives is dropped.
    """

    def __init__(
        self,
        *,
        on_first_read: Callable[[], object] = lambda: None,
        on_room: Callable[[], object] = lambda: None,
    ) -> None:
        """Call `on_first_read` before the first read, and `on_room` when no longer full.

        Both are called in the reader's thread.
        """
        super().__init__()
        self._on_first_read = on_first_read
        self._on_room = on_room
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._received = 0
        self._wanted = 0
        """Bytes that a reader waits for."""
        self._was_read = False
        self._ended = False
        self._error: Exception | None = None

    def append(self, data: bytes) -> None:
        """Append bytes received from the client."""
        with self._changed:
            self._received += len(data)
            if self.closed or self._ended or not data:
                return
            self._pieces.append(data)
            self._held += len(data)
            if 0 < self._wanted <= self._held:
                self._changed.notify()

    def end(self, error: Exception | None = None) -> None:
        """Signal the end, or `error` if the body is incomplete; call it once."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify()

    def abort(self) -> None:
        """Signal that the client has disconnected, unless the body is complete."""
        self.end(RequestCancelled())

    @property
    def is_full(self) -> bool:
        """Return whether the receiver must pause."""
        return self._held >= MAX_HELD

    def __len__(self) -> int:
        """Count the bytes received so far, including dropped ones."""
        return self._received

    def __bool__(self) -> bool:
        """Return true, also while nothing has arrived."""
        return True

    def readable(self) -> bool:
        """Return true."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes: at most `size`, none at the end; all if it is negative.

        If none have arrived, wait for `size` of them. Raises `RequestCancelled` if the client has
        disconnected, and the error given to `end`.
        """
        # Not by `readinto`: pieces are given as they were received, without a copy.
        return self.readall() if size is None or size < 0 else self._next(size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer as far as `read` would; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self._next(len(view))
        view[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        if not self._was_read:
            self._was_read = True
            self._on_first_read()
        with self._changed:
            if not self._pieces:
                self._wanted = min(size, MAX_HELD)
                self._changed.wait_for(self._can_be_read)
                self._wanted = 0
            if self.closed:
                raise ValueError("the body is closed")
            if self._error is not None:
                raise self._error
            was_full = self.is_full
            data = self._take(size)
            has_room = was_full and not self.is_full
        if has_room:
            self._on_room()
        return data

    def close(self) -> None:
        """Drop unread data, and data that still arrives."""
        with self._changed:
            was_full = self.is_full
            self._pieces.clear()
            self._held = 0
            super().close()
            self._changed.notify()
        if was_full:
            self._on_room()

    def _can_be_read(self) -> bool:
        return self._held >= self._wanted or self._ended or self.closed

    def _take(self, size: int) -> bytes:
        data = self._pieces.popleft() if self._pieces else b""
        if len(data) > size:
            self._pieces.appendleft(data[size:])
            data = data[:size]
        self._held -= len(data)
        return data
