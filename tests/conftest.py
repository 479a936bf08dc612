"""Fixtures: the real model, the real server on a real port, recordings and their transcripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_gpu import gpu
from fork_server import ServerProcess, StartProcess, can_fork, fork, start_anew
from hypothesis import settings as hypothesis_settings

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model import checkpoints
from parakeet_api.model.checkpoints import GRAMMAR_MODEL, BundledModels
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import Chunk, Pcm

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PATIENCE_S = 240
"""Seconds after which what a test waits for counts as never: no promise, but an end to the test."""
ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "samples" / "speech"
DEMO_MODEL = ROOT / "tests" / "grammar-model" / GRAMMAR_MODEL
"""The tests' own model: small, fast, with exactly known output."""
ENGLISH_MODEL = ROOT / "samples" / "english-model" / checkpoints.ENGLISH_MODEL
"""For tests with recordings of people."""
PEOPLE = ROOT / "samples" / "people"
"""Recordings of people; the reference is in the file of the same name with `.json`."""
REAL_SPEECH = ROOT / "samples" / "real-speech"
"""More of them; `recordings.json` has the references."""
BUNDLED_MODELS = BundledModels(english=ENGLISH_MODEL, grammar=DEMO_MODEL)

__all__ = ["gpu"]

# No deadline, as single examples are slow on a busy machine; their number limits the time.
hypothesis_settings.register_profile("service", deadline=None)
hypothesis_settings.load_profile("service")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", action="store_true", help="make the pictures of the page in docs/ anew"
    )
    parser.addoption(
        "--record", action="store_true", help="write the answers in tests/contract that differ"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no process runs one of them alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Server:
    """A running `app.py`."""

    url: str
    uploads: Path
    log: Path
    process: ServerProcess

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/health", timeout=PATIENCE_S) as answer:
            return json.load(answer)  # type: ignore[no-any-return]


StartServer = Callable[..., Iterator[Server]]


@contextmanager
def running_server(
    folder: Path, program: Sequence[str] = ("app.py",), **environ: str
) -> Iterator[Server]:
    """Run `python app.py` on a free port until the block ends; settings are keywords.

    Where that makes no difference, it is a copy of a process with torch and NeMo imported.
    """
    start = fork if can_fork(program, environ) else start_anew
    with _running(folder, program, environ, start=start) as server:
        yield server


@contextmanager
def new_server(folder: Path, **environ: str) -> Iterator[Server]:
    """Do the same in a process that imports torch and NeMo itself."""
    with _running(folder, ("app.py",), environ, start=start_anew) as server:
        yield server


@contextmanager
def _running(
    folder: Path, program: Sequence[str], environ: Mapping[str, str], *, start: StartProcess
) -> Iterator[Server]:
    uploads, log = folder / "uploads", folder / "server.log"
    defaults = {"HOST": "127.0.0.1", "PORT": "0", "DEMO_MODEL": "grammar"}
    defaults["TEMP_UPLOADS_DIR"] = str(uploads)
    log.write_bytes(b"")
    process = start(program, folder=ROOT, environ=os.environ | defaults | dict(environ), log=log)
    try:
        yield Server(_wait_for_url(process, log), uploads, log, process)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


def _wait_for_url(process: ServerProcess, log: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        listening = re.search(r"listening on (http://[^\s\"]+)", log.read_text(errors="replace"))
        if listening:
            return listening[1]
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')}")


def output_of(
    command: Sequence[str | Path], *, folder: Path, environ: Mapping[str, str] | None = None
) -> str:
    """Run a program in a folder to its end, which must be a success; return its output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the grammar model, shared by tests that only send requests."""
    with new_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a recording in the place of its microphone."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def recognizer() -> NemoRecognizer:
    """The grammar model in this process."""
    return NemoRecognizer.load(DEMO_MODEL, demo_options())


def demo_options(**changes: Any) -> ModelOptions:
    """Return the options that the service loads a small model with on a CPU."""
    options: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "strategy": "greedy",
        "beam_size": 4,
        "longest_s": 60.0,
    }
    return ModelOptions(**(options | changes))


@dataclass(frozen=True)
class Clip:
    """A short recording and its reference text."""

    path: Path
    text: str
    duration_s: float


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    entries = json.loads((SPEECH / "clips.json").read_text())
    return [Clip(SPEECH / entry["file"], entry["text"], entry["duration"]) for entry in entries]


@pytest.fixture(scope="session")
def speech() -> Path:
    """Return the folder of recordings."""
    return SPEECH


@pytest.fixture(scope="session")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One hour of speech as opus: long enough for a test to act during its transcription."""
    folder = tmp_path_factory.mktemp("hour")
    playlist, target = folder / "list.txt", folder / "hour.ogg"
    playlist.write_text(f"file '{SPEECH / 'long-pauses.ogg'}'\n" * 5)
    command = [find_ffmpeg(), "-loglevel", "error", "-f", "concat", "-safe", "0"]
    subprocess.run(
        [*command, "-i", str(playlist), "-c", "copy", str(target)], check=True, timeout=PATIENCE_S
    )
    return target


@pytest.fixture(scope="session")
def decoder() -> FfmpegDecoder:
    return FfmpegDecoder(executable=find_ffmpeg(), max_seconds=12 * 3600)


def decode(decoder: FfmpegDecoder, path: Path) -> Pcm:
    """Read a whole file into memory."""
    return np.concatenate([*decoder.stream(path), np.zeros(0, np.int16)])


def whole(samples: Pcm) -> Chunk:
    """Make one chunk of a whole recording."""
    return Chunk(0, 0, samples, 0, len(samples))


def encode(source: Path, target: Path, *options: str, before: Sequence[str] = ()) -> Path:
    """Convert a recording with ffmpeg; `before` are options that stand before the input."""
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *before]
    command += ["-i", str(source)]
    subprocess.run([*command, *options, str(target)], check=True, timeout=PATIENCE_S)
    return target


def wait_until(condition: Callable[[], object], *, what: str = "what the test waits for") -> None:
    """Wait for a condition, with patience for a busy machine."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.005)
