"""A job: what was asked, how far it is, how it ended; and what clients see of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from parakeet_api.errors import ApiError
from parakeet_api.formats.rendering import Rendered, warnings_list
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.transcript import Caveat

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]

MOST_LISTED = 100
USUALLY_LISTED = 20
"""Jobs on a page of a list, where a client asks for no number."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it would have been answered to a request."""

    status: int
    """Of HTTP."""
    body: str
    """JSON, in OpenAI's shape."""

    @classmethod
    def of(cls, error: ApiError) -> Failure:
        """Keep what the error handler would answer."""
        return cls(error.status, json.dumps(error.body(), ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is to be told of a job's end, and how far that came."""

    url: str
    attempts: int = 0
    delivered: bool = False
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A transcription that is done when its time comes."""

    id: str
    """Not to be guessed."""
    owner: str | None
    """Hash of the API key that made it; `None` = made without one."""
    status: JobStatus
    params: TranscriptionParams
    created_at: float
    """Unix time, seconds, as all its times."""
    started_at: float | None
    finished_at: float | None
    done_s: float
    """Seconds of the recording that have been recognised."""
    total_s: float | None
    """Seconds that the recording has, where that is known."""
    interruptions: int
    """How often the process died while this job ran."""
    failure: Failure | None
    webhook: Webhook | None

    @property
    def finished(self) -> bool:
        return self.status not in ("queued", "running")


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The jobs that are not finished."""

    queued: int
    running: int


def job_object(job: Job, result: Rendered | None) -> dict[str, object]:
    """Give a job as clients and webhooks see it; `result` is parsed where it is JSON."""
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
        **({"warnings": warnings_list(result.caveats)} if result and result.caveats else {}),
        "error": json.loads(job.failure.body)["error"] if job.failure is not None else None,
        "webhook": dataclasses.asdict(job.webhook) if job.webhook is not None else None,
    }


def _progress(job: Job) -> dict[str, float | None]:
    fraction = min(1.0, job.done_s / job.total_s) if job.total_s else None
    return {
        "done_s": round(job.done_s, 3),
        "total_s": round(job.total_s, 3) if job.total_s is not None else None,
        "fraction": 1.0 if job.status == "succeeded" else fraction,
    }


def caveats_to_json(caveats: Sequence[Caveat]) -> str:
    """Write caveats for `caveats_from_json`."""
    return json.dumps(warnings_list(caveats))


def caveats_from_json(text: str) -> tuple[Caveat, ...]:
    """Read caveats."""
    return tuple(Caveat(**entry) for entry in json.loads(text))


def params_to_json(params: TranscriptionParams) -> str:
    """Write parameters for `params_from_json`."""
    return json.dumps(
        {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in dataclasses.asdict(params).items()
        }
    )


def params_from_json(text: str) -> TranscriptionParams:
    """Read parameters, also of a version that knew others: those it lacks have their defaults."""
    known = {field.name for field in dataclasses.fields(TranscriptionParams)}
    given: dict[str, Any] = {
        name: frozenset(value) if isinstance(value, list) else value
        for name, value in json.loads(text).items()
        if name in known
    }
    return TranscriptionParams(**given)
