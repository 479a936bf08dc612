"""The pieces that operations are described with: answers, refusals, headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from parakeet_api.errors import (
    ApiError,
    AudioDecodeError,
    AudioTooLongError,
    AuthenticationError,
    DeviceLostError,
    ForbiddenError,
    InvalidRequestError,
    JobCancelledError,
    JobNotFinishedError,
    JobsUnavailableError,
    MethodNotAllowedError,
    ModelInUseError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoAudioTrackError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    ServerError,
    ServiceUnavailableError,
    StoppingError,
    TruncatedAudioError,
    UnsupportedLanguageError,
    UploadTooLargeError,
)
from parakeet_api.openapi.schemas import Json, error_body, error_details

MEANINGS: Mapping[type[ApiError], str] = {
    InvalidRequestError: "the request is wrong: `message` says how, `param` where",
    UnsupportedLanguageError: "the model does not speak that language",
    AudioDecodeError: "the upload is not audio that can be used",
    NoAudioTrackError: "a video without sound",
    TruncatedAudioError: "the file is cut short; `allow_partial=true` takes what there is",
    AudioTooLongError: "the recording is longer than this server accepts",
    AuthenticationError: "no key, or a wrong one",
    RateLimitError: "more requests than `RATE_LIMIT` allows",
    ForbiddenError: "not from here without a key",
    NotFoundError: "there is no such path",
    ModelNotFoundError: "there is no such model",
    MethodNotAllowedError: "the path exists, with other methods; `Allow` lists them",
    JobNotFinishedError: "the job has no result yet",
    JobCancelledError: "the job was cancelled and will have no result",
    ModelInUseError: "the model is at work or being loaded, and stays",
    UploadTooLargeError: "the upload is larger than this server accepts",
    ServiceUnavailableError: "the request can't be served now",
    ModelNotReadyError: "the model is still being downloaded or loaded",
    QueueFullError: "too many requests wait",
    StoppingError: "the server is about to stop",
    JobsUnavailableError: "no jobs are taken: the server can't use their folder",
    ModelLoadError: "the model can't be had or loaded; `GET /health` tells why",
    DeviceLostError: "the server's graphics card has failed; it starts again at once",
    ServerError: "a fault of the server's; its log has the request's id",
}
"""Each error in half a sentence."""

HEADERS: Mapping[str, Json] = {
    "X-Request-Id": {
        "description": "The request's id in the server's log.",
        "schema": {"type": "string"},
    },
    "X-Parakeet-Model": {
        "description": "The model that answers, once it is known which.",
        "schema": {"type": "string"},
    },
    "X-Parakeet-Model-Note": {
        "description": "What that model is, in one sentence, where it is one that comes with the"
        " server for trying things out; else left out.",
        "schema": {"type": "string"},
    },
    "X-Transcript-Warnings": {
        "description": "What a reader should know of how the recording was heard, as a JSON list of"
        " `Warning`; left out where there is nothing.",
        "schema": {"type": "string", "contentMediaType": "application/json"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    },
}


_PHRASES = {200: "Done.", 202: "Accepted; done later.", 503: "Not now."}


def operation(
    name: str,
    *,
    tag: str,
    summary: str,
    description: str,
    answers: Mapping[int, Json],
    has_warnings: bool = False,
    errors: Sequence[type[ApiError]] = (),
    parameters: Sequence[Json] = (),
    form: Json | None = None,
) -> Json:
    """Describe a method of a path; `answers` are the media types of each status."""
    body = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": description,
        **({"parameters": list(parameters)} if parameters else {}),
        **({"requestBody": body} if form else {}),
        "responses": {
            **{
                str(status): {
                    "description": _PHRASES[status],
                    "headers": _headers()
                    | (_header("X-Transcript-Warnings") if has_warnings else {}),
                    "content": content,
                }
                for status, content in answers.items()
            },
            **_refusals([*errors, ServerError]),
        },
    }


def _refusals(errors: Iterable[type[ApiError]]) -> Json:
    """Describe errors, those of one status together."""
    by_status = groupby(sorted(errors, key=_status), key=_status)
    return {str(status): _refusal(list(classes)) for status, classes in by_status}


def _status(error: type[ApiError]) -> int:
    return error.status


def _refusal(errors: Sequence[type[ApiError]]) -> Json:
    retry = any(error.retry_after_s is not None for error in errors)
    return {
        "description": "\n".join(
            f"- {f'`{error.code}`' if error.code else 'no code'}: {MEANINGS[error]}"
            for error in errors
        ),
        "headers": _headers() | (_header("Retry-After") if retry else {}),
        "content": json_answer(error_body(error_details(errors))),
    }


def _headers() -> Json:
    names = ("X-Request-Id", "X-Parakeet-Model", "X-Parakeet-Model-Note")
    return {name: reference for header in names for name, reference in _header(header).items()}


def _header(name: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"}}


def json_answer(schema: Json) -> Json:
    """Give the media types of an answer that is JSON."""
    return {"application/json": {"schema": schema}}
