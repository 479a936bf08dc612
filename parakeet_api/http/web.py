"""What all blueprints share: uploads, the API key, one error handler, one log line a request."""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from flask import Request, Response, current_app, g, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from parakeet_api.audio.decoder import FfmpegDecoder, TrackChoice
from parakeet_api.errors import (
    DISK_FULL,
    ApiError,
    AuthenticationError,
    ForbiddenError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ServerError,
    ServiceUnavailableError,
    UnsupportedLanguageError,
    UploadTooLargeError,
)
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import Form, Task, read_field
from parakeet_api.http.admission import Admission
from parakeet_api.http.api_keys import is_accepted, sent_key
from parakeet_api.http.proxies import is_local
from parakeet_api.http.upload_form import MULTIPART, ParsedForm, TextTooLongError, UploadForm
from parakeet_api.jobs.service import Jobs
from parakeet_api.languages import english_name
from parakeet_api.metrics import Metrics
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.model.devices import Gpu, InferencePlan
from parakeet_api.served_models import ServedModel, ServedModels
from parakeet_api.settings import Settings
from parakeet_api.transcript import Transcript

logger = logging.getLogger(__name__)

MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that fields and boundaries add to a file of exactly `MAX_UPLOAD_MB`."""
_BLOCK_BYTES = 64 * 1024
_TEXT_NOT_FILE = "it is a text field here: send it as a file, with a file name"
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that hung up; it is seen in the log alone."""
CLIENT_GONE = "client gone"
"""The same for one that hung up in the middle of its answer."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LONGEST_PATH = 200
_NOT_COUNTED = frozenset({None, "pages", "docs"})
"""Blueprints of pages and probes; static files have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes call; built once by `app.py`."""

    settings: Settings
    models: ServedModels
    admission: Admission
    metrics: Metrics
    jobs: Jobs
    decoder: FfmpegDecoder
    plan: InferencePlan
    gpu: Gpu | None


def services() -> Services:
    """Give the running application's services."""
    wired: Services = current_app.extensions["services"]
    return wired


def chosen_model(form: Form) -> ServedModel:
    """Give the model that a request names in `model`. Raises `ModelNotFoundError`."""
    model = services().models.named(read_field(form, "model"))
    g.model = model
    return model


def client_gone() -> Callable[[], bool]:
    """Give waitress' look at the client's connection, where there is one."""
    gone: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return gone


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


def transcribe_upload(
    upload: Path,
    *,
    model: ServedModel,
    languages: frozenset[str],
    task: Task,
    raw_pcm: bool = False,
    track: TrackChoice = None,
    allow_partial: bool = False,
) -> Transcript:
    """Transcribe an upload when it is its turn, for as long as the client stays."""
    # Told now and not after the file was decoded, if there is no model yet.
    model.checkpoints.checkpoint()
    cancelled = client_gone()
    with services().admission.place(cancelled=cancelled):
        transcript = model.pipeline.transcribe(
            upload,
            languages=languages,
            raw_pcm=raw_pcm,
            track=track,
            allow_partial=allow_partial,
            cancelled=cancelled,
        )
    record().audio_s = transcript.duration
    check_translatable(transcript, task)
    return transcript


def answer(rendered: Rendered) -> Response:
    """Answer with a transcript."""
    return Response(rendered.body, content_type=rendered.media_type, headers=rendered.headers)


def check_translatable(transcript: Transcript, task: Task) -> None:
    """Raise `UnsupportedLanguageError` for a translation of anything but English."""
    if task == "translate" and transcript.language not in ("en", None):
        raise UnsupportedLanguageError(
            f"The recording is in {english_name(transcript.language)}, and this model does not"
            " translate. Transcribe it instead, or say language=en if it is English.",
            param="language",
        )


def require_api_key() -> None:
    """Refuse a request without a valid key, where keys are set."""
    if not services().settings.api_keys:
        return
    if accepted_key_hash() is not None:
        return
    if not _sent_key():
        raise AuthenticationError(
            "You didn't provide an API key. You need to provide your API key in an Authorization"
            " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    raise AuthenticationError("Incorrect API key provided.")


def refuse_if_full() -> None:
    """Refuse an upload for which there is no place."""
    if request.method == "POST":
        services().admission.refuse_if_full()


def require_operator() -> None:
    """Refuse who is no operator: without keys, all who are not on the server's own machine."""
    if services().settings.api_keys:
        require_api_key()
    elif not is_local(request.environ) or _is_foreign_page():
        raise ForbiddenError(
            "Without API_KEY this is for the server's own machine alone. Set API_KEY to do it from"
            " elsewhere."
        )


def _is_foreign_page() -> bool:
    """Tell whether a browser sends this for a page that is not ours."""
    origin = request.headers.get("Origin")
    return origin is not None and origin != request.host_url.rstrip("/")


def accepted_key_hash() -> str | None:
    """Hash the valid key of a request; `None` without one, and where no keys are set."""
    given = _sent_key()
    if not is_accepted(given, services().settings.api_keys):
        return None
    return hashlib.sha256(given.encode()).hexdigest()


def _sent_key() -> str:
    return sent_key(request.headers.get("Authorization", ""))


def answer_error(error: Exception) -> Response:
    """Answer every error, of ours and of HTTP, in OpenAI's shape."""
    if isinstance(error, RequestCancelled):
        return Response(status=CLIENT_CLOSED_REQUEST)
    failure = as_api_error(error, request_id=record().id)
    record().failure = failure.code or failure.type
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
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ServiceUnavailableError.disk_full()
    return ServerError("The server had an error while processing your request.")


def _too_large() -> ApiError:
    length, limit = request.content_length, services().settings.max_upload_bytes
    if length is not None and length <= limit:
        # werkzeug's other two limits, on the number of parts and on text fields.
        return UploadTooLargeError("The form has too many or too long text fields.", param=None)
    return UploadTooLargeError.above(limit, sent=length)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What the log and the metrics tell of a request once it is over."""

    id: str
    client: str
    """Its address."""
    method: str
    path: str
    endpoint: str | None
    """The route of an API request; pages and probes are not counted."""
    metrics: Metrics
    quiet: bool = False
    """Whether its log line is for debugging alone."""
    started: float = field(default_factory=time.monotonic)
    audio_s: float | None = None
    """Seconds of audio that were transcribed."""
    failure: str | None = None
    """The code of the error that was told, of a stream's also after its status was sent."""

    def finish(self, status: int) -> None:
        """Write the log line and count."""
        elapsed_s = time.monotonic() - self.started
        rtfx = self.audio_s / max(elapsed_s, 1e-3) if self.audio_s else None
        self._log(status, elapsed_s, rtfx)
        if self.endpoint is None:
            return
        self.metrics.requests.labels(self.endpoint, self._result(status)).inc()
        self.metrics.request_seconds.labels(self.endpoint).observe(elapsed_s)
        if self.failure:
            self.metrics.errors.labels(self.failure).inc()
        if rtfx:
            self.metrics.rtfx.observe(rtfx)

    def _result(self, status: int) -> str:
        if status == CLIENT_CLOSED_REQUEST or self.failure == CLIENT_GONE:
            return "cancelled"
        if status >= 500:  # noqa: PLR2004
            return "server_error"
        return "client_error" if self.failure else "ok"

    def _log(self, status: int, elapsed_s: float, rtfx: float | None) -> None:
        # Clients choose the path: no line of theirs in the log.
        path = self.path[:_LONGEST_PATH].encode("unicode_escape").decode("ascii")
        logger.log(
            logging.DEBUG if self.quiet or self.endpoint is None else logging.INFO,
            "%s %s from %s -> %d%s in %.2f s%s [%s]",
            self.method,
            path,
            self.client,
            status,
            f" ({self.failure})" if self.failure else "",
            elapsed_s,
            f", {self.audio_s:.1f} s of audio, RTFx {rtfx:.0f}" if rtfx else "",
            self.id,
            extra={
                "fields": {
                    "request_id": self.id,
                    "client": self.client,
                    "method": self.method,
                    "path": path,
                    "status": status,
                    "error": self.failure,
                    "seconds": round(elapsed_s, 3),
                    "audio_seconds": self.audio_s,
                    "rtfx": rtfx and round(rtfx, 1),
                }
            },
        )


def record() -> RequestRecord:
    """Give the current request's record."""
    kept: RequestRecord = g.record
    return kept


def begin_request() -> None:
    """Start the request's record, under the name that the client or its proxy gave it, if any."""
    given = request.headers.get("X-Request-Id", "")
    is_api = request.url_rule is not None and request.blueprint not in _NOT_COUNTED
    g.record = RequestRecord(
        id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12],
        client=request.remote_addr or "unknown",
        method=request.method,
        path=request.path,
        endpoint=str(request.url_rule) if is_api else None,
        metrics=services().metrics,
    )


def finish_request(response: Response) -> Response:
    """Add the headers that every answer has; log the request when the last byte is sent."""
    model: ServedModel = g.get("model") or services().models.first
    checkpoint = model.checkpoints.status.checkpoint
    if checkpoint is not None:
        response.headers["X-Parakeet-Model"] = checkpoint.name
        if checkpoint.note is not None:
            response.headers["X-Parakeet-Model-Note"] = checkpoint.note
    response.headers["X-Request-Id"] = record().id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if request.endpoint == "static":
        # Names carry no version: the browser asks, and is told 304.
        response.headers["Cache-Control"] = "no-cache"
    kept = record()
    response.call_on_close(lambda: kept.finish(response.status_code))
    return response
