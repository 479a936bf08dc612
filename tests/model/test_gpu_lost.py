"""A GPU that refuses all further work ends the server, which the container starts again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE_S, SPEECH, Server, running_server

from parakeet_api.errors import EXIT_DEVICE_LOST

pytestmark = pytest.mark.integration

PROGRAM = """
import os
import app, torch
from parakeet_api.model import recognizer

def broken(self, chunks):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

# Simulated: a kernel that fails, and a GPU that fails from then on.
recognizer.NemoRecognizer._pass = broken
recognizer.context_is_lost = lambda device: True
status = app.main()
os._exit(status)
"""


def ask(server: Server) -> httpx.Response | None:
    """Send a clip; `None` if the server had ended before it had the whole request."""
    with (SPEECH / "clip-001.flac").open("rb") as file:
        url = f"{server.url}/v1/audio/transcriptions"
        try:
            return httpx.post(url, files={"file": file}, timeout=PATIENCE_S)
        except httpx.TransportError:
            return None


@pytest.mark.parametrize("lazily", ["true", "false"])
def test_requests_get_503_and_the_process_ends_with_its_own_status(
    tmp_path: Path, lazily: str
) -> None:
    # Longer than the test: nothing may be waited for.
    environ = {"ENABLE_LAZY_LOAD": lazily, "STOP_GRACE_SECONDS": "600"}
    with running_server(tmp_path, ("-c", PROGRAM), **environ) as server:
        with ThreadPoolExecutor(3) as clients:
            responses = list(clients.map(lambda _: ask(server), range(3)))
        answers = [answer for answer in responses if answer is not None]
        status = server.process.wait(timeout=PATIENCE_S)

    codes = {answer.json()["error"]["code"] for answer in answers}
    assert {answer.status_code for answer in answers} == {503}
    assert all(answer.headers["Retry-After"] for answer in answers)
    assert "device_lost" in codes
    assert codes <= {"device_lost", "stopping"}, "who came later was refused"
    assert status == EXIT_DEVICE_LOST == 70
    log = server.log.read_text()
    assert "the GPU refuses all further work" in log
    assert "an illegal memory access was encountered" in log


def test_a_gpu_lost_before_serving_ends_the_start_with_that_status(tmp_path: Path) -> None:
    program = PROGRAM.replace(
        "recognizer.NemoRecognizer._pass = broken", "recognizer.load_model = broken"
    )
    with (
        pytest.raises(RuntimeError, match=r"The GPU has failed"),
        running_server(tmp_path, ("-c", program), ENABLE_LAZY_LOAD="false") as server,
    ):
        assert server.process.wait(timeout=PATIENCE_S) == EXIT_DEVICE_LOST
