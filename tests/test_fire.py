"""Half a minute of the soak test (`make fire` is an hour); requests to a blocked model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE_S, ROOT, SPEECH, wait_until
from http_helpers import ENDPOINT

from benchmarks.faulty_server import Switches
from benchmarks.fire.journal import CUT, Journal
from benchmarks.fire.load import Load
from benchmarks.fire.outcomes import Outcome
from benchmarks.fire.recordings import Question, Recordings
from benchmarks.fire.server import Disk, Server

pytestmark = pytest.mark.integration

PROBES = ("/health", "/health/simple", "/ready", "/metrics")


@pytest.mark.timeout(600)
def test_a_short_soak_test_has_no_findings() -> None:
    command = [sys.executable, "-m", "benchmarks.fire", "--minutes", "0.2", "--seed", "5"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "| server killed | 1 |" in outcome.stdout
    assert "| clip | right |" in outcome.stdout
    assert "| live | right |" in outcome.stdout
    assert outcome.stdout.rstrip().endswith("0 findings")


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[Server]:
    """A server with two threads for requests, whose model is lent and does not answer."""
    server = Server(tmp_path, Disk(tmp_path, is_small=False), APP_THREADS="2")
    server.start()
    server.switch(Switches(recognizer="waits"))
    try:
        yield server
    finally:
        server.kill()


def test_no_probe_waits_for_inference_even_with_every_thread_busy(blocked: Server) -> None:
    clip = (SPEECH / "clip-003.flac").read_bytes()
    with ExitStack() as stack:
        # Two in progress, the rest in the queue, which is then full.
        for _ in range(2 + 64):
            connection = stack.enter_context(blocked.connected())
            connection.sendall(_request(clip))
        wait_until(lambda: _requests(blocked) == (2, 64), what="all are there")

        statuses = {}
        with httpx.Client(base_url=blocked.url, trust_env=False, timeout=PATIENCE_S) as client:
            for path in PROBES * 3:
                statuses[path] = client.get(path).status_code

        # One more request would be refused.
        assert statuses == dict.fromkeys(PROBES, 200) | {"/ready": 503}
        assert _requests(blocked) == (2, 64)


def _requests(server: Server) -> tuple[int, int]:
    queue = server.health()["queue"]
    return queue["active_requests"], queue["waiting_requests"]


def _request(clip: bytes) -> bytes:
    request = httpx.Request("POST", f"http://here{ENDPOINT}", files={"file": clip})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {ENDPOINT} HTTP/1.1\r\n{head}\r\n".encode() + request.read()


CLIP = Question("a.flac", b"", "text", is_long=False)
LONG = Question("long.ogg", b"", "text", is_long=True)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A load that has not begun."""
    server = Server(tmp_path, Disk(tmp_path, is_small=False))
    right = {CLIP: "one two", LONG: " ".join(str(n) for n in range(100))}
    return Load(server, Recordings([CLIP, LONG], [], []), right, Journal(), seed=0)


@pytest.mark.parametrize(
    ("outcome", "question"),
    [
        (Outcome(text="one"), CLIP),
        (Outcome(text="one two three"), CLIP),
        (Outcome(code="internal_error"), CLIP),
        (Outcome(code="500 out of shape: ''"), CLIP),
        (Outcome(code=CUT), None),
        (Outcome(code="internal_error"), None),
        (Outcome(text=" ".join(str(n) for n in range(90))), LONG),
    ],
    ids=str,
)
def test_injected_errors_are_found(load: Load, outcome: Outcome, question: Question | None) -> None:
    with load.journal.fault("little device memory"), load.journal.fault("wall clock set"):
        load.judge("clip", outcome, question, time.monotonic())

    assert len(load.journal.findings) == 1


def test_a_fault_excuses_only_its_own_errors_while_it_lasts(load: Load) -> None:
    with load.journal.fault("recognizer raises"):
        load.judge("clip", Outcome(code="internal_error"), CLIP, time.monotonic())
        assert load.journal.findings == []
        load.judge("clip", Outcome(code="service_unavailable"), CLIP, time.monotonic())
        assert len(load.journal.findings) == 1
    time.sleep(0.01)
    load.judge("clip", Outcome(code="internal_error"), CLIP, time.monotonic())
    assert len(load.journal.findings) == 2


def test_a_graceful_stop_excuses_no_closed_connection_of_earlier_requests(load: Load) -> None:
    began = time.monotonic()
    time.sleep(0.01)
    with load.journal.fault("server stopped"):
        assert not load.journal.excuse(CUT, began, time.monotonic())
        assert load.journal.excuse(CUT, time.monotonic(), time.monotonic())
        assert load.journal.excuse("stopping", began, time.monotonic())
