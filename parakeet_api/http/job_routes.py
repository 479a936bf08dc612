"""Jobs over HTTP: the form of a transcription, with a response before the work is done."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request, url_for

from parakeet_api.errors import (
    InvalidRequestError,
    JobCancelledError,
    JobNotFinishedError,
    StoppingError,
)
from parakeet_api.formats.form_fields import read_field
from parakeet_api.formats.request_params import parse_params
from parakeet_api.http.auth import accepted_key_hash, require_api_key
from parakeet_api.http.received_form import received_form
from parakeet_api.http.request_log import record
from parakeet_api.http.services import chosen_model, services
from parakeet_api.http.speaker_references import decode_reference
from parakeet_api.http.transcription import answer
from parakeet_api.jobs.job import (
    DEFAULT_LISTED,
    MAX_LISTED,
    DeletedJob,
    Job,
    JobJson,
    JobList,
    job_object,
)

job_api = Blueprint("jobs", __name__)
job_api.before_request(require_api_key)


@job_api.post("/jobs")
def submit() -> tuple[JobJson, int, dict[str, str]]:
    """Accept an upload and answer at once."""
    if services().admission.stopping:
        raise StoppingError
    services().jobs.refuse_if_full()
    form = received_form()
    model = chosen_model(form.fields)
    params = parse_params(
        form.fields,
        languages=model.languages,
        model=model.name,
        decode_reference=decode_reference,
    )
    model.check_keywords(params.keywords)
    services().models.check_diarizer(params.speakers)
    if params.stream:
        raise InvalidRequestError(
            "stream: a job has no stream. Ask for its progress, or send the recording to"
            " /v1/audio/transcriptions.",
            param="stream",
        )
    job = services().jobs.submit(
        form.upload,
        params,
        owner=accepted_key_hash(),
        webhook_url=read_field(form.fields, "webhook_url") or None,
    )
    return job_object(job), 202, {"Location": url_for(".show", job_id=job.id)}


@job_api.get("/jobs")
def list_jobs() -> JobList:
    """List the caller's jobs, newest first, without their results."""
    limit = _limit(request.args.get("limit") or str(DEFAULT_LISTED))
    # One more than requested shows whether there is another page.
    jobs = services().jobs.newest(
        owner=accepted_key_hash(), limit=limit + 1, after=request.args.get("after") or None
    )
    return {
        "object": "list",
        "data": [job_object(job) for job in jobs[:limit]],
        "has_more": len(jobs) > limit,
    }


@job_api.get("/jobs/<job_id>")
def show(job_id: str) -> JobJson:
    """Return a job's progress, with its result once it has one."""
    # Clients poll once a second: at INFO they would fill the log.
    record().quiet = True
    return job_object(_job(job_id))


@job_api.get("/jobs/<job_id>/result")
def show_result(job_id: str) -> Response:
    """Respond as a transcription request would, possibly with an error."""
    job = _job(job_id)
    if job.failure is not None:
        return Response(job.failure.body, job.failure.status, content_type="application/json")
    if job.status == "cancelled":
        raise JobCancelledError("The job was cancelled: it has no result.")
    if job.result is None:
        raise JobNotFinishedError(f"The job is {job.status}. Its result comes later.")
    return answer(job.result)


@job_api.delete("/jobs/<job_id>")
def delete(job_id: str) -> JobJson | DeletedJob:
    """Cancel an unfinished job; delete a finished one and its result."""
    remaining = services().jobs.delete(_job(job_id))
    if remaining is None:
        return {"id": job_id, "object": "transcription.job", "deleted": True}
    return job_object(remaining)


def _job(job_id: str) -> Job:
    return services().jobs.get(job_id, owner=accepted_key_hash())


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_LISTED:
        raise InvalidRequestError(
            f"limit={text[:20]!r} is not a whole number from 1 to {MAX_LISTED}.", param="limit"
        )
    return int(text)
