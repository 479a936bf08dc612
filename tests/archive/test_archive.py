"""`app.py archive`, with a worker killed in the middle, and the command killed and run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Clip, wait_until
from ray_cluster import ray

from parakeet_api.archive.files import Files
from parakeet_api.archive.manifest import Entry, read_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.integration]
assert ray

_COPIES = 4
_CLIPS = 20
"""The first ones: the model recognises each of them without an error."""


@dataclass
class Archive:
    source: Path
    target: Path
    texts: dict[str, str]
    """The known text of each recording."""
    first: dict[str, Entry]
    """The manifest after the first run was killed."""
    second: subprocess.CompletedProcess[str]

    def entries(self) -> list[dict[str, object]]:
        """List the lines of the manifest."""
        parts = sorted((self.target / "manifest").iterdir())
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def command(archive: Path, target: Path) -> list[str]:
    arguments = ["archive", str(archive), str(target), "--format", "srt,json", "--workers", "1"]
    return [sys.executable, "app.py", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"DEMO_MODEL": "grammar", "DEVICE": "cpu", "RAY_REPLICA_GPUS": "0"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> Archive:
    source, target = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("texts")
    texts = {}
    for copy in range(_COPIES):
        for clip in clips[:_CLIPS]:
            name = f"{copy}/{clip.path.name}"
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(clip.path, source / name)
            texts[name] = clip.text
    (source / "letter.pdf").write_bytes(b"no recording")
    first = run_and_kill(source, target)
    second = subprocess.run(
        command(source, target),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Archive(source, target, texts, first, second)


def run_and_kill(source: Path, target: Path) -> dict[str, Entry]:
    """Kill a worker after some files, and the command after some more; give the manifest then."""
    log = target.parent / "first.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(source, target),
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def is_at(count: int) -> bool:
        assert process.poll() is None, log.read_text()[-5000:]
        return len(read_manifest(Files(str(target)))) >= count

    wait_until(lambda: is_at(3), what="the first files")
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "MapWorker" in "".join(child.cmdline())]
    assert workers
    for worker in workers:
        worker.kill()
    done = len(read_manifest(Files(str(target))))
    wait_until(lambda: is_at(done + 9), what="files after the end of a worker")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_alive, children)), what="the end of its cluster")
    return read_manifest(Files(str(target)))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_recording_has_its_words(archive: Archive) -> None:
    told = {
        name: json.loads((archive.target / f"{name}.json").read_text())["text"]
        for name in archive.texts
    }

    assert told == archive.texts
    assert all((archive.target / f"{name}.srt").stat().st_size for name in archive.texts)


def test_no_file_is_done_twice(archive: Archive) -> None:
    names = [entry["file"] for entry in archive.entries()]

    assert sorted(map(str, names)) == sorted([*archive.texts, "letter.pdf"])


def test_a_run_goes_on_where_the_one_before_was_killed(archive: Archive) -> None:
    assert 12 <= len(archive.first) < len(archive.texts)
    assert f"{len(archive.first)} of them done before" in archive.second.stderr


def test_a_file_without_sound_fails_alone_and_is_reported(archive: Archive) -> None:
    [failed] = [entry for entry in archive.entries() if entry["status"] == "failed"]

    assert failed["file"] == "letter.pdf"
    assert f"letter.pdf: {failed['error']}" in archive.second.stdout
    assert f"{len(archive.texts)} files done, 1 failed" in archive.second.stdout
    assert archive.second.returncode == 1


def test_nothing_else_is_left_in_the_folder(archive: Archive) -> None:
    transcripts = {f"{name}.{ending}" for name in archive.texts for ending in ("srt", "json")}

    names = set(Files(str(archive.target)).names())

    assert {name for name in names if not name.startswith("manifest/")} == transcripts
