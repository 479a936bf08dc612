"""The upload page, and health, readiness and metrics."""

from __future__ import annotations

from flask import Blueprint, Response, render_template, request

from parakeet_api import __version__
from parakeet_api.audio.decoder import FILE_EXTENSIONS
from parakeet_api.errors import ApiError, ModelLoadError
from parakeet_api.formats.form_fields import read_boolean
from parakeet_api.formats.status import (
    DeviceMemoryJson,
    DiarizerStatus,
    Health,
    JobsStatus,
    ModelStatus,
    Readiness,
)
from parakeet_api.http.auth import require_api_key
from parakeet_api.http.services import Services, services
from parakeet_api.http.start_report import report_start
from parakeet_api.metrics import MEDIA_TYPE
from parakeet_api.model.cuda import known_device_memory
from parakeet_api.model.diarizer import SpeakerModel
from parakeet_api.served_models import ServedModel

pages = Blueprint("pages", __name__)

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


@pages.get("/")
def page() -> Response:
    """Serve the upload page, and prepare for the recording that will follow."""
    services().models.first.slot.prepare()
    response = Response(render_template("index.html"), content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _PAGE_POLICY
    return response


@pages.get("/health/simple")
def alive() -> Response:
    """Show that the process answers, and nothing else."""
    return Response("ok\n", content_type="text/plain; charset=utf-8")


@pages.get("/ready")
def ready() -> tuple[Readiness, int]:
    """Return whether a transcription could be served now, or the reason why not."""
    reason = _why_not_ready(services())
    return {"ready": reason is None, "reason": reason}, 503 if reason else 200


@pages.get("/metrics")
def metrics() -> Response:
    """Return the metrics to Prometheus; with a key, where keys are set."""
    require_api_key()
    wired = services()
    first = wired.models.first
    info = first.slot.info
    wired.metrics.info.info(
        {
            "version": __version__,
            "model": first.name,
            "device": info.device if info else "",
            "precision": info.precision if info else "",
        }
    )
    return Response(wired.metrics.exposition(), content_type=MEDIA_TYPE)


@pages.get("/health")
def health() -> Health:
    """Return the state of the process and its models; never wait for inference."""
    wired = services()
    if not _is_verbose():
        return _health(wired)
    require_api_key()
    report = report_start(wired.settings, models=wired.models, gpu=wired.gpu)
    return {**_health(wired), "report": report.body()}


def _is_verbose() -> bool:
    return read_boolean(request.args, "verbose", default=False)


def _health(wired: Services) -> Health:
    settings, models = wired.settings, wired.models
    plan = models.first.plan
    info, device = models.first.slot.info, models.device()
    active, waiting = wired.admission.counts()
    return {
        "status": "ok",
        "version": __version__,
        "model": _model_status(models.first),
        "models": [_model_status(model) for model in models],
        "diarizer": _diarizer_status(models.speakers) if models.speakers else None,
        "device": device or ("cuda" if wired.gpu else "cpu"),
        "device_memory": _memory_of(device),
        "precision": info.precision if info else None,
        "queue": {
            "active_requests": active,
            "waiting_requests": waiting,
            "waiting_chunks": models.waiting_chunks(),
        },
        "jobs": _jobs_status(wired),
        "limits": {
            "max_upload_mb": settings.max_upload_mb,
            "max_audio_hours": settings.max_audio_hours,
            "longest_chunk_s": plan.longest_chunk_s,
            "batch_size": plan.batch_size,
            "recording_urls": bool(settings.allow_urls),
            "extensions": FILE_EXTENSIONS,
        },
        "subtitles": {
            "line_length": settings.preferred_line_length,
            "lines": settings.max_subtitle_lines,
            "max_duration_s": settings.max_subtitle_duration_s,
        },
    }


def _model_status(model: ServedModel) -> ModelStatus:
    store, slot = model.checkpoints.status, model.slot
    known = store.checkpoint
    return {
        "name": model.name,
        "demo": known.is_demo if known else False,
        "note": known.note if known else None,
        "state": slot.state if known else store.state,
        "progress": slot.progress if known else store.progress,
        "error": slot.error if known else store.error,
        "languages": sorted(model.languages),
    }


def _diarizer_status(model: SpeakerModel) -> DiarizerStatus:
    store, slot = model.store.status, model.slot
    known = store.checkpoint
    return {
        "name": model.store.name,
        "demo": known.is_demo if known else False,
        "note": known.note if known else None,
        "state": slot.state if known else store.state,
        "progress": slot.progress if known else store.progress,
        "error": slot.error if known else store.error,
        "max_speakers": model.store.output.speakers,
    }


def _memory_of(device: str | None) -> DeviceMemoryJson | None:
    memory = known_device_memory(device)
    if memory is None:
        return None
    return {
        "used": memory.used,
        "total": memory.total,
        "allocated": memory.allocated,
        "reserved": memory.reserved,
    }


def _why_not_ready(wired: Services) -> str | None:
    try:
        wired.admission.refuse_if_full()
        wired.models.first.checkpoints.checkpoint()
    except ApiError as error:
        return error.message
    if not wired.decoder.is_usable:
        return "There is no ffmpeg to decode recordings with."
    # After a while requests are admitted again: the next one repeats the load.
    slot = wired.models.first.slot
    if slot.failed_lately(ModelLoadError.retry_after_s):
        return slot.error
    return None


def _jobs_status(wired: Services) -> JobsStatus:
    counts, fault = wired.jobs.counts, wired.jobs.fault
    return {
        "queued": counts.queued,
        "running": counts.running,
        "error": fault.message if fault else None,
    }
