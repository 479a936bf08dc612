"""The form of the current request."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

from flask import Request, request
from werkzeug.datastructures import MultiDict
from werkzeug.formparser import FormDataParser

from parakeet_api.errors import (
    InvalidRequestError,
)
from parakeet_api.http.services import services
from parakeet_api.http.upload_form import MULTIPART, ParsedForm, TextTooLongError, UploadForm

MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that fields and boundaries add to a file of exactly `MAX_UPLOAD_MB`."""
_BLOCK_BYTES = 64 * 1024
_TEXT_NOT_FILE = "it is a text field here: send it as a file, with a file name"


class UploadRequest(Request):
    """A request whose files go straight to `TEMP_UPLOADS_DIR` and are gone when it ends."""

    _received: UploadForm | None = None

    def make_form_data_parser(self) -> FormDataParser:
        """Give a parser that raises `ValueError` for a malformed body, not one that hides it."""
        return _UploadFormParser(self)

    def receive_form(self, stream: IO[bytes]) -> ParsedForm:
        """Parse a multipart body, unless the server did that while it came in.

        Raises `ValueError` for a malformed body.
        """
        self._received = self._arrived()
        if self._received is None:
            self._received = UploadForm.for_body(
                services().settings.temp_uploads_dir, self.headers.get("Content-Type", "")
            )
            if self._received is None:
                raise ValueError("it names no boundary")
            while data := stream.read(_BLOCK_BYTES):
                self._received.append(data)
        return self._received.result()

    def take_over(self, path: Path) -> IO[bytes]:
        """Leave an upload to the caller."""
        assert self._received is not None
        return self._received.take_over(path)

    def close(self) -> None:
        """Delete the uploads that nobody took over, before the answer is sent.

        Also those that nobody asked for: the server's own clean-up comes after the answer.
        """
        form = self._arrived() if self._received is None else self._received
        if form is not None:
            form.close()
        super().close()

    def _arrived(self) -> UploadForm | None:
        """Give the form that the server parsed while it came in, if it did."""
        body = self.environ["wsgi.input"]
        return body if isinstance(body, UploadForm) else None


class _UploadFormParser(FormDataParser):
    """Gives the request's own form."""

    def __init__(self, received: UploadRequest) -> None:
        super().__init__(silent=False)
        self._request = received

    def parse(
        self,
        stream: IO[bytes],
        mimetype: str,
        content_length: int | None,
        options: dict[str, str] | None = None,
    ) -> tuple[IO[bytes], MultiDict[str, Any], MultiDict[str, Any]]:
        """Give the rest of the body, its text fields and its files."""
        if mimetype != MULTIPART:
            return super().parse(stream, mimetype, content_length, options)
        return (stream, *self._request.receive_form(stream))


def received_file(field_name: str = "file") -> Path:
    """Give the uploaded file, whole and on disk until the request ends.

    Raises `InvalidRequestError` where there is none.
    """
    if request.mimetype != MULTIPART:
        # A form of another type would be read into memory, however long.
        raise _no_file(field_name, "send it as multipart/form-data")
    try:
        received = request.files.get(field_name)
    except ValueError as error:
        raise InvalidRequestError(
            f"The multipart body is malformed or cut short ({error}).", param=field_name
        ) from error
    except TextTooLongError as error:
        if error.field != field_name:
            raise
        raise _no_file(field_name, _TEXT_NOT_FILE) from error
    if received is None:
        is_text = field_name in request.form
        raise _no_file(field_name, _TEXT_NOT_FILE if is_text else "the form has no such field")
    path = Path(received.stream.name)
    if path.stat().st_size == 0:
        raise InvalidRequestError("The file is empty.", param=field_name)
    return path


def take_over(path: Path) -> IO[bytes]:
    """Keep an upload beyond its request; the caller deletes it and closes what this gives."""
    return cast(UploadRequest, request).take_over(path)


def _no_file(field_name: str, hint: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{field_name}'; {hint}"
        f" (curl: -F {field_name}=@recording.mp3).",
        param=field_name,
    )
