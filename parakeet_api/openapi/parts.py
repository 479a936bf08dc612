"""Shared parts of operations: responses, errors, headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from parakeet_api import errors
from parakeet_api.errors import ApiError
from parakeet_api.openapi.json_schema import Json
from parakeet_api.openapi.schemas import error_body, error_details

MEANINGS: Mapping[type[ApiError], str] = {
    errors.InvalidRequestError: "the request is wrong: `message` says how, `param` where",
    errors.UnsupportedLanguageError: "the model does not support that language",
    errors.RecordingUrlError: "the recording could not be fetched from its `url`",
    errors.DiarizationOffError: "the server tells no voices apart (`DIARIZATION=off`)",
    errors.AudioDecodeError: "the upload is not audio that can be used",
    errors.NoAudioTrackError: "a video without sound",
    errors.TruncatedAudioError: "the file is truncated; `allow_partial=true` accepts it",
    errors.AudioTooLongError: "the recording is longer than this server accepts",
    errors.AuthenticationError: "no key, or a wrong one",
    errors.RateLimitError: "more requests than `RATE_LIMIT` allows",
    errors.ForbiddenError: "only from the server's own machine, or with a key",
    errors.NotFoundError: "there is no such path",
    errors.ModelNotFoundError: "there is no such model",
    errors.MethodNotAllowedError: "the path exists, with other methods; `Allow` lists them",
    errors.JobNotFinishedError: "the job has no result yet",
    errors.JobCancelledError: "the job was cancelled and will have no result",
    errors.ModelInUseError: "the model is in use or being loaded, and stays loaded",
    errors.UploadTooLargeError: "the upload is larger than this server accepts",
    errors.ServiceUnavailableError: "the request can't be served now",
    errors.ModelNotReadyError: "the model is still being downloaded or loaded",
    errors.QueueFullError: "the queue is full",
    errors.StoppingError: "the server is about to stop",
    errors.ClusterUnavailableError: "the cluster has no replica of the model that could answer",
    errors.JobsUnavailableError: "jobs are not accepted: the server can't use their folder",
    errors.ModelLoadError: "the model can't be downloaded or loaded; `GET /health` says why",
    errors.DeviceLostError: "the server's GPU has failed; the server restarts",
    errors.ServerError: "an internal error; the server's log has the request's id",
}
"""What each error means."""

HEADERS: Mapping[str, Json] = {
    "X-Request-Id": {
        "description": "The request's id in the server's log.",
        "schema": {"type": "string"},
    },
    "X-Parakeet-Model": {
        "description": "The model of the response, once it is known.",
        "schema": {"type": "string"},
    },
    "X-Parakeet-Model-Note": {
        "description": "What that model is, in one sentence, where it is one that comes with the"
        " server for trying things out; else left out.",
        "schema": {"type": "string"},
    },
    "X-Transcript-Warnings": {
        "description": "Problems that affect the transcript, as a JSON list of `Warning`; absent if"
        " there are none.",
        "schema": {"type": "string", "contentMediaType": "application/json"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    },
}


_PHRASES = {
    101: "The connection speaks WebSocket.",
    200: "Done.",
    202: "Accepted.",
    503: "Not ready.",
}


def operation(
    name: str,
    *,
    tag: str,
    summary: str,
    description: str,
    responses: Mapping[int, Json],
    has_warnings: bool = False,
    refusals: Sequence[type[ApiError]] = (),
    parameters: Sequence[Json] = (),
    form: Json | None = None,
    body: Json | None = None,
) -> Json:
    """Describe a method of a path; `responses` maps a status to its media types.

    It takes a form, or a JSON `body`.
    """
    request_body = (
        {"required": True, "content": {"multipart/form-data": {"schema": form}}}
        if form
        else {"content": {"application/json": {"schema": body}}}
    )
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": description,
        **({"parameters": list(parameters)} if parameters else {}),
        **({"requestBody": request_body} if form or body else {}),
        "responses": {
            **{
                str(status): {
                    "description": _PHRASES[status],
                    "headers": _headers()
                    | (_header("X-Transcript-Warnings") if has_warnings else {}),
                    "content": content,
                }
                for status, content in responses.items()
            },
            **_refusals([*refusals, errors.ServerError]),
        },
    }


def _refusals(classes: Iterable[type[ApiError]]) -> Json:
    """Describe errors, grouped by status."""
    by_status = groupby(sorted(classes, key=_status), key=_status)
    return {str(status): _refusal(list(group)) for status, group in by_status}


def _status(error: type[ApiError]) -> int:
    return error.status


def _refusal(classes: Sequence[type[ApiError]]) -> Json:
    retry = any(error.retry_after_s is not None for error in classes)
    return {
        "description": "\n".join(
            f"- {f'`{error.code}`' if error.code else 'no code'}: {MEANINGS[error]}"
            for error in classes
        ),
        "headers": _headers() | (_header("Retry-After") if retry else {}),
        "content": json_response(error_body(error_details(classes))),
    }


def _headers() -> Json:
    names = ("X-Request-Id", "X-Parakeet-Model", "X-Parakeet-Model-Note")
    return {name: reference for header in names for name, reference in _header(header).items()}


def _header(name: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"}}


def json_response(schema: Json) -> Json:
    """Return the media types of a JSON response."""
    return {"application/json": {"schema": schema}}
