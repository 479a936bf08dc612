"""One transcription as server-sent events."""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain
from pathlib import Path

from flask import Response

from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.formats.server_sent_events import MEDIA_TYPE, EventWriter
from parakeet_api.formats.transcribe import transcribe_recording
from parakeet_api.http.background import Cancelled, Emit, in_background
from parakeet_api.http.error_answers import as_api_error
from parakeet_api.http.received_form import take_over
from parakeet_api.http.request_log import CLIENT_GONE, record
from parakeet_api.http.services import client_gone, services
from parakeet_api.http.transcription import check_translatable
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.served_models import ServedModel

_HEARTBEAT_S = 5.0
"""Interval of heartbeats: proxies close connections without data after 30 to 60 s."""
_PROGRESS_S = 1.0
"""The same for a client that displays progress."""


class StreamedTranscription:
    """One streamed request: a worker thread transcribes, the request's thread writes the events.

    It owns the upload until the worker has ended.
    """

    def __init__(self, upload: Path, params: TranscriptionParams, *, model: ServedModel) -> None:
        """Take over the upload of the current request.

        Raises `ModelNotReadyError` if there is no model yet.
        """
        model.checkpoints.checkpoint()
        wired = services()
        self._params = params
        self._model = model
        self._admission = wired.admission
        self._writer = EventWriter(params, settings=wired.settings)
        self._record = record()
        self._gone = client_gone()
        self._upload = take_over(upload)

    def response(self) -> Response:
        """Start the transcription and return the response with its events.

        Raises errors that occur before the first event, which get their own HTTP status.
        """
        events = in_background(
            self._transcribe,
            gone=self._gone,
            heartbeat_s=_PROGRESS_S if "progress" in self._params.include else _HEARTBEAT_S,
        )
        try:
            first = next(events)
        except BaseException:
            # Also where no thread could be started for the work, which deletes it otherwise.
            self._discard_upload()
            raise
        response = Response(self._written(first, events), content_type=MEDIA_TYPE)
        response.call_on_close(events.close)
        response.headers["Cache-Control"] = "no-cache"
        # Otherwise nginx buffers the events.
        response.headers["X-Accel-Buffering"] = "no"
        return response

    def _transcribe(self, emit: Emit[str], cancelled: Cancelled) -> None:
        """Transcribe, in the worker thread."""

        def emit_some(event: str) -> None:
            if event:
                emit(event)

        path = Path(self._upload.name)
        writer, params = self._writer, self._params
        try:
            with self._admission.slot(
                cancelled=cancelled, on_wait=lambda position: emit_some(writer.queued(position))
            ):
                emit_some(writer.started())
                transcript = transcribe_recording(
                    self._model.pipeline,
                    path,
                    params,
                    on_progress=lambda progress: emit_some(writer.progress(progress)),
                    cancelled=cancelled,
                )
        finally:
            self._discard_upload()
        self._record.audio_s = transcript.duration
        check_translatable(transcript, params.task)
        emit(writer.done(transcript))

    def _discard_upload(self) -> None:
        Path(self._upload.name).unlink(missing_ok=True)
        self._upload.close()

    def _written(self, first: str | None, events: Generator[str | None]) -> Generator[str]:
        """Write the events to their end, which may be an error."""
        try:
            for event in chain([first], events):
                if event is None:
                    is_loading = self._model.slot.state == "loading"
                    yield self._writer.silence(model_is_loading=is_loading)
                else:
                    yield event
        # The second is raised if waitress detects the disconnect while writing.
        except (RequestCancelled, GeneratorExit):
            self._record.failure = CLIENT_GONE
        # The status is already sent, so report the error as an event.
        except Exception as error:
            failure = as_api_error(error, request_id=self._record.id)
            self._record.failure = failure.code or failure.type
            yield self._writer.error(failure)
