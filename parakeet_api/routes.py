"""The HTTP surface: blueprints, uploads, the API key, one error handler. The only Flask code."""

from __future__ import annotations

import hmac
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flask import Blueprint, Flask, Request, Response, current_app, g, render_template, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from parakeet_api import __version__
from parakeet_api.batching import Admission, Batcher, RequestCancelled
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
from parakeet_api.rendering import render
from parakeet_api.request_params import parse_params
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that fields and boundaries add to a file of exactly `MAX_UPLOAD_MB`."""
_MOST_PARTS = 100
_EXAMPLE = "(curl: -F file=@recording.mp3)"
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that hung up; it is seen in the log alone."""

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


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


class UploadRequest(Request):
    """A request whose files go straight to `TEMP_UPLOADS_DIR` and are gone when it ends."""

    def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
        """Open a file for a part: named by us, never by the client."""
        folder = _services().settings.temp_uploads_dir
        upload = tempfile.NamedTemporaryFile(dir=folder, prefix="upload-")  # noqa: SIM115
        # Kept here as well: a body that turns out malformed never reaches `files`.
        self.__dict__.setdefault("_uploads", []).append(upload)
        return upload

    def make_form_data_parser(self) -> FormDataParser:
        """Give a parser that raises `ValueError` for a malformed body, not one that hides it."""
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def close(self) -> None:
        """Delete the uploads."""
        for upload in self.__dict__.pop("_uploads", []):
            upload.close()
        super().close()


api = Blueprint("api", __name__)
pages = Blueprint("pages", __name__)


def create_app(services: Services, *, root: Path) -> Flask:
    """Build the WSGI application; `root` holds `templates/` and `static/`."""
    app = Flask(
        "parakeet_api", template_folder=str(root / "templates"), static_folder=str(root / "static")
    )
    app.request_class = UploadRequest
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_upload_bytes + _MULTIPART_OVERHEAD
    app.config["MAX_FORM_PARTS"] = _MOST_PARTS
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.extensions["services"] = services
    app.before_request(_begin)
    app.after_request(_finish)
    app.register_blueprint(api)
    app.register_blueprint(pages)
    app.register_error_handler(Exception, answer_error)
    return app


@api.before_request
def require_api_key() -> None:
    """Refuse a request without a valid key, where keys are set."""
    keys = _services().settings.api_keys
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


@api.post("/v1/audio/transcriptions")
def transcribe() -> Response:
    """Transcribe one upload, as OpenAI's endpoint does."""
    services = _services()
    cancelled = _client_gone()
    with services.admission.place(cancelled=cancelled):
        upload = _upload()
        languages = languages_of(_model_name(services), services.settings.model_languages)
        params = parse_params(request.form, languages=languages)
        # Told now and not after the file was decoded, if there is no model yet.
        services.store.checkpoint()
        transcript = services.pipeline.transcribe(
            Path(upload.stream.name),
            language=params.language or "en",
            cancelled=cancelled,
        )
    g.audio_s = transcript.duration
    rendered = render(
        transcript,
        params.response_format,
        settings=services.settings,
        granularities=params.granularities,
    )
    return Response(rendered.body, content_type=rendered.media_type)


@pages.get("/health")
def health() -> dict[str, Any]:
    """Tell that the process is alive and how the model is; never waits for inference."""
    services = _services()
    settings, plan, info = services.settings, services.plan, services.manager.info
    return {
        "status": "ok",
        "version": __version__,
        "model": _model_status(services),
        "device": info.device if info else ("cuda" if services.gpu else "cpu"),
        "precision": info.precision if info else None,
        "queue": {"waiting_chunks": services.batcher.waiting()},
        "limits": {
            "max_upload_mb": settings.max_upload_mb,
            "max_audio_hours": settings.max_audio_hours,
            "longest_chunk_s": plan.longest_chunk_s,
            "batch_size": plan.batch_size,
        },
    }


@pages.get("/")
def page() -> Response:
    """Serve the upload page."""
    response = Response(render_template("index.html"), content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _PAGE_POLICY
    return response


def answer_error(error: Exception) -> Response:
    """Answer every error, of ours and of HTTP, in OpenAI's shape."""
    if isinstance(error, RequestCancelled):
        return Response(status=_CLIENT_CLOSED_REQUEST)
    failure = _as_api_error(error)
    response = Response(
        current_app.json.dumps(failure.body()), failure.status, mimetype="application/json"
    )
    if failure.retry_after_s is not None:
        response.headers["Retry-After"] = str(failure.retry_after_s)
    if isinstance(error, HTTPException) and error.get_response().headers.get("Allow"):
        response.headers["Allow"] = error.get_response().headers["Allow"]
    return response


def _as_api_error(error: Exception) -> ApiError:
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
    logger.error("request %s failed", g.get("request_id"), exc_info=error)
    return ServerError("The server had an error while processing your request.")


def _too_large() -> ApiError:
    length, limit = request.content_length, _services().settings.max_upload_bytes
    if length is not None and length <= limit:
        # werkzeug's other two limits, on the number of parts and on text fields.
        return UploadTooLargeError("The form has too many or too long text fields.", param=None)
    return UploadTooLargeError.above(limit, sent=length)


def _upload() -> FileStorage:
    """Give the uploaded file, on disk. Raises `InvalidRequestError` where there is none."""
    if request.mimetype != "multipart/form-data":
        # A form of another type would be read into memory, however long.
        raise _no_file(f"send it as multipart/form-data {_EXAMPLE}")
    try:
        upload = request.files.get("file")
    except ValueError as error:
        raise InvalidRequestError(
            f"The multipart body is malformed or cut short ({error}).", param="file"
        ) from error
    if upload is None:
        raise _no_file(
            f"it is a text field here: send it as a file {_EXAMPLE}"
            if "file" in request.form
            else f"the form has no such field {_EXAMPLE}"
        )
    upload.stream.flush()
    if Path(upload.stream.name).stat().st_size == 0:
        raise InvalidRequestError("The file is empty.", param="file")
    return upload


def _no_file(hint: str) -> InvalidRequestError:
    return InvalidRequestError(f"Missing required parameter: 'file'; {hint}.", param="file")


def _model_status(services: Services) -> dict[str, Any]:
    store, manager = services.store.status, services.manager
    known = store.checkpoint
    return {
        "name": _model_name(services),
        "demo": known.is_demo if known else False,
        "state": manager.state if known else store.state,
        "progress": store.progress,
        "error": manager.error if known else store.error,
    }


def _model_name(services: Services) -> str:
    """Name the model, or while none is chosen the one that is being fetched."""
    known = services.store.status.checkpoint
    return known.name if known else services.settings.model_id.rpartition("/")[2]


def _begin() -> None:
    g.started = time.monotonic()
    g.request_id = uuid.uuid4().hex[:12]


def _finish(response: Response) -> Response:
    checkpoint = _services().store.status.checkpoint
    if checkpoint is not None:
        response.headers["X-Parakeet-Model"] = checkpoint.name
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if request.endpoint == "static":
        # Names carry no version: the browser asks, and is told 304.
        response.headers["Cache-Control"] = "no-cache"
    _log_request(response)
    return response


def _log_request(response: Response) -> None:
    elapsed_s = time.monotonic() - g.started
    audio_s = g.get("audio_s")
    level = logging.INFO if request.blueprint == "api" else logging.DEBUG
    logger.log(
        level,
        "%s %s -> %d in %.2f s%s [%s]",
        request.method,
        request.path,
        response.status_code,
        elapsed_s,
        f", {audio_s:.1f} s of audio, RTFx {audio_s / max(elapsed_s, 1e-3):.0f}" if audio_s else "",
        g.request_id,
    )


def _client_gone() -> Callable[[], bool]:
    """Give waitress' look at the client's connection, where there is one."""
    gone: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return gone


def _services() -> Services:
    services: Services = current_app.extensions["services"]
    return services
