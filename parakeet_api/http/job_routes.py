"""Jobs over HTTP: the same form as for a transcription, answered before the work is done."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, request, url_for

from parakeet_api.errors import (
    InvalidRequestError,
    JobCancelledError,
    JobNotFinishedError,
    StoppingError,
)
from parakeet_api.formats.request_params import parse_params, read_field
from parakeet_api.http.web import (
    accepted_key_hash,
    answer,
    chosen_model,
    received_file,
    record,
    require_api_key,
    services,
)
from parakeet_api.jobs.job import MOST_LISTED, USUALLY_LISTED, Job, job_object

job_api = Blueprint("jobs", __name__)
job_api.before_request(require_api_key)


@job_api.before_request
def refuse_while_stopping() -> None:
    """Refuse a job that this process would not begin."""
    if request.method == "POST" and services().admission.stopping:
        raise StoppingError


@job_api.post("/jobs")
def submit() -> tuple[dict[str, Any], int, dict[str, str]]:
    """Accept an upload and answer at once."""
    services().jobs.refuse_if_full()
    recording = received_file()
    model = chosen_model(request.form)
    params = parse_params(request.form, languages=model.languages, model=model.name)
    if params.stream:
        raise InvalidRequestError(
            "stream: a job has no stream. Ask for its progress, or send the recording to"
            " /v1/audio/transcriptions.",
            param="stream",
        )
    job = services().jobs.submit(
        recording,
        params,
        owner=accepted_key_hash(),
        webhook_url=read_field(request.form, "webhook_url") or None,
    )
    return job_object(job, None), 202, {"Location": url_for(".show", job_id=job.id)}


@job_api.get("/jobs")
def list_jobs() -> dict[str, Any]:
    """List the caller's jobs, newest first, without their results."""
    limit = _limit(request.args.get("limit") or str(USUALLY_LISTED))
    # One more than asked for tells whether there is another page.
    jobs = services().jobs.newest(
        owner=accepted_key_hash(), limit=limit + 1, after=request.args.get("after") or None
    )
    return {
        "object": "list",
        "data": [job_object(job, None) for job in jobs[:limit]],
        "has_more": len(jobs) > limit,
    }


@job_api.get("/jobs/<job_id>")
def show(job_id: str) -> dict[str, Any]:
    """Tell how far a job is, with its result once it has one."""
    # A client that asks every second would fill the log.
    record().quiet = True
    job = _job(job_id)
    return job_object(job, services().jobs.result(job))


@job_api.get("/jobs/<job_id>/result")
def show_result(job_id: str) -> Response:
    """Answer as the transcription itself would have been answered, be it with an error."""
    job = _job(job_id)
    if job.failure is not None:
        return Response(job.failure.body, job.failure.status, content_type="application/json")
    if job.status == "cancelled":
        raise JobCancelledError("The job was cancelled: it has no result.")
    result = services().jobs.result(job)
    if result is None:
        raise JobNotFinishedError(f"The job is {job.status}. Its result comes later.")
    return answer(result)


@job_api.delete("/jobs/<job_id>")
def delete(job_id: str) -> dict[str, Any]:
    """Cancel an unfinished job; forget a finished one and its result."""
    remaining = services().jobs.delete(_job(job_id))
    if remaining is None:
        return {"id": job_id, "object": "transcription.job", "deleted": True}
    return job_object(remaining, None)


def _job(job_id: str) -> Job:
    return services().jobs.get(job_id, owner=accepted_key_hash())


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_LISTED:
        raise InvalidRequestError(
            f"limit={text[:20]!r} is not a whole number from 1 to {MOST_LISTED}.", param="limit"
        )
    return int(text)
