"""Receive and parse the form of the current request while it arrives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flask import g, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge

from parakeet_api.allowed_hosts import recording_hosts
from parakeet_api.errors import InvalidRequestError, UploadTooLargeError
from parakeet_api.formats.form_fields import read_field
from parakeet_api.formats.request_params import URL_FIELD
from parakeet_api.http.recording_url import fetch_recording
from parakeet_api.http.request_log import record
from parakeet_api.http.services import client_gone, services
from parakeet_api.http.upload_form import (
    MAX_REFERENCE_BYTES,
    MULTIPART,
    REFERENCES,
    ParsedForm,
    TextTooLongError,
    UploadForm,
)

MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that fields and boundaries add to a file of exactly `MAX_UPLOAD_MB`."""
_BLOCK_BYTES = 512 * 1024
"""A clip of 16 s as wav is parsed in one step."""
_TEXT_NOT_FILE = "it is a text field here: send it as a file, with a file name"


@dataclass(frozen=True, slots=True)
class ReceivedForm:
    """A form with an upload."""

    upload: Path
    """Complete, and on disk until the request ends unless `take_over` is called."""
    fields: MultiDict[str, str]


def received_form(file_field: str = "file") -> ReceivedForm:
    """Receive the form of the current request.

    A recording that the form gives by its `url` is fetched. Call it after all checks that do not
    need the body. Raises `InvalidRequestError` if the body is malformed or has no such file,
    `RecordingUrlError`, `UploadTooLargeError` and werkzeug's `RequestEntityTooLarge`, `OSError` if
    the file cannot be written, and `RequestCancelled` if the client disconnects.
    """
    if request.mimetype != MULTIPART:
        # A form of another type would be read into memory, however long.
        raise _no_file(file_field, "send it as multipart/form-data")
    try:
        form = _parse()
    except ValueError as error:
        raise InvalidRequestError(
            f"The multipart body is malformed or cut short ({error}).", param=file_field
        ) from error
    except TextTooLongError as error:
        if (error.field or "").startswith(REFERENCES):
            raise UploadTooLargeError(
                f"{REFERENCES}[]: the references have more than {MAX_REFERENCE_BYTES} bytes"
                " together. Send them as mp3, opus or flac.",
                param=f"{REFERENCES}[]",
            ) from error
        if error.field != file_field:
            raise
        raise _no_file(file_field, _TEXT_NOT_FILE) from error
    upload = form.files.get(file_field)
    url = read_field(form.fields, URL_FIELD)
    if upload is not None and url:
        raise InvalidRequestError(
            f"{URL_FIELD} and {file_field}: send one of them.", param=URL_FIELD
        )
    if url:
        upload = _fetch(url, file_field)
    if upload is None:
        is_text = file_field in form.fields
        raise _no_file(file_field, _TEXT_NOT_FILE if is_text else "the form has no such field")
    if upload.stat().st_size == 0:
        raise InvalidRequestError("The file is empty.", param=file_field)
    return ReceivedForm(upload, form.fields)


def _fetch(url: str, file_field: str) -> Path:
    """Fetch the recording that a form names instead of containing it."""
    form: UploadForm = g.upload_form
    upload = form.new_file(file_field)
    fetch_recording(
        url,
        upload,
        hosts=recording_hosts(services().settings.allow_urls),
        limit=request.max_content_length,
        cancelled=client_gone(),
    )
    upload.flush()
    return Path(upload.name)


def received_fields() -> MultiDict[str, str]:
    """Receive a form of any type and return its text fields; raise `ValueError` if malformed."""
    return _parse().fields if request.mimetype == MULTIPART else request.form


def take_over(upload: Path) -> IO[bytes]:
    """Keep an upload beyond its request; the caller must delete it and close the result."""
    form: UploadForm = g.upload_form
    return form.take_over(upload)


def discard_form(_: BaseException | None) -> None:
    """Delete uploads that were not taken over, at the end of a request before its response."""
    form: UploadForm | None = g.pop("upload_form", None)
    if form is not None:
        form.close()


def _parse() -> ParsedForm:
    form = UploadForm.for_body(
        services().settings.temp_uploads_dir, request.headers.get("Content-Type", "")
    )
    if form is None:
        raise ValueError("it names no boundary")
    g.upload_form = form
    for block in _blocks():
        form.append(block)
    record().body_received()
    return form.result()


def _blocks() -> Iterator[bytes]:
    """Read the body. Raises `RequestEntityTooLarge` above the limit."""
    limit = request.max_content_length
    # Not `request.stream`, which copies each byte two more times.
    stream: IO[bytes] = request.environ["wsgi.input"]
    size = request.content_length or 0
    if limit is not None and size > limit:
        raise RequestEntityTooLarge
    size = 0
    while block := stream.read(_BLOCK_BYTES):
        size += len(block)
        if limit is not None and size > limit:
            raise RequestEntityTooLarge
        yield block


def _no_file(field: str, hint: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{field}'; {hint} (curl: -F {field}=@recording.mp3).",
        param=field,
    )
