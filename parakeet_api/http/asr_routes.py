"""The endpoints of whisper-asr-webservice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from flask import Blueprint, Response, request
from werkzeug.datastructures import CombinedMultiDict

from parakeet_api.errors import AudioDecodeError
from parakeet_api.formats.asr_api import (
    AsrParams,
    DetectedLanguage,
    describe_language,
    parse_asr_params,
    render_asr,
)
from parakeet_api.http.auth import require_api_key
from parakeet_api.http.error_answers import answer_error
from parakeet_api.http.received_form import received_form
from parakeet_api.http.services import chosen_model, client_gone, services
from parakeet_api.http.speaker_references import decode_reference
from parakeet_api.http.transcription import answer, transcribe_upload
from parakeet_api.served_models import ServedModel
from parakeet_api.transcript import Word

asr_api = Blueprint("asr", __name__)
asr_api.before_request(require_api_key)

_FILE = "audio_file"
_ENOUGH_WORDS = 40
"""Words that suffice to detect a language."""
_MAX_OPENING_S = 600.0
"""A film may begin with minutes of music."""


@asr_api.post("/asr")
def asr() -> Response:
    """Transcribe one upload."""
    upload, model, params = _received()
    transcript = transcribe_upload(upload, params, model=model)
    return answer(render_asr(transcript, params, settings=services().settings))


@asr_api.post("/detect-language")
def detect_language() -> DetectedLanguage:
    """Detect the language of a recording's first words."""
    upload, model, params = _received()
    model.checkpoints.checkpoint()
    words: list[Word] = []
    gone = client_gone()
    with (
        services().admission.slot(cancelled=gone),
        closing(
            model.pipeline.stream(
                upload,
                languages=params.languages,
                raw_pcm=params.raw_pcm,
                track=params.audio_track,
                allow_partial=params.allow_partial,
                cancelled=gone,
            )
        ) as stream,
    ):
        for progress in stream:
            words.extend(progress.words)
            if len(words) >= _ENOUGH_WORDS or progress.done_s >= _MAX_OPENING_S:
                break
    return describe_language(words, candidates=params.languages)


@asr_api.errorhandler(AudioDecodeError)
def name_the_field(error: AudioDecodeError) -> Response:
    """Name this endpoint's file field in the error."""
    error.param = _FILE
    return answer_error(error)


def _received() -> tuple[Path, ServedModel, AsrParams]:
    """Receive the upload, its model and the parameters, which some clients send in the form."""
    services().admission.refuse_if_full()
    form = received_form(_FILE)
    parameters = CombinedMultiDict([request.args, form.fields])
    model = chosen_model(parameters)
    params = parse_asr_params(
        parameters, languages=model.languages, decode_reference=decode_reference
    )
    model.check_keywords(params.keywords, param="hotwords[]")
    services().models.check_diarizer(params.speakers)
    return form.upload, model, params
