"""One transcription of an upload."""

from __future__ import annotations

from pathlib import Path

from flask import Response

from parakeet_api.errors import UnsupportedLanguageError
from parakeet_api.formats.asr_api import AsrParams
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import Task, TranscriptionParams
from parakeet_api.formats.transcribe import transcribe_recording
from parakeet_api.http.request_log import record
from parakeet_api.http.services import client_gone, services
from parakeet_api.languages import english_name
from parakeet_api.served_models import ServedModel
from parakeet_api.transcript import Transcript


def transcribe_upload(
    upload: Path, params: TranscriptionParams | AsrParams, *, model: ServedModel
) -> Transcript:
    """Transcribe an upload when it is its turn, for as long as the client stays."""
    # Fail before decoding if no model exists.
    model.checkpoints.checkpoint()
    cancelled = client_gone()
    with services().admission.slot(cancelled=cancelled):
        transcript = transcribe_recording(model.pipeline, upload, params, cancelled=cancelled)
    record().audio_s = transcript.duration
    check_translatable(transcript, params.task)
    return transcript


def answer(rendered: Rendered) -> Response:
    """Answer with a transcript."""
    return Response(rendered.body, content_type=rendered.media_type, headers=rendered.headers)


def check_translatable(transcript: Transcript, task: Task) -> None:
    """Raise `UnsupportedLanguageError` for a translation of anything but English."""
    if task == "translate" and transcript.language not in ("en", None):
        raise UnsupportedLanguageError(
            f"The recording is in {english_name(transcript.language)}, and this model does not"
            " translate. Transcribe it instead, or say language=en if it is English.",
            param="language",
        )
