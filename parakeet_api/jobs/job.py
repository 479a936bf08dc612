"""A job: its parameters, progress and outcome, and the JSON that clients see."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

from parakeet_api.errors import ApiError, ErrorDetails
from parakeet_api.formats.json_types import Count, Seconds, Share, UnixTime
from parakeet_api.formats.rendering import (
    DiarizedTranscriptionJson,
    HasWarnings,
    Rendered,
    TranscriptionJson,
    VerboseTranscriptionJson,
    warnings_field,
    warnings_list,
)
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.keywords import Keyword
from parakeet_api.transcript import Caveat, KnownSpeaker, SpeakerRequest

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]

MAX_LISTED = 100
"""Jobs on a page of a list."""
DEFAULT_LISTED = 20
"""Jobs on a page of a list, where the request has no `limit`."""


class ProgressJson(TypedDict):
    """Progress of a job."""

    done_s: Seconds
    """Audio recognised so far, seconds."""
    total_s: Seconds | None
    """Length of the recording, where known, seconds."""
    fraction: Share | None
    """Their ratio."""


class WebhookJson(TypedDict):
    """The webhook that is called when a job ends."""

    url: str
    """Where the finished job is sent."""
    attempts: Count
    """Attempts so far."""
    delivered: bool
    """Whether the response was 2xx."""
    last_error: str | None
    """Why the last attempt failed."""


class JobJson(HasWarnings):
    """A transcription in the background."""

    id: str
    """Its id, which cannot be guessed."""
    object: Literal["transcription.job"]
    status: JobStatus
    """Its status."""
    created_at: UnixTime
    started_at: UnixTime | None
    finished_at: UnixTime | None
    progress: ProgressJson
    model: str | None
    """Its model; null in jobs of older versions."""
    response_format: ResponseFormat
    """Format of the result."""
    result: TranscriptionJson | VerboseTranscriptionJson | DiarizedTranscriptionJson | str | None
    """The transcript, once there is one: an object of the formats that are JSON, else text.
    Lists leave it out."""
    error: ErrorDetails | None
    webhook: WebhookJson | None


class JobList(TypedDict):
    """A page of jobs."""

    object: Literal["list"]
    data: list[JobJson]
    """Newest first."""
    has_more: bool
    """Whether there are older ones: request them with `after` = the last one's id."""


class DeletedJob(TypedDict):
    """A deleted job."""

    id: str
    """Its id."""
    object: Literal["transcription.job"]
    deleted: Literal[True]


@dataclass(frozen=True, slots=True)
class Failure:
    """The error response that a direct request would have got."""

    status: int
    """HTTP status."""
    body: str
    """JSON, in OpenAI's shape."""

    @classmethod
    def of(cls, error: ApiError) -> Failure:
        """Serialize an error as the HTTP error handler does."""
        return cls(error.status, json.dumps(error.body(), ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL that is called when a job ends, and the outcome of the calls so far."""

    url: str
    attempts: int = 0
    delivered: bool = False
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A transcription that is processed in the background."""

    id: str
    """A random UUID: it cannot be guessed."""
    owner: str | None
    """Hash of the API key that submitted it; `None` = submitted without a key."""
    status: JobStatus
    params: TranscriptionParams
    created_at: float
    """Unix time in seconds, like the other times."""
    started_at: float | None
    finished_at: float | None
    done_s: float
    """Seconds of the recording that have been recognised."""
    total_s: float | None
    """Length of the recording in seconds, where it is known."""
    interruptions: int
    """How often the process ended abnormally while this job ran."""
    failure: Failure | None
    webhook: Webhook | None
    result: Rendered | None = None
    """The response body; `None` unless the job succeeded, and in lists of jobs."""

    @property
    def finished(self) -> bool:
        """Tell whether the job has ended, with or without a result."""
        return self.status not in ("queued", "running")


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Numbers of unfinished jobs."""

    queued: int
    running: int


def job_object(job: Job) -> JobJson:
    """Return a job as clients and webhooks see it; its result is parsed where it is JSON."""
    result = job.result
    return {
        "id": job.id,
        "object": "transcription.job",
        "status": job.status,
        "created_at": int(job.created_at),
        "started_at": int(job.started_at) if job.started_at is not None else None,
        "finished_at": int(job.finished_at) if job.finished_at is not None else None,
        "progress": _progress(job),
        "model": job.params.model or None,
        "response_format": job.params.response_format,
        "result": result.content if result is not None else None,
        **warnings_field(result.caveats if result is not None else ()),
        "error": json.loads(job.failure.body)["error"] if job.failure is not None else None,
        "webhook": _webhook(job.webhook) if job.webhook is not None else None,
    }


def _webhook(webhook: Webhook) -> WebhookJson:
    return {
        "url": webhook.url,
        "attempts": webhook.attempts,
        "delivered": webhook.delivered,
        "last_error": webhook.last_error,
    }


def _progress(job: Job) -> ProgressJson:
    fraction = min(1.0, job.done_s / job.total_s) if job.total_s else None
    return {
        "done_s": round(job.done_s, 3),
        "total_s": round(job.total_s, 3) if job.total_s is not None else None,
        "fraction": 1.0 if job.status == "succeeded" else fraction,
    }


def caveats_to_json(caveats: Sequence[Caveat]) -> str:
    """Serialize caveats for `caveats_from_json`."""
    return json.dumps(warnings_list(caveats))


def caveats_from_json(text: str) -> tuple[Caveat, ...]:
    """Parse the output of `caveats_to_json`."""
    return tuple(Caveat(**entry) for entry in json.loads(text))


def params_to_json(params: TranscriptionParams) -> str:
    """Serialize parameters for `params_from_json`."""
    return json.dumps(dataclasses.asdict(params), default=_jsonable)


def _jsonable(value: object) -> object:
    match value:
        case frozenset():
            return sorted(value)
        case bytes():
            return base64.b64encode(value).decode("ascii")
    raise TypeError(f"{type(value)} is no value of a parameter")


def params_from_json(text: str) -> TranscriptionParams:
    """Parse the output of `params_to_json`, also of another version.

    Unknown parameters are ignored, missing ones have their defaults.
    """
    stored: dict[str, Any] = json.loads(text)
    keywords = tuple(Keyword(**entry) for entry in stored.pop("keywords", ()))
    speakers = _speakers(stored.pop("speakers", {}))
    known = {field.name for field in dataclasses.fields(TranscriptionParams)}
    given: dict[str, Any] = {
        name: frozenset(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name in known
    }
    return TranscriptionParams(**given, keywords=keywords, speakers=speakers)


def _speakers(stored: dict[str, Any]) -> SpeakerRequest:
    known = tuple(
        KnownSpeaker(entry["name"], base64.b64decode(entry["sound"]))
        for entry in stored.pop("known", ())
    )
    fields = {field.name for field in dataclasses.fields(SpeakerRequest)}
    given = {name: value for name, value in stored.items() if name in fields}
    return SpeakerRequest(**given, known=known)
