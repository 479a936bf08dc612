"""Partial results of a running job, for clients that show words as they are recognised."""

from __future__ import annotations

import dataclasses
import re

from flask import Blueprint, request

from parakeet_api.errors import InvalidRequestError
from parakeet_api.http.auth import accepted_key_hash, require_api_key
from parakeet_api.http.request_log import record
from parakeet_api.http.services import services
from parakeet_api.jobs.job import job_object
from parakeet_api.jobs.live import JobEvents

job_events_api = Blueprint("job_events", __name__)
job_events_api.before_request(require_api_key)


@job_events_api.get("/jobs/<job_id>/events")
def show_events(job_id: str) -> JobEvents:
    """Return the words and peaks since the client's last request, and the job's state."""
    record().quiet = True
    after = _count(request.args.get("after") or "0")
    jobs = services().jobs
    job = jobs.get(job_id, owner=accepted_key_hash())
    live = jobs.live.since(job_id, run=request.args.get("run") or "", after=after)
    return {
        "object": "transcription.job.events",
        "job": job_object(dataclasses.replace(job, result=None)),
        "queue_position": jobs.queue_position(job),
        "run": live.run,
        "following": live.following,
        "events": list(live.events),
    }


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidRequestError(f"after={text[:20]!r} is not a number of events.", param="after")
    return int(text)
