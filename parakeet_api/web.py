"""What all blueprints share: uploads, the API key, one error handler, one log line a request."""

from __future__ import annotations

import hmac
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from flask import Request, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from parakeet_api.admission import Admission
from parakeet_api.batching import Batcher, RequestCancelled
from parakeet_api.devices import Gpu, InferencePlan
from parakeet_api.errors import (
    ApiError,
    AuthenticationError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ServerError,
    UploadTooLargeError,
)
from parakeet_api.languages import languages_of
from parakeet_api.model_manager import ModelManager
from parakeet_api.model_store import ModelStore
from parakeet_api.pipeline import Pipeline
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that fields and boundaries add to a file of exactly `MAX_UPLOAD_MB`."""
MOST_PARTS = 100
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that hung up; it is seen in the log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes call; built once by `app.py`."""

    settings: Settings
    store: ModelStore
    manager: ModelManager
    batcher: Batcher
    pipeline: Pipeline
    admission: Admission
    plan: InferencePlan
    gpu: Gpu | None


def services() -> Services:
    """Give the running application's services."""
    wired: Services = current_app.extensions["services"]
    return wired


def model_name() -> str:
    """Name the model, or while none is chosen the one that is being fetched."""
    known = services().store.status.checkpoint
    return known.name if known else services().settings.model_id.rpartition("/")[2]


def model_languages() -> frozenset[str]:
    """Give the languages that the model speaks, ISO 639-1 codes."""
    return languages_of(model_name(), services().settings.model_languages)


def client_gone() -> Callable[[], bool]:
    """Give waitress' look at the client's connection, where there is one."""
    gone: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return gone


class UploadRequest(Request):
    """A request whose files go straight to `TEMP_UPLOADS_DIR` and are gone when it ends."""

    def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
        """Open a file for a part: named by us, never by the client."""
        upload = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed with the request
            dir=services().settings.temp_uploads_dir, prefix="upload-", delete=False
        )
        # Kept here as well: a body that turns out malformed never reaches `files`.
        self._uploads().append(upload)
        return upload

    def make_form_data_parser(self) -> FormDataParser:
        """Give a parser that raises `ValueError` for a malformed body, not one that hides it."""
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def take_over(self, path: Path) -> None:
        """Leave the deletion of an upload to the caller."""
        self.__dict__["_kept"] = path

    def close(self) -> None:
        """Delete the uploads that nobody took over."""
        for upload in self._uploads():
            upload.close()
            if Path(upload.name) != self.__dict__.get("_kept"):
                Path(upload.name).unlink(missing_ok=True)
        super().close()

    def _uploads(self) -> list[IO[bytes]]:
        opened: list[IO[bytes]] = self.__dict__.setdefault("_opened", [])
        return opened


def received_file(field_name: str = "file") -> Path:
    """Give the uploaded file, whole and on disk until the request ends.

    Raises `InvalidRequestError` where there is none.
    """
    if request.mimetype != "multipart/form-data":
        # A form of another type would be read into memory, however long.
        raise _no_file(field_name, "send it as multipart/form-data")
    try:
        received = request.files.get(field_name)
    except ValueError as error:
        raise InvalidRequestError(
            f"The multipart body is malformed or cut short ({error}).", param=field_name
        ) from error
    if received is None:
        raise _no_file(
            field_name,
            "it is a text field here: send it as a file"
            if field_name in request.form
            else "the form has no such field",
        )
    received.stream.flush()
    path = Path(received.stream.name)
    if path.stat().st_size == 0:
        raise InvalidRequestError("The file is empty.", param=field_name)
    return path


def take_over(path: Path) -> None:
    """Keep an upload beyond its request; the caller deletes it."""
    cast(UploadRequest, request).take_over(path)


def _no_file(field_name: str, hint: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{field_name}'; {hint}"
        f" (curl: -F {field_name}=@recording.mp3).",
        param=field_name,
    )


def require_api_key() -> None:
    """Refuse a request without a valid key, where keys are set."""
    keys = services().settings.api_keys
    if not keys:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise AuthenticationError(
            "You didn't provide an API key. You need to provide your API key in an Authorization"
            " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    sent = given.strip().encode()
    # All are compared, and in constant time: the answer's delay tells nothing of a key.
    matches = [hmac.compare_digest(sent, key.encode()) for key in keys]
    if not any(matches):
        raise AuthenticationError("Incorrect API key provided.")


def answer_error(error: Exception) -> Response:
    """Answer every error, of ours and of HTTP, in OpenAI's shape."""
    if isinstance(error, RequestCancelled):
        return Response(status=CLIENT_CLOSED_REQUEST)
    failure = as_api_error(error, request_id=record().id)
    response = Response(
        current_app.json.dumps(failure.body()), failure.status, mimetype="application/json"
    )
    if failure.retry_after_s is not None:
        response.headers["Retry-After"] = str(failure.retry_after_s)
    if isinstance(error, HTTPException) and error.get_response().headers.get("Allow"):
        response.headers["Allow"] = error.get_response().headers["Allow"]
    return response


def as_api_error(error: Exception, *, request_id: str) -> ApiError:
    """Give the error that a client is told; one that nobody foresaw is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestEntityTooLarge):
        return _too_large()
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:  # noqa: PLR2004
        known = {404: NotFoundError, 405: MethodNotAllowedError}.get(error.code)
        if known is not None:
            return known(f"{request.method} {request.path}: {error.name.lower()}.")
        failure = InvalidRequestError(error.description or error.name)
        failure.status = error.code
        return failure
    logger.error("request %s failed", request_id, exc_info=error)
    return ServerError("The server had an error while processing your request.")


def _too_large() -> ApiError:
    length, limit = request.content_length, services().settings.max_upload_bytes
    if length is not None and length <= limit:
        # werkzeug's other two limits, on the number of parts and on text fields.
        return UploadTooLargeError("The form has too many or too long text fields.", param=None)
    return UploadTooLargeError.above(limit, sent=length)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What the log tells of a request once it is over."""

    method: str
    path: str
    level: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started: float = field(default_factory=time.monotonic)
    audio_s: float | None = None
    """Seconds of audio that were transcribed."""
    failure: str | None = None
    """Why a stream ended early, after its status was sent."""

    def log(self, status: int) -> None:
        """Write the line."""
        elapsed_s = time.monotonic() - self.started
        speed = ""
        if self.audio_s:
            rtfx = self.audio_s / max(elapsed_s, 1e-3)
            speed = f", {self.audio_s:.1f} s of audio, RTFx {rtfx:.0f}"
        logger.log(
            self.level,
            "%s %s -> %d%s in %.2f s%s [%s]",
            self.method,
            self.path,
            status,
            f" ({self.failure})" if self.failure else "",
            elapsed_s,
            speed,
            self.id,
        )


def record() -> RequestRecord:
    """Give the current request's record."""
    kept: RequestRecord = g.record
    return kept


def begin_request() -> None:
    """Start the request's record."""
    level = logging.DEBUG if request.blueprint in (None, "pages") else logging.INFO
    g.record = RequestRecord(method=request.method, path=request.path, level=level)


def finish_request(response: Response) -> Response:
    """Add the headers that every answer has; log the request when the last byte is sent."""
    checkpoint = services().store.status.checkpoint
    if checkpoint is not None:
        response.headers["X-Parakeet-Model"] = checkpoint.name
    response.headers["X-Request-Id"] = record().id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if request.endpoint == "static":
        # Names carry no version: the browser asks, and is told 304.
        response.headers["Cache-Control"] = "no-cache"
    kept = record()
    response.call_on_close(lambda: kept.log(response.status_code))
    return response
