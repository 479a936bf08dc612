"""The endpoints of whisper-asr-webservice."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.datastructures import CombinedMultiDict

from parakeet_api.errors import AudioDecodeError
from parakeet_api.formats.asr_api import AsrParams, describe_language, parse_asr_params, render_asr
from parakeet_api.http.web import (
    answer,
    answer_error,
    chosen_model,
    client_gone,
    received_file,
    refuse_if_full,
    require_api_key,
    services,
    transcribe_upload,
)
from parakeet_api.served_models import ServedModel
from parakeet_api.transcript import Word

asr_api = Blueprint("asr", __name__)
asr_api.before_request(require_api_key)
asr_api.before_request(refuse_if_full)

_FILE = "audio_file"
_ENOUGH_WORDS = 40
"""Words that tell a language for sure."""
_LONGEST_OPENING_S = 600.0
"""A film may begin with minutes of music."""


@asr_api.post("/asr")
def asr() -> Response:
    """Transcribe one upload."""
    upload, model, params = _received()
    transcript = transcribe_upload(
        upload,
        model=model,
        languages=params.languages,
        task=params.task,
        raw_pcm=params.raw_pcm,
        track=params.audio_track,
        allow_partial=params.allow_partial,
    )
    return answer(render_asr(transcript, params, settings=services().settings))


@asr_api.post("/detect-language")
def detect_language() -> Mapping[str, Any]:
    """Tell the language of a recording's first words."""
    upload, model, params = _received()
    model.checkpoints.checkpoint()
    words: list[Word] = []
    gone = client_gone()
    with (
        services().admission.place(cancelled=gone),
        closing(
            model.pipeline.stream(
                upload,
                raw_pcm=params.raw_pcm,
                track=params.audio_track,
                allow_partial=params.allow_partial,
                cancelled=gone,
            )
        ) as stream,
    ):
        for progress in stream:
            words.extend(progress.words)
            if len(words) >= _ENOUGH_WORDS or progress.done_s >= _LONGEST_OPENING_S:
                break
    return describe_language(words, candidates=params.languages)


@asr_api.errorhandler(AudioDecodeError)
def name_the_field(error: AudioDecodeError) -> Response:
    """Answer with the name that the file has here."""
    error.param = _FILE
    return answer_error(error)


def _received() -> tuple[Path, ServedModel, AsrParams]:
    """Take the upload, its model and the parameters: the query's, or of some clients the form's."""
    upload = received_file(_FILE)
    parameters = CombinedMultiDict([request.args, request.form])
    model = chosen_model(parameters)
    return upload, model, parse_asr_params(parameters, languages=model.languages)
