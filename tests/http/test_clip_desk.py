"""The whole service with processes that receive clips, compared to the service without."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import PATIENCE_S, Clip, Server, encode, running_server, wait_until
from http_helpers import ENDPOINT, FORMATS, is_idle, post, transcribe, uploads

pytestmark = pytest.mark.integration


def fronts(server: Server) -> list[psutil.Process]:
    """List the processes that receive clips."""
    return [child for child in psutil.Process(server.process.pid).children() if is_front(child)]


def is_front(process: psutil.Process) -> bool:
    # One that has just ended has no command line.
    with suppress(psutil.NoSuchProcess):
        return "parakeet_api.http.clip_front" in process.cmdline()
    return False


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fronted")
    with running_server(folder, CLIP_PROCESSES="2", LOG_LEVEL="debug") as server:
        wait_until(lambda: len(fronts(server)) == 2, what="two processes")
        yield server


def stable_headers(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("date", "x-request-id")}


@pytest.mark.parametrize("response_format", FORMATS)
def test_answers_are_those_of_a_server_without_such_processes(
    fronted: Server, server: Server, clips: list[Clip], response_format: str
) -> None:
    fields = {
        "response_format": response_format,
        "timestamp_granularities[]": ["word", "segment"],
        "include[]": "logprobs",
    }
    for clip in clips[:5]:
        one, other = (transcribe(here, clip.path, fields) for here in (fronted, server))

        assert one.status_code == 200
        assert one.text == other.text
        assert stable_headers(one.headers) == stable_headers(other.headers)


def test_warnings_about_the_audio_are_the_same(
    fronted: Server, server: Server, speech: Path, tmp_path: Path
) -> None:
    """A truncated file with `allow_partial`: its warning is in a header and in the response."""
    whole = encode(speech / "long-dense.ogg", tmp_path / "whole.wav", "-t", "10").read_bytes()
    half = tmp_path / "half.wav"
    half.write_bytes(whole[: len(whole) // 2])
    fields = {"response_format": "verbose_json", "allow_partial": "true"}

    one, other = (transcribe(here, half, fields) for here in (fronted, server))

    assert one.status_code == 200
    assert "truncated_audio" in one.headers["X-Transcript-Warnings"]
    assert one.text == other.text
    assert stable_headers(one.headers) == stable_headers(other.headers)


@pytest.mark.parametrize(
    "fields", [{"response_format": "pdf"}, {"language": "xx"}, {"temperature": "9"}]
)
def test_errors_are_those_of_a_server_without_such_processes(
    fronted: Server, server: Server, clips: list[Clip], fields: dict[str, str]
) -> None:
    one, other = (transcribe(here, clips[0].path, fields) for here in (fronted, server))

    assert one.status_code == 400
    assert one.text == other.text
    assert stable_headers(one.headers) == stable_headers(other.headers)


def test_other_requests_are_answered_too(fronted: Server, speech: Path) -> None:
    assert httpx.get(f"{fronted.url}/v1/models", trust_env=False).status_code == 200
    assert httpx.get(f"{fronted.url}/", trust_env=False).status_code == 200
    answer = transcribe(fronted, speech / "long-pauses.ogg", {"stream": "true"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "transcript.text.done" in answer.text


def test_clips_are_logged_and_counted_as_any(fronted: Server, clips: list[Clip]) -> None:
    def counted() -> float:
        text = httpx.get(f"{fronted.url}/metrics", trust_env=False).text
        lines = [x for x in text.splitlines() if x.startswith("parakeet_requests_total")]
        return sum(float(x.split()[-1]) for x in lines if ENDPOINT in x and 'result="ok"' in x)

    before = counted()
    answer = transcribe(fronted, clips[0].path, headers={"X-Request-Id": "look-for-me"})
    wait_until(lambda: counted() == before + 1)

    assert answer.headers["X-Request-Id"] == "look-for-me"
    log = fronted.log.read_text()
    assert f"POST {ENDPOINT} from 127.0.0.1 -> 200" in log
    assert "[look-for-me]" in log


def test_many_clients_get_their_own_words(fronted: Server, clips: list[Clip]) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = transcribe(fronted, clips[number].path, {"response_format": "text"}).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    alone = {n: transcribe(fronted, clips[n].path, {"response_format": "text"}).text for n in texts}
    assert texts == alone
    wait_until(lambda: uploads(fronted) == [])


def test_a_killed_process_is_replaced_and_clips_are_answered_meanwhile(
    fronted: Server, clips: list[Clip]
) -> None:
    before = {child.pid for child in fronts(fronted)}
    for child in fronts(fronted):
        child.kill()

    def is_replaced() -> bool:
        now = {child.pid for child in fronts(fronted)}
        return len(now) == 2 and not now & before

    wait_until(lambda: not {child.pid for child in fronts(fronted)} & before)
    assert transcribe(fronted, clips[0].path).status_code == 200
    wait_until(is_replaced, what="two new processes")
    assert transcribe(fronted, clips[0].path).status_code == 200


def test_a_client_that_goes_leaves_nothing(fronted: Server, clips: list[Clip]) -> None:
    for clip in clips[:10]:
        post(fronted, clip.path.read_bytes()).close()

    def is_left() -> bool:
        queue = fronted.health()["queue"]
        return bool(any(queue.values()) or uploads(fronted))

    wait_until(lambda: not is_left())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_the_server(tmp_path: Path, number: signal.Signals) -> None:
    with running_server(tmp_path, CLIP_PROCESSES="2") as server:
        wait_until(lambda: len(fronts(server)) == 2, what="two processes")
        children = fronts(server)
        port = int(server.url.rpartition(":")[2])
        server.process.send_signal(number)
        server.process.wait(PATIENCE_S)

        gone, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert len(gone) == 2
        assert alive == []
        # The address is free again.
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_clip_that_waits_is_answered_before_the_server_stops(
    tmp_path: Path, clips: list[Clip]
) -> None:
    # Loading can take long on a busy machine.
    with running_server(
        tmp_path, CLIP_PROCESSES="1", ENABLE_LAZY_LOAD="true", STOP_GRACE_SECONDS="240"
    ) as server:
        wait_until(lambda: len(fronts(server)) == 1, what="a process")
        # It loads the model, which takes a while.
        connection = post(server, clips[0].path.read_bytes(), response_format="text")
        wait_until(lambda: not is_idle(server))
        server.process.terminate()

        received = b""
        while data := connection.recv(65_536):
            received += data
        connection.close()
        assert received.startswith(b"HTTP/1.1 200")


def test_without_them_there_are_none(server: Server) -> None:
    assert fronts(server) == []
