from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE_S, ROOT, SPEECH, running_server

from parakeet_api.http.uploads import create_upload, hold_upload, sweep_uploads

pytestmark = pytest.mark.integration


def test_uploads_of_this_process_stay(tmp_path: Path) -> None:
    upload = create_upload(tmp_path)

    sweep_uploads(tmp_path)

    assert Path(upload.name).exists()
    upload.close()
    sweep_uploads(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_is_held_stays_when_its_first_handle_closes(tmp_path: Path) -> None:
    upload = create_upload(tmp_path)
    held = hold_upload(Path(upload.name))
    upload.close()

    sweep_uploads(tmp_path)
    assert Path(held.name).exists()

    held.close()
    sweep_uploads(tmp_path)
    assert not Path(held.name).exists()


def test_uploads_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from parakeet_api.http.uploads import create_upload;"
        " create_upload(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 1

    sweep_uploads(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "upload-folder").mkdir()

    sweep_uploads(tmp_path)

    assert len(list(tmp_path.iterdir())) == 3


ELSEWHERE = """
import os
import app
from parakeet_api import served_models

load = served_models.load_recognizer

def moved(*args, **kwargs):
    # As NeMo does while it restores a checkpoint, for longer than any load takes.
    os.chdir(os.path.dirname(os.__file__))
    return load(*args, **kwargs)

served_models.load_recognizer = moved
os._exit(app.main())
"""


def test_uploads_and_jobs_go_on_where_a_load_changes_the_working_directory(tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path / "here", ROOT)
    clip = (SPEECH / "clip-001.flac").read_bytes()

    with running_server(tmp_path, ("-c", ELSEWHERE), TEMP_UPLOADS_DIR=relative) as server:
        for _ in range(2):
            answer = httpx.post(
                f"{server.url}/v1/audio/transcriptions",
                files={"file": ("clip.ogg", clip)},
                timeout=PATIENCE_S,
            )
            assert answer.status_code == 200, answer.text
        job = httpx.post(
            f"{server.url}/v1/jobs", files={"file": ("clip.flac", clip)}, timeout=PATIENCE_S
        )
        assert job.status_code < 300, job.text
