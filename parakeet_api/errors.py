"""The errors that a client can get, each with its HTTP status and code.

    ApiError
    ├── InvalidRequestError          400  the request itself is wrong
    │   ├── UnsupportedLanguageError 400  the model does not speak that language
    │   ├── RecordingUrlError        400  the recording's host does not send it
    │   ├── DiarizationOffError      400  the server tells no voices apart
    │   └── AudioDecodeError         400  the upload cannot be decoded
    │       ├── NoAudioTrackError    400  a video without sound
    │       ├── TruncatedAudioError  400  the file is cut short
    │       └── AudioTooLongError    400  longer than MAX_AUDIO_HOURS
    ├── AuthenticationError          401  no key, or a wrong one
    ├── ForbiddenError               403  only from the server's own machine, or with a key
    ├── NotFoundError                404  no such path
    │   └── ModelNotFoundError       404  no such model
    ├── MethodNotAllowedError        405
    ├── JobNotFinishedError          409  no result yet
    ├── JobCancelledError            409  there will be no result
    ├── ModelInUseError              409  it cannot be unloaded now
    ├── UploadTooLargeError          413
    ├── RateLimitError               429  above RATE_LIMIT; try again after `retry_after_s`
    ├── ServiceUnavailableError      503  try again after `retry_after_s`
    │   ├── ModelNotReadyError       503  still downloading or loading
    │   ├── QueueFullError           503
    │   ├── StoppingError            503  the server is about to stop
    │   ├── ModelLoadError           503  the checkpoint cannot be loaded
    │   ├── DeviceLostError          503  the GPU failed; the process will exit
    │   ├── ClusterUnavailableError  503  no replica of the model runs on the Ray cluster
    │   └── JobsUnavailableError     503  DATA_DIR cannot be used
    └── ServerError                  500  a bug in the server

Invalid settings and checkpoints raise `SettingsError` and `CheckpointError`, which clients never
get.

Responses have OpenAI's format: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import errno

from typing_extensions import TypedDict

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""`errno` values that are reported to clients as `ServiceUnavailableError.disk_full`."""

EXIT_DEVICE_LOST = 70
"""Exit status of a process whose GPU has failed for the rest of it; EX_SOFTWARE of sysexits.h."""


class ErrorDetails(TypedDict):
    """What went wrong. All four fields are always there."""

    message: str
    """For people."""
    type: str
    """Kind of the error."""
    param: str | None
    """The parameter that is wrong, where it is one."""
    code: str | None
    """What went wrong, for programs."""


class ErrorBody(TypedDict):
    """An error, in OpenAI's shape."""

    error: ErrorDetails


class ApiError(Exception):
    """An error that is sent to the client in OpenAI's format."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> ErrorBody:
        """Return the JSON body: all four keys are present; `param` and `code` may be null."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(ApiError):
    status = 400
    type = "invalid_request_error"


class UnsupportedLanguageError(InvalidRequestError):
    code = "unsupported_language"


class DiarizationOffError(InvalidRequestError):
    code = "diarization_off"

    def __init__(
        self,
        message: str = "This server tells no voices apart: its operator has set DIARIZATION=off."
        " Leave out diarize and diarized_json, or use channels=separate for a recording with one"
        " speaker a channel.",
        *,
        param: str | None = "diarize",
    ) -> None:
        super().__init__(message, param=param)


class AudioDecodeError(InvalidRequestError):
    code = "invalid_audio"

    def __init__(self, message: str, *, param: str | None = "file") -> None:
        super().__init__(message, param=param)


class NoAudioTrackError(AudioDecodeError):
    code = "no_audio_track"


class TruncatedAudioError(AudioDecodeError):
    code = "truncated_audio"


class RecordingUrlError(InvalidRequestError):
    code = "recording_url_failed"

    @classmethod
    def from_host(cls, host: str, reason: str) -> RecordingUrlError:
        """State the host and what went wrong."""
        return cls(
            f"The recording could not be fetched from {echo(host)}: {reason[:200]}.", param="url"
        )


class AudioTooLongError(AudioDecodeError):
    code = "audio_too_long"


class AuthenticationError(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ForbiddenError(ApiError):
    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class NotFoundError(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFoundError(NotFoundError):
    code = "model_not_found"

    def __init__(self, message: str, *, param: str | None = "model") -> None:
        super().__init__(message, param=param)


class MethodNotAllowedError(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class JobNotFinishedError(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "job_not_finished"
    retry_after_s = 5


class JobCancelledError(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "job_cancelled"


class ModelInUseError(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "model_in_use"


class UploadTooLargeError(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "upload_too_large"

    def __init__(self, message: str, *, param: str | None = "file") -> None:
        super().__init__(message, param=param)

    @classmethod
    def above(cls, limit: int, *, sent: int | None) -> UploadTooLargeError:
        """State the limit and, if known, the size of the upload; both in bytes."""
        size = f" ({sent} bytes sent)" if sent is not None else ""
        return cls(
            f"Maximum content size limit ({limit}) exceeded{size}. Send a compressed format, such"
            " as mp3 or opus, or raise MAX_UPLOAD_MB."
        )


class RateLimitError(ApiError):
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retry_after_s = 60


class ServiceUnavailableError(ApiError):
    status = 503
    type = "server_error"
    code = "service_unavailable"
    retry_after_s = 5

    @classmethod
    def disk_full(cls) -> ServiceUnavailableError:
        """Build the error for a full disk."""
        return cls("The server's disk is full. Try again later.")


class ModelNotReadyError(ServiceUnavailableError):
    code = "model_not_ready"
    retry_after_s = 10


class QueueFullError(ServiceUnavailableError):
    code = "queue_full"


class StoppingError(ServiceUnavailableError):
    code = "stopping"

    def __init__(
        self,
        message: str = "The server is stopping. Try again in a few seconds.",
        *,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)


class ModelLoadError(ServiceUnavailableError):
    code = "model_load_failed"
    retry_after_s = 30


class DeviceLostError(ServiceUnavailableError):
    code = "device_lost"
    retry_after_s = 30

    def __init__(
        self,
        message: str = "The GPU has failed, and the server starts again. Try again soon.",
        *,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)


class ClusterUnavailableError(ServiceUnavailableError):
    code = "cluster_unavailable"
    retry_after_s = 10


class JobsUnavailableError(ServiceUnavailableError):
    code = "jobs_unavailable"
    retry_after_s = 10


class ServerError(ApiError):
    code = "internal_error"


MAX_ECHO = 60
"""Characters of a client's value that a message quotes."""


def echo(text: str, limit: int = MAX_ECHO) -> str:
    """Quote a client's value for a message, shortened."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


class SettingsError(ValueError):
    """A setting is invalid; the message is `NAME='value' is not ...`."""


class CheckpointError(Exception):
    """A `.nemo` file is missing, truncated or of another format; the message names it."""
