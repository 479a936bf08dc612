"""Transcribe a recording with the parameters of its request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parakeet_api.formats.asr_api import AsrParams
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.transcript import Transcript


def transcribe_recording(
    pipeline: Pipeline,
    recording: Path,
    params: TranscriptionParams | AsrParams,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Transcript:
    """Transcribe a recording with the parameters of its request.

    Raises what `Pipeline.transcribe` raises.
    """
    return pipeline.transcribe(
        recording,
        languages=params.languages,
        raw_pcm=isinstance(params, AsrParams) and params.raw_pcm,
        track=params.audio_track,
        allow_partial=params.allow_partial,
        keywords=params.keywords,
        speakers=params.speakers,
        on_progress=on_progress,
        cancelled=cancelled,
    )
