"""What an operator sees: metrics, readiness, logs, and how the server stops."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE_S, Clip, Server, running_server, wait_until
from http_helpers import connect, error_of, multipart, post_head, request, transcribe, uploads
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.integration

TRANSCRIPTIONS = "/v1/audio/transcriptions"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own."""
    with running_server(tmp_path, LOG_FORMAT="json") as server:
        yield server


def sample(server: Server, name: str, **labels: str) -> float | None:
    """Read one value of /metrics; `None` where there is none."""
    for family in text_string_to_metric_families(request(server, "GET", "/metrics").text):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return float(found.value)
    return None


def log_lines(server: Server) -> list[dict[str, object]]:
    lines = server.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def _of_requests(server: Server) -> list[dict[str, object]]:
    return [line for line in log_lines(server) if line.get("request_id")]


class TestMetrics:
    def test_a_request_is_counted_once_it_is_over(self, started: Server, clips: list[Clip]) -> None:
        clip = clips[2]

        assert transcribe(started, clip.path).status_code == 200
        error_of(transcribe(started, b"no sound"), 400)
        error_of(transcribe(started, clip.path, {"temperature": "9"}), 400)

        counted = {"endpoint": TRANSCRIPTIONS}
        # They are counted after the last byte was sent.
        wait_until(
            lambda: sample(started, "parakeet_request_seconds_count", **counted) == 3,
            what="three requests counted",
        )
        assert sample(started, "parakeet_requests_total", result="ok", **counted) == 1
        assert sample(started, "parakeet_requests_total", result="client_error", **counted) == 2
        assert sample(started, "parakeet_errors_total", code="invalid_audio") == 1
        audio_s = sample(started, "parakeet_audio_seconds_total")
        assert audio_s == pytest.approx(clip.duration_s, abs=0.01)
        assert sample(started, "parakeet_rtfx_count") == 1
        assert sample(started, "parakeet_batch_chunks_sum") == 1
        assert sample(started, "parakeet_model_state", model="", parakeet_model_state="ready") == 1
        assert sample(started, "parakeet_model_load_seconds_count") == 1
        assert sample(started, "parakeet_requests_active") == 0
        info = sample(started, "parakeet_info", model="parakeet-tdt-demo-en", device="cpu")
        assert info == 1

    def test_pages_and_probes_are_not_counted(self, started: Server) -> None:
        for path in ("/", "/health", "/ready", "/nowhere"):
            request(started, "GET", path)

        assert sample(started, "parakeet_request_seconds_count") is None

    def test_with_a_key_the_metrics_need_it(self, tmp_path: Path) -> None:
        with running_server(tmp_path, API_KEY="secret") as locked:
            error_of(request(locked, "GET", "/metrics"), 401)
            key = {"Authorization": "Bearer secret"}
            assert request(locked, "GET", "/metrics", headers=key).status_code == 200
            for path in ("/health", "/health/simple", "/ready"):
                assert request(locked, "GET", path).status_code == 200


class TestReadiness:
    def test_a_server_that_could_serve_is_ready(self, server: Server) -> None:
        assert request(server, "GET", "/ready").json() == {"ready": True, "reason": None}
        assert request(server, "GET", "/health/simple").text == "ok\n"

    def test_a_server_without_a_model_is_not(self, tmp_path: Path) -> None:
        nowhere = {"DEMO_MODEL": "never", "HF_ENDPOINT": "http://127.0.0.1:9"}
        with running_server(tmp_path, MODELS_DIR=str(tmp_path / "none"), **nowhere) as bare:
            answer = request(bare, "GET", "/ready")

            assert answer.status_code == 503
            assert "model" in answer.json()["reason"]
            assert request(bare, "GET", "/health/simple").status_code == 200

    def test_a_full_server_is_not(self, tmp_path: Path, clips: list[Clip]) -> None:
        with running_server(tmp_path, APP_THREADS="1", MAX_QUEUED_REQUESTS="0") as small:
            busy = threading.Thread(target=transcribe, args=(small, clips[0].path))
            busy.start()
            # The first request loads the model, so there is time to look.
            wait_until(
                lambda: request(small, "GET", "/ready").status_code == 503,
                what="not ready",
            )
            busy.join()
            assert request(small, "GET", "/ready").status_code == 200


class TestLogs:
    def test_a_request_is_one_line_with_the_clients_id(
        self, started: Server, clips: list[Clip]
    ) -> None:
        headers = {"X-Request-Id": "from-the-proxy:1"}
        answer = transcribe(started, clips[2].path, name="my secret diary.flac", headers=headers)

        assert answer.headers["x-request-id"] == "from-the-proxy:1"
        # It is written after the last byte was sent.
        wait_until(lambda: _of_requests(started), what="the line")
        (line,) = _of_requests(started)
        assert line["request_id"] == "from-the-proxy:1"
        assert (line["path"], line["status"], line["error"]) == (TRANSCRIPTIONS, 200, None)
        assert line["audio_seconds"] == pytest.approx(clips[2].duration_s, abs=0.01)
        assert isinstance(line["rtfx"], float)
        log = started.log.read_text()
        assert "diary" not in log
        assert clips[2].text not in log

    @pytest.mark.parametrize("name", ["a b", "x" * 65, "é", '"}', ""])
    def test_an_id_that_could_forge_a_line_is_replaced(self, server: Server, name: str) -> None:
        answer = request(
            server, "GET", "/health", headers=[(b"X-Request-Id", name.encode("utf-8"))]
        )

        assert answer.headers["x-request-id"] != name
        assert len(answer.headers["x-request-id"]) == 12


class TestFullDisk:
    def test_an_upload_to_a_full_disk_gets_a_retry_after(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        uploads_folder = tmp_path / "uploads"
        uploads_folder.mkdir()
        small = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(uploads_folder)]
        if subprocess.run(small, check=False, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with running_server(tmp_path, MAX_QUEUED_JOBS="0") as full:
                error = error_of(transcribe(full, bytes(300_000)), 503)
                assert "disk is full" in error["message"]
                assert uploads(full) == []

                # What is small is in a buffer until its file is closed.
                with contextlib.suppress(OSError):
                    (uploads_folder / "ballast").write_bytes(bytes(100_000))
                error = error_of(transcribe(full, bytes(3_000)), 503)
                assert "disk is full" in error["message"]
                assert [file.name for file in uploads(full)] == ["ballast"]
        finally:
            subprocess.run(["umount", str(uploads_folder)], check=True)


class TestStopping:
    def test_running_requests_finish_and_new_ones_are_rejected(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        with running_server(tmp_path, STOP_GRACE_SECONDS="120") as stopping:
            answers: list[httpx.Response] = []
            busy = threading.Thread(
                target=lambda: answers.append(transcribe(stopping, clips[0].path))
            )
            busy.start()
            _wait_until_busy(stopping)
            stopping.process.send_signal(signal.SIGTERM)
            wait_until(
                lambda: request(stopping, "GET", "/ready").status_code == 503,
                what="stopping",
            )
            refused = transcribe(stopping, clips[1].path)
            busy.join()

            assert error_of(refused, 503)["code"] == "stopping"
            assert refused.headers["connection"] == "close"
            assert refused.headers["retry-after"]
            assert answers[0].json()["text"] == clips[0].text
            assert stopping.process.wait(timeout=PATIENCE_S) == 0
            assert uploads(stopping) == []

    def test_an_upload_in_progress_gets_the_reason_of_its_rejection(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        with running_server(tmp_path, STOP_GRACE_SECONDS="120") as stopping:
            body = multipart(clips[0].path.read_bytes())
            with connect(stopping) as connection:
                connection.sendall(
                    post_head(stopping, f"Content-Length: {len(body)}") + body[:1000]
                )
                # Another request's answer: what was sent before it has been read.
                stopping.health()
                stopping.process.send_signal(signal.SIGTERM)
                wait_until(lambda: "under way" in stopping.log.read_text(), what="stopping")
                connection.sendall(body[1000:])
                with connection.makefile("rb") as answer:
                    assert b" 503 " in answer.readline()

            assert stopping.process.wait(timeout=PATIENCE_S) == 0

    def test_what_does_not_end_in_time_is_cancelled(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        with running_server(tmp_path, STOP_GRACE_SECONDS="0") as stopping:
            busy = threading.Thread(target=_ignore_the_end, args=(stopping, clips[0].path))
            busy.start()
            _wait_until_busy(stopping)
            stopping.process.send_signal(signal.SIGTERM)

            assert stopping.process.wait(timeout=PATIENCE_S) == 0
            busy.join()
            # The look at its health may still have been one.
            assert re.search("[12] requests did not end within 0 s", stopping.log.read_text())
            assert uploads(stopping) == []

    def test_a_second_signal_ends_the_process_at_once(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        with running_server(tmp_path, STOP_GRACE_SECONDS="600") as stopping:
            busy = threading.Thread(target=_ignore_the_end, args=(stopping, clips[0].path))
            busy.start()
            _wait_until_busy(stopping)
            os.kill(stopping.process.pid, signal.SIGTERM)
            wait_until(lambda: "under way" in stopping.log.read_text(), what="stopping")
            os.kill(stopping.process.pid, signal.SIGTERM)

            assert stopping.process.wait(timeout=PATIENCE_S) == 128 + signal.SIGTERM
            busy.join()

    def test_an_idle_server_stops_with_0(self, tmp_path: Path) -> None:
        with running_server(tmp_path) as idle:
            idle.process.send_signal(signal.SIGTERM)

            assert idle.process.wait(timeout=PATIENCE_S) == 0


def _wait_until_busy(server: Server) -> None:
    wait_until(lambda: server.health()["queue"]["active_requests"] == 1, what="busy")


def _ignore_the_end(server: Server, file: Path) -> None:
    try:
        transcribe(server, file)
    except httpx.TransportError:
        return
