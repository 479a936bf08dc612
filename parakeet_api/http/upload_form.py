"""Parse a multipart form while it arrives, and write its files directly to their final path.

Storing the body before parsing it would write every recording twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from werkzeug.datastructures import Headers, MultiDict
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

from parakeet_api.http.uploads import create_upload, hold_upload

MULTIPART = "multipart/form-data"
_MAX_PARTS = 600
"""SDKs send each phrase of a list as a part: 500 keywords, and the other fields."""
_MAX_FILES = 4
"""Endpoints accept one; each is an open file."""
_MAX_TEXT_BYTES = 500_000
"""Bytes of a text field, and of all but `REFERENCES`: werkzeug's own limit of one."""
REFERENCES = "known_speaker_references"
MAX_REFERENCE_BYTES = 12_000_000
"""Bytes of all references of speakers together: four of ten seconds, stereo at 48 kHz without
compression, in base64."""
_PIECE_BYTES = 256 * 1024
"""So much is parsed at once: the decoder takes more than `_MAX_TEXT_BYTES` for a text field that is
too long."""
_HEAD_BYTES = 4 * 1024
"""The first bytes of a block, in which the decoder looks for the head of a part; the data of a file
after its head bypasses the decoder."""
_CHARSETS = frozenset({"ascii", "us-ascii", "utf-8", "iso-8859-1"})


class TextTooLongError(RequestEntityTooLarge):
    """A text field is too long."""

    def __init__(self, field: str | None) -> None:
        super().__init__()
        self.field = field


@dataclass(frozen=True, slots=True)
class ParsedForm:
    """A complete form."""

    fields: MultiDict[str, str]
    files: Mapping[str, Path]
    """The file of each field; of a field with several, the first."""


class UploadForm:
    """A form that is being received; it owns the files until it is closed."""

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self._folder = folder
        self._decoder = MultipartDecoder(boundary, _MAX_TEXT_BYTES, max_parts=_MAX_PARTS)
        self._boundary = b"--" + boundary
        self._uploads: list[IO[bytes]] = []
        self._taken_over: Path | None = None
        self._fields: MultiDict[str, str] = MultiDict()
        self._files: dict[str, Path] = {}
        self._text_bytes = self._reference_bytes = 0
        self._write: Callable[[bytes | memoryview], object] = bytes
        """Consumer of the current part's data, and action at its end."""
        self._finish: Callable[[], None] = lambda: None
        self._is_file = False
        """Whether the current part is a file."""
        self._held = b""
        """Bytes received but not yet passed to the decoder."""

    @classmethod
    def for_body(cls, folder: Path, content_type: str) -> UploadForm | None:
        """Prepare for a body of this `Content-Type`; `None` if that is no multipart form."""
        mimetype, options = parse_options_header(content_type)
        boundary = options.get("boundary", "")
        if mimetype != MULTIPART or not boundary or not boundary.isascii():
            return None
        return cls(folder, boundary.encode())

    def append(self, data: bytes) -> None:
        """Parse the next bytes of the body.

        Raises `ValueError` for a malformed body, `RequestEntityTooLarge` for one with too many
        parts or too much text, and `OSError` if a file cannot be written.
        """
        for begin in range(0, len(data), _PIECE_BYTES):
            self._append(data[begin : begin + _PIECE_BYTES])

    def result(self) -> ParsedForm:
        """Finish the form; return its text fields and files.

        Raises what `append` raises, and `ValueError` for a truncated body.
        """
        self._decode(None)
        return ParsedForm(self._fields, self._files)

    def new_file(self, name: str) -> IO[bytes]:
        """Add a file that is not in the body; the caller writes and flushes it."""
        upload = create_upload(self._folder)
        self._uploads.append(upload)
        self._files[name] = Path(upload.name)
        return upload

    def take_over(self, path: Path) -> IO[bytes]:
        """Transfer a file to the caller, who must delete it and close the result."""
        self._taken_over = path
        return hold_upload(path)

    def close(self) -> None:
        """Delete the files that were not taken over."""
        for upload in self._uploads:
            # On a full disk the buffer may still hold data, and closing fails.
            with contextlib.suppress(OSError):
                upload.close()
            if Path(upload.name) != self._taken_over:
                Path(upload.name).unlink(missing_ok=True)
        self._uploads.clear()

    def _append(self, data: bytes) -> None:
        if not self._is_in_file():
            self._decode(data[:_HEAD_BYTES])
            data = data[_HEAD_BYTES:]
        if data:
            self._decode(self._store(data))

    def _is_in_file(self) -> bool:
        return self._is_file and self._decoder.state is State.DATA

    def _store(self, data: bytes) -> bytes:
        """Write data that certainly belongs to the file; return the rest, with a possible boundary.

        The decoder copies its input five times, and searches it for line breaks: 1.2 ms for a clip
        of 10 s.
        """
        if not self._is_in_file():
            return data
        size = len(self._boundary)
        # The decoder's buffer could be the start of a boundary.
        buffered = bytes(self._decoder.buffer) + self._held
        if self._boundary in buffered + data[:size]:
            return data
        found = data.find(self._boundary)
        certain = (found if found >= 0 else len(data) - size) - len(b"\r\n")
        if certain <= 0:
            return data
        self._decoder.buffer.clear()
        self._held = b""
        self._write(buffered)
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
        """Find where to split data whose last bytes may be a boundary without its end.

        The decoder would count the first half of the line break before it as part of the file.
        """
        size = len(self._boundary) + len(b"--\r")
        buffered = bytes(self._decoder.buffer[-size:])
        recent = (buffered + data[-size:])[-size:]
        found = recent.find(self._boundary)
        if found < 0:
            return len(data)
        return max(0, len(data) - (len(recent) - found) - len(b"\r\n"))

    def _begin_text(self, part: Field) -> None:
        self._is_file = False
        text = bytearray()
        # A part's name can be missing.
        is_reference = (part.name or "").startswith(REFERENCES)

        def write(data: bytes | memoryview) -> None:
            if is_reference:
                self._reference_bytes += len(data)
            else:
                self._text_bytes += len(data)
            if self._text_bytes > _MAX_TEXT_BYTES or self._reference_bytes > MAX_REFERENCE_BYTES:
                raise TextTooLongError(part.name)
            text.extend(data)

        self._write = write
        self._finish = lambda: self._fields.add(
            part.name, text.decode(_charset(part.headers), "replace")
        )

    def _begin_file(self, part: File) -> None:
        if len(self._uploads) == _MAX_FILES:
            raise ValueError(f"more than {_MAX_FILES} files")
        upload = create_upload(self._folder)
        self._uploads.append(upload)
        self._is_file = True

        def finish() -> None:
            # Decoders open the file by its name.
            upload.flush()
            self._files.setdefault(part.name, Path(upload.name))

        self._write, self._finish = upload.write, finish


def _charset(headers: Headers) -> str:
    charset = parse_options_header(headers.get("Content-Type"))[1].get("charset", "").lower()
    return charset if charset in _CHARSETS else "utf-8"
