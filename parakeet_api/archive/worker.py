"""A worker of the pool: one process with one model, which transcribes some files at a time."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.archive.files import Files
from parakeet_api.archive.manifest import Entry
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import EXIT_DEVICE_LOST, ApiError, DeviceLostError
from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.formats.speaker_params import EXTENSIONS, ResponseFormat
from parakeet_api.formats.transcribe import transcribe_recording
from parakeet_api.metrics import Metrics
from parakeet_api.model.checkpoints import BundledModels
from parakeet_api.model.devices import available_cores, decoding_workers, find_gpu
from parakeet_api.served_models import ServedModels
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveTask:
    """What to do with an archive's files."""

    source: str
    """Where the recordings are: a folder, or another `fsspec` address."""
    target: str
    """Where the transcripts go."""
    formats: tuple[ResponseFormat, ...]
    """Each makes one file for a recording."""
    params: TranscriptionParams
    settings: Settings
    """With `MODELS` set to the model, if one was named."""
    bundled: BundledModels
    root: Path
    """The folder of the program, on all machines of the cluster."""


class ArchiveWorker:
    """Transcribe files; thread-safe, so that batches of the model hold chunks of several files."""

    def __init__(self, task: ArchiveTask) -> None:
        """Set up the model, which the first file loads. Raises what `CheckpointStore` raises."""
        gpu = find_gpu(task.settings.device)
        cores = available_cores()
        local = dataclasses.replace(
            task.settings.for_device(detected_vram_gb=gpu.total_gb if gpu else None, cores=cores),
            ray_address=None,
        )
        self._task = task
        self._settings = local
        self._source, self._target = Files(task.source), Files(task.target)
        models = ServedModels.from_settings(
            local,
            gpu=gpu,
            decoder=FfmpegDecoder.from_settings(local, workers=decoding_workers(gpu, cores)),
            bundled=task.bundled,
            root=task.root,
            metrics=Metrics(),
            on_device_lost=_end,
        )
        self._model = models.first
        self._model.checkpoints.wait_until_decided()
        self._model.checkpoints.checkpoint()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Transcribe the file of a row; give its manifest entry as a row."""
        return {"line": self.transcribe(str(row["file"])).line()}

    def transcribe(self, name: str) -> Entry:
        """Write a file's transcripts, all of them or an error."""
        started = time.monotonic()
        try:
            entry = self._transcribe(name)
        except DeviceLostError:
            raise
        except (ApiError, OSError) as error:
            entry = Entry(file=name, status="failed", error=str(error))
        # Process boundary: an error of one file must not end the archive.
        except Exception as error:
            logger.exception("%s", name)
            entry = Entry(file=name, status="failed", error=f"{type(error).__name__}: {error}")
        return dataclasses.replace(entry, seconds=round(time.monotonic() - started, 3))

    def _transcribe(self, name: str) -> Entry:
        params = dataclasses.replace(self._task.params, languages=self._model.languages)
        with self._source.local(name) as recording:
            transcript = transcribe_recording(self._model.pipeline, recording, params)
        for response_format in self._task.formats:
            wanted = dataclasses.replace(params, response_format=response_format)
            body = render(transcript, wanted, settings=self._settings).body
            self._target.write(output_name(name, response_format), body.encode())
        return Entry(
            file=name,
            status="done",
            duration_s=round(transcript.duration, 3),
            words=len(transcript.words),
            warnings=tuple(caveat.code for caveat in transcript.caveats),
        )


def output_name(name: str, response_format: ResponseFormat) -> str:
    """Return the name of a file's transcript; the extension stays, so that no two are the same."""
    return name + EXTENSIONS[response_format]


def _end() -> None:
    """End the process; Ray starts another worker, which takes the files again."""
    logging.shutdown()
    os._exit(EXIT_DEVICE_LOST)
