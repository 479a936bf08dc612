"""The command line: parse its arguments; transcribe files without a server.

`app.py archive` and `app.py deploy` need Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from parakeet_api import __version__
from parakeet_api.archive.run import run_archive
from parakeet_api.archive.worker import ArchiveTask
from parakeet_api.errors import ApiError, InvalidRequestError, SettingsError
from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import TranscriptionParams, parse_track
from parakeet_api.formats.speaker_params import EXTENSIONS, ResponseFormat
from parakeet_api.formats.transcribe import transcribe_recording
from parakeet_api.keywords import Keyword, parse_keywords
from parakeet_api.model.checkpoints import BundledModels
from parakeet_api.model.keyword_trees import read_keywords_file
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.scale.remote_recognizer import deploy_models
from parakeet_api.served_models import ServedModels
from parakeet_api.settings import Settings
from parakeet_api.transcript import ChannelChoice, SpeakerRequest


@dataclass(frozen=True, slots=True)
class TranscribeCommand:
    """The arguments of `app.py transcribe`; all paths are absolute."""

    files: tuple[Path, ...]
    output_dir: Path
    params: TranscriptionParams
    model: str | None
    """A name as in `MODELS`; `None` = as the settings say."""

    def plan_outputs(self) -> dict[Path, Path]:
        """Map each file to its transcript; see the function `plan_outputs`."""
        return plan_outputs(
            self.files, response_format=self.params.response_format, folder=self.output_dir
        )

    def run(self, outputs: Mapping[Path, Path], *, models: ServedModels, settings: Settings) -> int:
        """Transcribe the files; return the exit status of the process.

        Raises what `CheckpointStore.checkpoint` raises.
        """
        model = models.first
        models.check_diarizer(self.params.speakers)
        model.checkpoints.wait_until_decided()
        model.checkpoints.checkpoint()
        failed = transcribe_files(
            outputs,
            pipeline=model.pipeline,
            params=dataclasses.replace(self.params, languages=model.languages),
            settings=settings,
        )
        return 1 if failed else 0


@dataclass(frozen=True, slots=True)
class ArchiveCommand:
    """The arguments of `app.py archive`; paths are absolute."""

    source: str
    target: str
    formats: tuple[ResponseFormat, ...]
    workers: int | None
    retry_failed: bool
    model: str | None

    def run(self, settings: Settings, *, bundled: BundledModels, root: Path) -> int:
        """Transcribe the archive; return the exit status of the process.

        Raises what `run_archive` raises.
        """
        task = ArchiveTask(
            source=self.source,
            target=self.target,
            formats=self.formats,
            params=TranscriptionParams(),
            settings=settings,
            bundled=bundled,
            root=root,
        )
        return run_archive(task, workers=self.workers, retry_failed=self.retry_failed)


@dataclass(frozen=True, slots=True)
class DeployCommand:
    """`app.py deploy`, which has no arguments."""

    model: None = None

    def run(self, settings: Settings, *, bundled: BundledModels, root: Path) -> int:
        """Start or update the replicas of all models; return the exit status of the process.

        Raises what `deploy_models` raises.
        """
        deploy_models(settings, bundled=bundled, root=root)
        return 0


Command = TranscribeCommand | ArchiveCommand | DeployCommand


def parse_arguments(arguments: Sequence[str] | None) -> Command | None:
    """Parse the command line, `sys.argv` by default; `None` = serve.

    Exits with a message if the arguments are invalid.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "deploy":
        return DeployCommand()
    if options.command == "archive":
        return ArchiveCommand(
            source=_absolute(options.source),
            target=_absolute(options.target),
            formats=options.format,
            workers=options.workers,
            retry_failed=options.retry_failed,
            model=options.model,
        )
    if options.command != "transcribe":
        return None
    try:
        keywords = _keywords(options.keyword, options.keywords_file)
        speakers = _speakers(options)
    except (InvalidRequestError, SettingsError) as error:
        parser.error(str(error))
    return TranscribeCommand(
        files=tuple(file.absolute() for file in options.files),
        output_dir=options.output_dir.absolute(),
        params=TranscriptionParams(
            response_format=options.format,
            audio_track=options.audio_track,
            allow_partial=options.allow_partial,
            keywords=keywords,
            speakers=speakers,
        ),
        model=options.model,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Speech-to-text server around NVIDIA's Parakeet-TDT."
    )
    parser.add_argument("--version", action="version", version=f"parakeet-api {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve the HTTP API and the page (the default)")
    files = commands.add_parser("transcribe", help="transcribe files without a server")
    files.add_argument("files", nargs="+", type=Path, metavar="FILE")
    files.add_argument("--format", choices=get_args(ResponseFormat), default="text")
    files.add_argument(
        "--model", metavar="NAME", help="as in MODELS; the default is the server's own choice"
    )
    files.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR")
    files.add_argument(
        "--audio-track",
        type=_audio_track,
        metavar="N",
        help="which sound track, from 1, or all of them mixed; the default is a player's choice",
    )
    files.add_argument(
        "--allow-partial",
        action="store_true",
        help="transcribe a file that is cut short as far as it goes",
    )
    files.add_argument(
        "--keyword",
        action="append",
        default=[],
        metavar="PHRASE",
        help="a name or term that may be said, also as PHRASE:WEIGHT; may be repeated",
    )
    files.add_argument(
        "--keywords-file", type=Path, metavar="FILE", help="more of them, one a line"
    )
    files.add_argument(
        "--diarize",
        action="store_true",
        help="tell voices apart; --format diarized_json does so too",
    )
    files.add_argument(
        "--channels",
        choices=get_args(ChannelChoice),
        default="mix",
        help="separate: transcribe each channel apart, as a speaker of its own; auto: do so if they"
        " hold different speech",
    )
    files.add_argument(
        "--max-speakers", type=int, metavar="N", help="how many voices --diarize gives words to"
    )
    _add_archive(commands)
    commands.add_parser(
        "deploy", help="start the replicas on the cluster of RAY_ADDRESS, or update them"
    )
    return parser


def _add_archive(commands: Any) -> None:
    archive = commands.add_parser(
        "archive", help="transcribe all files of a folder or an fsspec address, on Ray"
    )
    archive.add_argument("source", metavar="INPUT")
    archive.add_argument("target", metavar="OUTPUT")
    archive.add_argument(
        "--format", type=_formats, default=("json",), metavar="F,F", help="such as srt,json"
    )
    archive.add_argument("--model", metavar="NAME", help="as in MODELS")
    archive.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes with a model each; the default is one for each GPU, or one",
    )
    archive.add_argument(
        "--retry-failed", action="store_true", help="try files again that failed in an earlier run"
    )


def _formats(text: str) -> tuple[ResponseFormat, ...]:
    # The workers of an archive load no speaker model.
    known: tuple[ResponseFormat, ...] = tuple(
        name for name in get_args(ResponseFormat) if name != "diarized_json"
    )
    names = dict.fromkeys(name.strip() for name in text.split(","))
    formats = tuple(name for name in known if name in names)
    if len(formats) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(known)}")
    if len({EXTENSIONS[name] for name in formats}) < len(formats):
        raise argparse.ArgumentTypeError(f"{text!r}: json and verbose_json make the same file")
    return formats


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers")
    return int(text)


def _absolute(address: str) -> str:
    """Return a path as an absolute one, and another address as it is."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def _speakers(options: argparse.Namespace) -> SpeakerRequest:
    """Return what the arguments ask about speakers. Raises `InvalidRequestError`."""
    by_format = options.format == "diarized_json" and options.channels != "separate"
    if options.diarize and options.format == "json":
        raise InvalidRequestError("--diarize: json has no speakers; diarized_json has")
    if options.max_speakers is not None and options.max_speakers < 1:
        raise InvalidRequestError(f"--max-speakers={options.max_speakers} is less than 1")
    return SpeakerRequest(
        channels=options.channels,
        diarize=options.diarize or by_format,
        max_speakers=options.max_speakers,
    )


def _keywords(phrases: Sequence[str], file: Path | None) -> tuple[Keyword, ...]:
    """Gather the phrases of both arguments."""
    listed = read_keywords_file(file, name="--keywords-file") if file else ()
    return (*parse_keywords(phrases, param="--keyword"), *listed)


def _audio_track(text: str) -> int | str | None:
    try:
        return parse_track(text)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def plan_outputs(
    files: Sequence[Path], *, response_format: ResponseFormat, folder: Path
) -> dict[Path, Path]:
    """Map each file to its transcript in `folder`, which is created.

    Raises `SettingsError` if a transcript would overwrite another file, or if the folder cannot be
    created.
    """
    extension = EXTENSIONS[response_format]
    outputs = {file: folder / f"{file.stem}{extension}" for file in files}
    recordings = {file.resolve() for file in files}
    file_of_output: dict[Path, Path] = {}
    for file, output in outputs.items():
        if output.resolve() in recordings:
            raise SettingsError(
                f"the transcript {output} would overwrite a recording: choose another --output-dir"
            )
        other = file_of_output.setdefault(output.resolve(), file)
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
    """Transcribe each file to its output; report failures on stderr and return their number."""
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

        transcript = transcribe_recording(pipeline, file, params, on_progress=show)
    for caveat in transcript.caveats:
        print(f"{file}: {caveat.message}", file=sys.stderr)
    return render(transcript, params, settings=settings).body
