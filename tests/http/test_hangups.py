"""Clients that disconnect: no resource leaks, and the next client is served."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import Clip, Server, running_server, wait_until
from http_helpers import (
    CURL,
    ENDPOINT,
    connect,
    events,
    ffmpegs,
    is_idle,
    multipart,
    needs_curl,
    post,
    post_head,
    streamed,
    transcribe,
    uploads,
    waiting_chunks,
)

pytestmark = pytest.mark.integration

_RESET = struct.pack("ii", 1, 0)
"""For `SO_LINGER`: a close is a reset, as of a machine that lost its network."""


@dataclass(frozen=True)
class Kind:
    """A kind of request, as curl sends it."""

    fields: tuple[str, ...] = ()
    path: str = ENDPOINT
    file_field: str = "file"

    @property
    def streams(self) -> bool:
        return "stream=true" in self.fields


KINDS = {
    "json": Kind(),
    "srt": Kind(("response_format=srt",)),
    "stream": Kind(("stream=true",)),
    "stream with progress": Kind(
        ("stream=true", "response_format=verbose_json", "include[]=progress", "include[]=peaks")
    ),
    "translation": Kind(path="/v1/audio/translations"),
    "streamed translation": Kind(("stream=true",), path="/v1/audio/translations"),
    "asr": Kind(path="/asr", file_field="audio_file"),
}


@pytest.fixture(scope="module")
def settled(server: Server, hour: Path) -> Server:
    """The server once both inference threads have had work: torch starts threads of its own."""
    with post(server, hour.read_bytes()):
        wait_until(lambda: waiting_chunks(server) > 2, what="it is at work")
    wait_until(lambda: is_idle(server), what="its work has ended")
    return server


@pytest.fixture
def leaves_nothing(settled: Server, clip: Clip) -> Iterator[None]:
    """Check that after a test the server is as it was before."""
    process = psutil.Process(settled.process.pid)
    threads, descriptors = _threads(process), process.num_fds()
    recognized_s = _recognized_s(settled)
    yield
    _wait_until_idle(settled)
    assert _recognized_s(settled) - recognized_s < 3600, "an hour was sent, and not waited for"
    wait_until(lambda: _threads(process) <= threads, what="threads end")
    wait_until(lambda: process.num_fds() <= descriptors, what="files are closed")
    assert transcribe(settled, clip.path).json()["text"] == clip.text
    assert "Traceback" not in settled.log.read_text()


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[10]


def _threads(process: psutil.Process) -> int:
    """Count the threads except jemalloc's, which start at any time."""
    names = []
    for path in Path(f"/proc/{process.pid}/task").glob("*/comm"):
        # It may end before it is looked at.
        with suppress(OSError):
            names.append(path.read_text())
    return sum(not name.startswith("jemalloc") for name in names)


def _wait_until_idle(server: Server) -> None:
    wait_until(lambda: is_idle(server), what="the work has ended")


def _recognized_s(server: Server) -> float:
    """Read how much audio the server has recognised since its start."""
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    value = re.search(r"^parakeet_audio_seconds_total (\S+)$", metrics, re.MULTILINE)
    assert value
    return float(value[1])


@contextmanager
def _curl(
    server: Server, kind: Kind, recording: Path, *options: str
) -> Iterator[subprocess.Popen[str]]:
    """Send a request with curl, which is killed when the block ends."""
    fields = [f"{kind.file_field}=@{recording}", *kind.fields]
    form = [option for field in fields for option in ("-F", field)]
    with subprocess.Popen(
        [*CURL, *options, f"{server.url}{kind.path}", *form], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_until_at_work(server: Server) -> None:
    wait_until(
        lambda: waiting_chunks(server) and ffmpegs(server),
        what="the recording is worked on",
    )


@needs_curl
@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("name", KINDS)
def test_a_client_that_is_killed_costs_nothing_more(settled: Server, hour: Path, name: str) -> None:
    with _curl(settled, KINDS[name], hour) as client:
        if KINDS[name].streams:
            assert client.stdout is not None
            assert next(events(client.stdout))["type"].startswith("transcript.")
        _wait_until_at_work(settled)
        assert len(uploads(settled)) == 1


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["at once", "stream"])
def test_a_connection_that_is_reset_costs_nothing_more(
    settled: Server, hour: Path, fields: dict[str, str]
) -> None:
    with post(settled, hour.read_bytes(), **fields) as connection:
        _wait_until_at_work(settled)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["at once", "stream"])
def test_many_disconnected_clients_cost_nothing_more(
    settled: Server, hour: Path, fields: dict[str, str]
) -> None:
    content = hour.read_bytes()
    for _ in range(5):
        with post(settled, content, **fields):
            wait_until(
                lambda: settled.health()["queue"]["active_requests"],
                what="it has its turn",
            )


def test_the_log_has_a_disconnected_client(settled: Server, hour: Path) -> None:
    with _one_more_line(settled, " -> 499 in "), post(settled, hour.read_bytes()):
        _wait_until_at_work(settled)

    for include in ("logprobs", "progress,peaks"):
        # Once words are sent, the status is fixed.
        with (
            _one_more_line(settled, " -> 200 (client gone) in "),
            streamed(settled, hour, {"include[]": include}) as lines,
        ):
            next(events(lines))

    _wait_until_idle(settled)


@contextmanager
def _one_more_line(server: Server, part: str) -> Iterator[None]:
    before = server.log.read_text().count(part)
    yield
    wait_until(lambda: server.log.read_text().count(part) == before + 1, what=part)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999], ids=str)
def test_half_an_upload_leaves_nothing(settled: Server, clip: Clip, part: float) -> None:
    body = multipart(clip.path.read_bytes(), stream="true")
    with connect(settled) as connection:
        connection.sendall(post_head(settled, f"Content-Length: {len(body)}"))
        connection.sendall(body[: int(len(body) * part)])


@needs_curl
@pytest.mark.usefixtures("leaves_nothing")
def test_curl_killed_during_its_upload_leaves_nothing(settled: Server, hour: Path) -> None:
    process = psutil.Process(settled.process.pid)
    written_before = process.io_counters().write_chars
    # Ten seconds for the whole.
    with _curl(settled, Kind(), hour, "--limit-rate", "1M"):
        # waitress buffers received data in a file of its own.
        wait_until(
            lambda: process.io_counters().write_chars > written_before + 1024 * 1024,
            what="a tenth is sent",
        )
        assert settled.health()["queue"]["active_requests"] == 0


class TestWaiting:
    """A server that processes one request at a time."""

    @pytest.fixture
    def narrow(self, tmp_path: Path) -> Iterator[Server]:
        with running_server(tmp_path, APP_THREADS="1", MAX_QUEUED_REQUESTS="5") as started:
            yield started
        assert "Traceback" not in started.log.read_text()

    def test_clients_that_disconnect_during_a_load_or_while_waiting_leave_nothing(
        self, narrow: Server, hour: Path, clip: Clip
    ) -> None:
        content = clip.path.read_bytes()
        with post(narrow, content, stream="true"):
            wait_until(
                lambda: narrow.health()["model"]["state"] == "loading",
                what="the model loads",
            )
            with post(narrow, content, stream="true"), post(narrow, content):
                _wait_for_queue(narrow, active=1, waiting=2)
                assert len(uploads(narrow)) == 3

        _wait_until_idle(narrow)
        assert transcribe(narrow, clip.path).json()["text"] == clip.text

    def test_requests_behind_a_disconnected_client_move_up(
        self, narrow: Server, hour: Path, clip: Clip
    ) -> None:
        content = clip.path.read_bytes()
        with ExitStack() as clients:
            first = clients.enter_context(post(narrow, hour.read_bytes()))
            _wait_for_queue(narrow, active=1, waiting=0)
            second = clients.enter_context(post(narrow, content))
            _wait_for_queue(narrow, active=1, waiting=1)
            third = clients.enter_context(post(narrow, content, stream="true"))
            _wait_for_queue(narrow, active=1, waiting=2)
            lines = clients.enter_context(streamed(narrow, clip.path, {"include[]": "progress"}))
            progress = events(lines)

            assert next(progress)["queue_position"] == 3
            second.close()
            assert _next_position(progress, after=3) == 2
            third.close()
            assert _next_position(progress, after=2) == 1
            assert narrow.health()["queue"]["active_requests"] == 1
            first.close()
            kinds = [event["type"] for event in progress]

        assert "transcript.text.delta" in kinds
        assert kinds[-1] == "transcript.text.done"
        _wait_until_idle(narrow)


def _next_position(progress: Iterator[dict[str, Any]], *, after: int) -> int:
    """Return the first position that is another one; until then it may be repeated."""
    positions = (int(event["queue_position"]) for event in progress)
    return next(position for position in positions if position != after)


def _wait_for_queue(server: Server, *, active: int, waiting: int) -> None:
    def counts() -> tuple[int, int]:
        queue = server.health()["queue"]
        return queue["active_requests"], queue["waiting_requests"]

    wait_until(lambda: counts() == (active, waiting), what="the queue is so long")
