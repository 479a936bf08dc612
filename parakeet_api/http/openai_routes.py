"""OpenAI's endpoints: transcriptions, translations, models."""

from __future__ import annotations

import math

from flask import Blueprint, Response

from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import Task, parse_params
from parakeet_api.formats.status import ModelJson, ModelList, StreamingJson
from parakeet_api.http.auth import require_api_key
from parakeet_api.http.received_form import received_form
from parakeet_api.http.services import chosen_model, services
from parakeet_api.http.speaker_references import decode_reference
from parakeet_api.http.streamed_transcription import StreamedTranscription
from parakeet_api.http.transcription import answer, transcribe_upload
from parakeet_api.model.architecture import StreamingContext
from parakeet_api.served_models import ServedModel

openai_api = Blueprint("openai", __name__)
openai_api.before_request(require_api_key)


@openai_api.post("/audio/transcriptions")
def transcribe() -> Response:
    """Transcribe one upload."""
    return _answer("transcribe")


@openai_api.post("/audio/translations")
def translate() -> Response:
    """Transcribe English speech; reject other languages, which the model cannot translate."""
    return _answer("translate")


@openai_api.get("/models")
def list_models() -> ModelList:
    """List the models that requests can name; usually one."""
    data = [_model(model.name, model) for model in services().models]
    return {"object": "list", "data": data}


@openai_api.get("/models/<path:name>")
def show_model(name: str) -> ModelJson:
    """Describe a model; the first one also under the aliases that it serves."""
    return _model(name, services().models.described(name))


def _model(name: str, model: ServedModel) -> ModelJson:
    checkpoint = model.checkpoints.status.checkpoint
    architecture = checkpoint.architecture if checkpoint else None
    return {
        "id": name,
        "object": "model",
        "created": _created(model),
        "owned_by": "nvidia",
        "languages": sorted(model.languages),
        "parameters": architecture.parameters if architecture else None,
        "durations": architecture.decoder == "tdt" if architecture else None,
        "streaming": _streaming(architecture.streaming) if architecture else None,
        "license": checkpoint.license if checkpoint else None,
    }


def _streaming(context: StreamingContext | None) -> StreamingJson | None:
    if context is None:
        return None
    left_s = context.left_s if math.isfinite(context.left_s) else None
    return {"left_s": left_s, "chunks_s": list(context.chunks_s)}


def _created(model: ServedModel) -> int:
    """Return the modification time of the checkpoint, s since 1970; 0 if the file is missing."""
    checkpoint = model.checkpoints.status.checkpoint
    try:
        return int(checkpoint.path.stat().st_mtime) if checkpoint else 0
    except OSError:
        return 0


def _answer(task: Task) -> Response:
    services().admission.refuse_if_full()
    form = received_form()
    model = chosen_model(form.fields)
    params = parse_params(
        form.fields,
        languages=model.languages,
        model=model.name,
        task=task,
        decode_reference=decode_reference,
    )
    model.check_keywords(params.keywords)
    services().models.check_diarizer(params.speakers)
    if params.stream:
        return StreamedTranscription(form.upload, params, model=model).response()
    transcript = transcribe_upload(form.upload, params, model=model)
    return answer(render(transcript, params, settings=services().settings))
