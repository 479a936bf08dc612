"""One transcription of an upload."""

from __future__ import annotations

from pathlib import Path

from flask import Response

from parakeet_api.audio.decoder import TrackChoice
from parakeet_api.errors import (
    UnsupportedLanguageError,
)
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import Task
from parakeet_api.http.request_log import record
from parakeet_api.http.services import client_gone, services
from parakeet_api.languages import english_name
from parakeet_api.served_models import ServedModel
from parakeet_api.transcript import Transcript


def transcribe_upload(
    upload: Path,
    *,
    model: ServedModel,
    languages: frozenset[str],
    task: Task,
    raw_pcm: bool = False,
    track: TrackChoice = None,
    allow_partial: bool = False,
) -> Transcript:
    """Transcribe an upload when it is its turn, for as long as the client stays."""
    # Fail before decoding if no model exists.
    model.checkpoints.checkpoint()
    cancelled = client_gone()
    with services().admission.slot(cancelled=cancelled):
        transcript = model.pipeline.transcribe(
            upload,
            languages=languages,
            raw_pcm=raw_pcm,
            track=track,
            allow_partial=allow_partial,
            cancelled=cancelled,
        )
    record().audio_s = transcript.duration
    check_translatable(transcript, task)
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
