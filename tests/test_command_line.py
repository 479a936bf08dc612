"""`python app.py transcribe`: files in, files out, no server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import srt  # type: ignore[import-untyped]
from conftest import PATIENCE_S, ROOT, SPEECH, Clip

from parakeet_api import __version__


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "app.py", *map(str, arguments)]


def _environ(folder: Path, **settings: str) -> dict[str, str]:
    return os.environ | {"DEMO_MODEL": "grammar", "TEMP_UPLOADS_DIR": str(folder / "up")} | settings


def _run(folder: Path, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        cwd=ROOT,
        env=_environ(folder, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_version_is_told(tmp_path: Path) -> None:
    assert _run(tmp_path, "--version").stdout == f"parakeet-api {__version__}\n"


def test_each_file_becomes_a_transcript_in_the_folder(tmp_path: Path, clips: list[Clip]) -> None:
    chosen, folder = clips[10:12], tmp_path / "new" / "folder"
    before = set(ROOT.iterdir())

    outcome = _run(
        tmp_path,
        "transcribe",
        *[clip.path for clip in chosen],
        "--format",
        "srt",
        "--output-dir",
        folder,
    )

    assert outcome.returncode == 0, outcome.stderr
    expected = [folder / f"{clip.path.stem}.srt" for clip in chosen]
    assert outcome.stdout.split() == [str(path) for path in expected]
    assert sorted(folder.iterdir()) == expected
    for clip, path in zip(chosen, expected, strict=True):
        cues = list(srt.parse(path.read_text(encoding="utf-8")))
        assert " ".join(cue.content for cue in cues).split() == clip.text.split()
        # Progress, on the other stream.
        assert clip.path.name in outcome.stderr
        assert f"{round(clip.duration_s)} s of audio" in outcome.stderr
    assert set(ROOT.iterdir()) == before


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, clips: list[Clip]) -> None:
    bad, missing, folder = tmp_path / "bad.mp3", tmp_path / "missing.mp3", tmp_path / "out"
    bad.write_text("no sound in here")
    files = [clips[10].path, bad, missing, tmp_path, clips[11].path]

    outcome = _run(
        tmp_path, "transcribe", *files, "--format", "verbose_json", "--output-dir", folder
    )

    assert outcome.returncode == 1
    texts = [json.loads(path.read_text())["text"] for path in sorted(folder.iterdir())]
    assert texts == [clips[10].text, clips[11].text]
    assert f"{bad}: The file holds no sound" in outcome.stderr
    assert f"{missing}: " in outcome.stderr
    assert f"{tmp_path}: " in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stdout.split()) == 2


def test_a_bad_setting_is_one_line_and_status_2(tmp_path: Path, clips: list[Clip]) -> None:
    outcome = _run(tmp_path, "transcribe", clips[10].path, CHUNK_MINITE="many")

    assert outcome.returncode == 2
    assert outcome.stderr.startswith("app.py: CHUNK_MINITE='many' is not ")
    assert outcome.stderr.count("\n") == 1


def test_a_bad_setting_stops_the_server_as_well(tmp_path: Path) -> None:
    outcome = _run(tmp_path, PORT="http")

    assert outcome.returncode == 2
    assert outcome.stderr.startswith("app.py: PORT='http' is not ")
    assert outcome.stderr.count("\n") == 1


class TestNothingIsOverwritten:
    def test_recordings_of_one_name_are_refused_before_the_start(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a" / "talk.flac", tmp_path / "b" / "talk.mp3"]
        for path in paths:
            path.parent.mkdir()
            shutil.copy(SPEECH / "clip-010.flac", path)

        outcome = _run(tmp_path, "transcribe", *paths, "--output-dir", tmp_path / "out")

        assert outcome.returncode == 2
        assert str(paths[0]) in outcome.stderr
        assert str(paths[1]) in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_a_transcript_does_not_replace_a_recording(self, tmp_path: Path) -> None:
        recording = tmp_path / "talk.txt"
        shutil.copy(SPEECH / "clip-010.flac", recording)

        outcome = _run(tmp_path, "transcribe", recording, "--output-dir", tmp_path)

        assert outcome.returncode == 2
        assert "would overwrite a recording" in outcome.stderr
        assert recording.read_bytes() == (SPEECH / "clip-010.flac").read_bytes()

    def test_a_folder_that_cannot_be_made_is_one_line(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        taken = tmp_path / "taken"
        taken.write_text("mine")

        outcome = _run(tmp_path, "transcribe", clips[10].path, "--output-dir", taken)

        assert outcome.returncode == 2
        assert outcome.stderr.startswith("app.py: --output-dir: ")
        assert outcome.stderr.count("\n") == 1
        assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [["transcribe"], ["transcribe", "a.flac", "--format", "docx"], ["translate", "a.flac"]],
    ids=" ".join,
)
def test_invalid_arguments_print_the_usage(tmp_path: Path, arguments: list[str]) -> None:
    outcome = _run(tmp_path, *arguments)

    assert outcome.returncode == 2
    assert outcome.stderr.startswith("usage: app.py")


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """A shell's background jobs ignore Ctrl-C, and so would a process that one of them starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_counts")
def test_ctrl_c_exits_without_a_traceback_and_leaves_no_partial_transcript(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen(
        _command("transcribe", SPEECH / "long-pauses.ogg", "--output-dir", folder),
        cwd=ROOT,
        env=_environ(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        assert process.stderr is not None
        output = b""
        while b"s of audio" not in output:
            # The bar's first state: the file is open.
            block = os.read(process.stderr.fileno(), 65536)
            assert block, output
            output += block
        process.send_signal(signal.SIGINT)
        output += process.stderr.read()
        status = process.wait(timeout=PATIENCE_S)

    assert status == 128 + signal.SIGINT
    assert b"Traceback" not in output
    assert list(folder.iterdir()) == []
