"""Every error as an answer in OpenAI's shape."""

from __future__ import annotations

import logging

from flask import Response, current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from parakeet_api.errors import (
    DISK_FULL,
    ApiError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ServerError,
    ServiceUnavailableError,
    UploadTooLargeError,
)
from parakeet_api.http.request_log import CLIENT_CLOSED_REQUEST, record
from parakeet_api.http.services import services
from parakeet_api.model.batching import RequestCancelled

logger = logging.getLogger(__name__)


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
    """Return the error that the client receives; an unexpected one is logged with its traceback."""
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
