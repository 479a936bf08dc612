"""OpenAI's endpoints: transcriptions, translations, models."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from flask import Blueprint, Response, request

from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import Task, TranscriptionParams, parse_params
from parakeet_api.formats.server_sent_events import MEDIA_TYPE, EventWriter
from parakeet_api.http.admission import Admission
from parakeet_api.http.background import Cancelled, Emit, in_background
from parakeet_api.http.web import (
    CLIENT_GONE,
    RequestRecord,
    answer,
    as_api_error,
    check_translatable,
    chosen_model,
    client_gone,
    received_file,
    record,
    refuse_if_full,
    require_api_key,
    services,
    take_over,
    transcribe_upload,
)
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.served_models import ServedModel

openai_api = Blueprint("openai", __name__)
openai_api.before_request(require_api_key)
openai_api.before_request(refuse_if_full)

_SILENCE_S = 5.0
"""A quiet stream says that it lives this often; proxies close what is silent for 30 to 60 s."""
_PROGRESS_S = 1.0
"""The same for a client that shows progress."""


@openai_api.post("/audio/transcriptions")
def transcribe() -> Response:
    """Transcribe one upload."""
    return _answer("transcribe")


@openai_api.post("/audio/translations")
def translate() -> Response:
    """Transcribe English speech; refuse other languages, which this model cannot translate."""
    return _answer("translate")


@openai_api.get("/models")
def list_models() -> dict[str, Any]:
    """List the models that requests can name; usually one."""
    data = [_model(model.name, model) for model in services().models]
    return {"object": "list", "data": data}


@openai_api.get("/models/<path:name>")
def show_model(name: str) -> dict[str, Any]:
    """Describe a model, the first also under the names of those whose place it takes."""
    return _model(name, services().models.described(name))


def _model(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _created(model),
        "owned_by": "nvidia",
    }


def _created(model: ServedModel) -> int:
    """Give the checkpoint file's time, s since 1970; 0 where there is none, or no more."""
    checkpoint = model.checkpoints.status.checkpoint
    try:
        return int(checkpoint.path.stat().st_mtime) if checkpoint else 0
    except OSError:
        return 0


def _answer(task: Task) -> Response:
    upload = received_file()
    model = chosen_model(request.form)
    params = parse_params(request.form, languages=model.languages, model=model.name, task=task)
    return (_stream if params.stream else _answer_at_once)(upload, model, params)


def _answer_at_once(upload: Path, model: ServedModel, params: TranscriptionParams) -> Response:
    transcript = transcribe_upload(
        upload,
        model=model,
        languages=params.languages,
        task=params.task,
        track=params.audio_track,
        allow_partial=params.allow_partial,
    )
    return answer(render(transcript, params, settings=services().settings))


def _stream(upload: Path, model: ServedModel, params: TranscriptionParams) -> Response:
    """Answer with events; what goes wrong before the first has a status of its own."""
    wired, kept = services(), record()
    # Told now and not as an event, if there is no model yet.
    model.checkpoints.checkpoint()
    writer = EventWriter(params, settings=wired.settings)
    held = take_over(upload)
    events = in_background(
        _work(held, params, writer, model=model, admission=wired.admission, kept=kept),
        gone=client_gone(),
        silence_s=_PROGRESS_S if "progress" in params.include else _SILENCE_S,
    )
    first = next(events)
    response = Response(_written(first, events, writer, model, kept), content_type=MEDIA_TYPE)
    response.call_on_close(events.close)
    response.headers["Cache-Control"] = "no-cache"
    # nginx would otherwise gather events for a while.
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _work(
    upload: IO[bytes],
    params: TranscriptionParams,
    writer: EventWriter,
    *,
    model: ServedModel,
    admission: Admission,
    kept: RequestRecord,
) -> Callable[[Emit[str], Cancelled], None]:
    """Give the work of a streamed request, which owns the upload."""

    def work(emit: Emit[str], cancelled: Cancelled) -> None:
        def tell(event: str) -> None:
            if event:
                emit(event)

        try:
            with admission.place(
                cancelled=cancelled, on_wait=lambda position: tell(writer.queued(position))
            ):
                tell(writer.begun())
                transcript = model.pipeline.transcribe(
                    Path(upload.name),
                    languages=params.languages,
                    track=params.audio_track,
                    allow_partial=params.allow_partial,
                    on_progress=lambda progress: tell(writer.progress(progress)),
                    cancelled=cancelled,
                )
        finally:
            Path(upload.name).unlink()
            upload.close()
        kept.audio_s = transcript.duration
        check_translatable(transcript, params.task)
        emit(writer.done(transcript))

    return work


def _written(
    first: str | None,
    events: Generator[str | None],
    writer: EventWriter,
    model: ServedModel,
    kept: RequestRecord,
) -> Generator[str]:
    """Write a stream to its end, which may be an error."""
    try:
        for event in chain([first], events):
            loading = model.slot.state == "loading"
            yield writer.silence(model_is_loading=loading) if event is None else event
    # The second where waitress is the first to notice, as it writes.
    except (RequestCancelled, GeneratorExit):
        kept.failure = CLIENT_GONE
    # The status is sent already: whatever goes wrong now is told as an event.
    except Exception as error:
        failure = as_api_error(error, request_id=kept.id)
        kept.failure = failure.code or failure.type
        yield writer.error(failure)
