"""A multipart form, parsed while it arrives: its files are written to disk once, where they stay.

A server that keeps the body first, and parses it then, writes every recording twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from werkzeug.datastructures import FileStorage, Headers, MultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import (
    Data,
    Epilogue,
    Field,
    File,
    MultipartDecoder,
    NeedData,
    State,
)

from parakeet_api.errors import DISK_FULL
from parakeet_api.http.uploads import create_upload, hold_upload

MULTIPART = "multipart/form-data"
_MOST_PARTS = 100
_MOST_FILES = 4
"""Endpoints take one; each is an open file."""
_MOST_TEXT = 500_000
"""Bytes of a text field, and of all: werkzeug's own limit of one."""
_HEAD_BYTES = 4 * 1024
"""So much is looked at for a file's head before the rest: what comes behind it goes to the file."""
_CHARSETS = frozenset({"ascii", "us-ascii", "utf-8", "iso-8859-1"})


class TextTooLongError(RequestEntityTooLarge):
    """A text field is too long."""

    def __init__(self, field: str | None) -> None:
        super().__init__()
        self.field = field


ParsedForm = tuple[MultiDict[str, str], MultiDict[str, FileStorage]]


class UploadForm:
    """A form while it comes in, and the owner of its files until it is closed.

    Errors wait for `result`, but for a full disk: whoever receives the bytes is not who answers the
    request. waitress takes it for the buffer that a body goes to.
    """

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self._folder = folder
        self._decoder = MultipartDecoder(boundary, _MOST_TEXT, max_parts=_MOST_PARTS)
        self._boundary = b"--" + boundary
        self._size = 0
        self._error: Exception | None = None
        self._uploads: list[IO[bytes]] = []
        self._kept: Path | None = None
        self._fields: MultiDict[str, str] = MultiDict()
        self._files: MultiDict[str, FileStorage] = MultiDict()
        self._text_bytes = 0
        self._write: Callable[[bytes | memoryview], object] = bytes
        """Where the current part's data goes, and what is done at its end."""
        self._finish: Callable[[], None] = lambda: None
        self._is_file = False
        """Whether the current part is one."""
        self._held = b""
        """What came and was not given to the decoder."""

    @classmethod
    def for_body(cls, folder: Path, content_type: str) -> UploadForm | None:
        """Prepare for a body of this `Content-Type`; `None` if that is no multipart form."""
        mimetype, options = parse_options_header(content_type)
        boundary = options.get("boundary", "")
        if mimetype != MULTIPART or not boundary or not boundary.isascii():
            return None
        return cls(folder, boundary.encode())

    def append(self, data: bytes) -> None:
        """Take the next bytes of the body, some 300 KB at most.

        Raises `OSError` if the disk is full; all other errors wait for the result.
        """
        self._size += len(data)
        self._receive(data)

    def __len__(self) -> int:
        """Count the bytes taken so far."""
        return self._size

    def result(self) -> ParsedForm:
        """End the form; give its text fields and files.

        Raises `ValueError` for a body that is malformed or cut short, `RequestEntityTooLarge` for
        one with too many parts or too much text, `OSError` where a file could not be written.
        """
        self._receive(None)
        if self._error is not None:
            raise self._error
        return self._fields, self._files

    def take_over(self, path: Path) -> IO[bytes]:
        """Leave a file to the caller, who deletes it and closes what this gives."""
        self._kept = path
        return hold_upload(path)

    def close(self) -> None:
        """Delete the files that nobody took over; what still comes is dropped."""
        self._error = self._error or ValueError("closed")
        for upload in self._uploads:
            # What a full disk did not take is in its buffer still.
            with contextlib.suppress(OSError):
                upload.close()
            if Path(upload.name) != self._kept:
                Path(upload.name).unlink(missing_ok=True)
        self._uploads.clear()

    def getfile(self) -> UploadForm:
        """Give what WSGI calls the body: whoever knows this class asks it for `result`."""
        return self

    def read(self, _size: int = -1) -> bytes:
        """Give nothing: the bytes have become fields and files."""
        return b""

    def _receive(self, data: bytes | None) -> None:
        if self._error is not None:
            return
        try:
            if data is None:
                self._decode(None)
                return
            if not self._is_in_file():
                self._decode(data[:_HEAD_BYTES])
                data = data[_HEAD_BYTES:]
            if data:
                self._decode(self._store(data))
        except (ValueError, RequestEntityTooLarge, OSError) as error:
            self._error = error
            # Told at once: what is still to come has no room either.
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise

    def _is_in_file(self) -> bool:
        return self._is_file and self._decoder.state is State.DATA

    def _store(self, data: bytes) -> bytes:
        """Write what is a file's for certain; give what may hold a boundary, with what follows it.

        The decoder copies all it is given five times, and looks for line breaks in it: 1.2 ms for
        a clip of 10 s.
        """
        if not self._is_in_file():
            return data
        size = len(self._boundary)
        # What the decoder keeps could be the beginning of a boundary.
        kept = bytes(self._decoder.buffer) + self._held
        if self._boundary in kept + data[:size]:
            return data
        found = data.find(self._boundary)
        certain = (found if found >= 0 else len(data) - size) - len(b"\r\n")
        if certain <= 0:
            return data
        self._decoder.buffer.clear()
        self._held = b""
        self._write(kept)
        self._write(memoryview(data)[:certain])
        return data[certain:]

    def _decode(self, data: bytes | None) -> None:
        whole = self._held + (data or b"")
        end = len(whole) if data is None else self._end_of_certain(whole)
        self._held = whole[end:]
        self._decoder.receive_data(whole[:end])
        if data is None:
            self._decoder.receive_data(None)
        while not isinstance(event := self._decoder.next_event(), (Epilogue, NeedData)):
            if isinstance(event, Field):
                self._begin_text(event)
            elif isinstance(event, File):
                self._begin_file(event)
            elif isinstance(event, Data):
                self._write(event.data)
                if not event.more_data:
                    self._finish()

    def _end_of_certain(self, data: bytes) -> int:
        """Find where to part data whose last bytes may be a boundary without its end.

        The decoder would take the first half of the line break before it for the file's.
        """
        longest = len(self._boundary) + len(b"--\r")
        kept = bytes(self._decoder.buffer[-longest:])
        recent = (kept + data[-longest:])[-longest:]
        found = recent.find(self._boundary)
        if found < 0:
            return len(data)
        return max(0, len(data) - (len(recent) - found) - len(b"\r\n"))

    def _begin_text(self, part: Field) -> None:
        self._is_file = False
        text = bytearray()

        def write(data: bytes | memoryview) -> None:
            self._text_bytes += len(data)
            if self._text_bytes > _MOST_TEXT:
                raise TextTooLongError(part.name)
            text.extend(data)

        self._write = write
        self._finish = lambda: self._fields.add(
            part.name, text.decode(_charset(part.headers), "replace")
        )

    def _begin_file(self, part: File) -> None:
        if len(self._uploads) == _MOST_FILES:
            raise ValueError(f"more than {_MOST_FILES} files")
        upload = create_upload(self._folder)
        self._uploads.append(upload)
        self._is_file = True

        def finish() -> None:
            # Now: a full disk is this request's error, and others open the file by its name.
            upload.flush()
            self._files.add(
                part.name, FileStorage(upload, part.filename, part.name, headers=part.headers)
            )

        self._write, self._finish = upload.write, finish


def _charset(headers: Headers) -> str:
    charset = parse_options_header(headers.get("Content-Type"))[1].get("charset", "").lower()
    return charset if charset in _CHARSETS else "utf-8"
