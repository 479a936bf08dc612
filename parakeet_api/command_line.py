"""Transcribe files without a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from parakeet_api.errors import ApiError, SettingsError
from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import ResponseFormat, TranscriptionParams
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.settings import Settings

_EXTENSIONS: Mapping[ResponseFormat, str] = {
    "json": ".json",
    "verbose_json": ".json",
    "text": ".txt",
    "srt": ".srt",
    "vtt": ".vtt",
}


def plan_outputs(
    files: Sequence[Path], *, response_format: ResponseFormat, folder: Path
) -> dict[Path, Path]:
    """Pair each file with the transcript to write into `folder`, which is made.

    Raises `SettingsError` where one would overwrite another's, or the folder cannot be made.
    """
    extension = _EXTENSIONS[response_format]
    outputs = {file: folder / f"{file.stem}{extension}" for file in files}
    recordings = {file.resolve() for file in files}
    claimed: dict[Path, Path] = {}
    for file, output in outputs.items():
        if output.resolve() in recordings:
            raise SettingsError(
                f"the transcript {output} would overwrite a recording: choose another --output-dir"
            )
        other = claimed.setdefault(output.resolve(), file)
        if other is not file:
            raise SettingsError(
                f"the transcripts of {other} and {file} would both be {output}: make one of them"
                " in a run of its own, with another --output-dir"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--output-dir: {error}") from error
    return outputs


def transcribe_files(
    outputs: Mapping[Path, Path],
    *,
    pipeline: Pipeline,
    params: TranscriptionParams,
    settings: Settings,
) -> int:
    """Transcribe each file into its output; count those that failed, which are told on stderr."""
    failed = 0
    for file, output in outputs.items():
        try:
            body = _transcribe(file, pipeline, params, settings)
            output.write_text(body, encoding="utf-8")
        except (ApiError, OSError) as error:
            failed += 1
            print(f"{file}: {error}", file=sys.stderr)
        else:
            print(output)
    return failed


def _transcribe(
    file: Path, pipeline: Pipeline, params: TranscriptionParams, settings: Settings
) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist or is no file")
    layout = "{desc}: {n:.0f} s of audio in {elapsed}"
    with tqdm(desc=file.name, unit="s", bar_format=layout) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.done_s - bar.n)

        transcript = pipeline.transcribe(
            file,
            languages=params.languages,
            track=params.audio_track,
            allow_partial=params.allow_partial,
            on_progress=show,
        )
    for caveat in transcript.caveats:
        print(f"{file}: {caveat.message}", file=sys.stderr)
    return render(transcript, params, settings=settings).body
