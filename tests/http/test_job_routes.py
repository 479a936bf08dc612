"""Jobs over HTTP, against a real server: answers, restarts, kills, keys and webhooks."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import PATIENCE_S, SPEECH, Clip, Server, running_server, wait_until
from http_helpers import (
    FORMATS,
    Fields,
    error_of,
    ffmpegs,
    request,
    transcribe,
    uploads,
    waiting_chunks,
)
from webhook_receiver import Receiver

from parakeet_api.audio.ffmpeg import find_ffmpeg

pytestmark = pytest.mark.integration

JOBS = "/v1/jobs"
UNFINISHED = {"queued", "running"}


def submit(
    server: Server,
    content: bytes | Path,
    fields: Fields | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    body = content.read_bytes() if isinstance(content, Path) else content
    files = {"file": ("../../etc/passwd", body)}
    return request(server, "POST", JOBS, files=files, data=fields, headers=headers)


def accepted(server: Server, content: bytes | Path, fields: Fields | None = None) -> str:
    """Submit a job that is accepted; give its path."""
    answer = submit(server, content, fields)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


def look(server: Server, path: str) -> dict[str, Any]:
    answer = request(server, "GET", path)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def finished(server: Server, path: str) -> dict[str, Any]:
    """Wait for a job's end."""
    wait_until(
        lambda: look(server, path)["status"] not in UNFINISHED,
        what="the job is finished",
    )
    return look(server, path)


def recordings(server: Server) -> list[Path]:
    return list((server.uploads / "data" / "recordings").iterdir())


def under_way(server: Server, path: str) -> None:
    wait_until(
        lambda: look(server, path)["progress"]["done_s"] > 0 and waiting_chunks(server),
        what="the job is worked on",
    )


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[10]


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 minutes: some 5 s of work, so that a test can act in the middle of it."""
    folder = tmp_path_factory.mktemp("long")
    playlist, target = folder / "list.txt", folder / "long.ogg"
    playlist.write_text(f"file '{SPEECH / 'long-pauses.ogg'}'\n" * 2)
    command = [find_ffmpeg(), "-loglevel", "error", "-f", "concat", "-safe", "0"]
    subprocess.run([*command, "-i", str(playlist), "-c", "copy", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()


@pytest.fixture(scope="module")
def hooked(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may call the receiver."""
    with running_server(
        tmp_path_factory.mktemp("hooked"), ALLOW_WEBHOOKS=f"127.0.0.1:{receiver.port}"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("locked"), API_KEY="one, two=2=two") as started:
        yield started


class TestAnswers:
    def test_a_job_is_accepted_with_its_address(self, server: Server, clip: Clip) -> None:
        answer = submit(server, clip.path, {"response_format": "srt", "model": "whisper-1"})

        job = answer.json()
        assert answer.status_code == 202
        assert answer.headers["location"] == f"{JOBS}/{job['id']}"
        assert (job["object"], job["response_format"]) == ("transcription.job", "srt")
        assert job["status"] in UNFINISHED | {"succeeded"}
        assert time.time() - 60 < job["created_at"] <= time.time()
        assert (job["error"], job["webhook"]) == (None, None)

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_the_result_is_the_transcriptions_answer_to_the_letter(
        self, server: Server, clip: Clip, response_format: str
    ) -> None:
        fields = {
            "response_format": response_format,
            "timestamp_granularities[]": ["word", "segment"],
            "include[]": "logprobs",
        }
        direct = transcribe(server, clip.path, fields)
        path = accepted(server, clip.path, fields)

        job = finished(server, path)
        result = request(server, "GET", f"{path}/result")

        assert result.status_code == 200
        assert result.content == direct.content
        assert result.headers["content-type"] == direct.headers["content-type"]
        is_json = response_format.endswith("json")
        assert job["result"] == (direct.json() if is_json else direct.text)
        assert job["status"] == "succeeded"
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
        assert job["progress"]["fraction"] == 1
        assert job["progress"]["total_s"] == pytest.approx(clip.duration_s, abs=0.1)
        assert recordings(server) == []
        assert uploads(server) == []

    @pytest.mark.parametrize("content", [b"this is not music " * 100, b"PK\x03\x04" + bytes(999)])
    def test_a_file_that_cannot_be_used_has_the_transcriptions_error(
        self, server: Server, content: bytes
    ) -> None:
        direct = transcribe(server, content)
        path = accepted(server, content)

        job = finished(server, path)
        result = request(server, "GET", f"{path}/result")

        assert job["status"] == "failed"
        assert job["error"] == error_of(direct, 400)
        assert error_of(result, 400) == job["error"]
        assert job["result"] is None
        assert recordings(server) == []

    def test_jobs_are_listed_newest_first_in_pages_without_their_results(
        self, server: Server, clip: Clip
    ) -> None:
        paths = [accepted(server, clip.path) for _ in range(3)]
        for path in paths:
            finished(server, path)
        newest = [path.rpartition("/")[2] for path in reversed(paths)]

        first = look(server, f"{JOBS}?limit=2")
        second = look(server, f"{JOBS}?limit=2&after={newest[1]}")

        assert [job["id"] for job in first["data"]] == newest[:2]
        assert (first["object"], first["has_more"]) == ("list", True)
        assert second["data"][0]["id"] == newest[2]
        assert {job["result"] for job in first["data"]} == {None}

    def test_health_counts_the_unfinished_jobs(self, server: Server) -> None:
        assert server.health()["jobs"] == {"queued": 0, "running": 0, "error": None}


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"response_format": "xml"}, "response_format"),
            ({"language": "fr"}, "language"),
            ({"stream": "true"}, "stream"),
            ({"webhook_url": "https://example.org/"}, "webhook_url"),
        ],
    )
    def test_errors_in_the_form_are_reported_at_once(
        self, server: Server, clip: Clip, fields: dict[str, str], param: str
    ) -> None:
        assert error_of(submit(server, clip.path, fields), 400)["param"] == param
        assert recordings(server) == []

    def test_a_job_needs_a_file(self, server: Server) -> None:
        assert error_of(request(server, "POST", JOBS), 400)["param"] == "file"
        assert error_of(submit(server, b""), 400)["param"] == "file"

    @pytest.mark.parametrize("limit", ["0", "101", "-1", "many", "1.5", "9" * 999, "\u0663"])
    def test_a_limit_that_is_no_number_from_1_to_100_is_refused(
        self, server: Server, limit: str
    ) -> None:
        answer = request(server, "GET", JOBS, params={"limit": limit})

        assert error_of(answer, 400)["param"] == "limit"

    @pytest.mark.parametrize(
        "job_id",
        ["0" * 32, "1", "..", "%00", "%ff", "%2e%2e%2fjobs.sqlite3", "' OR 1=1 --", "x" * 5000],
    )
    @pytest.mark.parametrize("how", [("GET", ""), ("GET", "/result"), ("DELETE", "")], ids=str)
    def test_an_id_that_is_none_is_404(
        self, server: Server, how: tuple[str, str], job_id: str
    ) -> None:
        method, suffix = how
        error = error_of(request(server, method, f"{JOBS}/{job_id}{suffix}"), 404)

        assert error["code"] == "not_found"

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
    def test_a_wrong_method_is_405(self, server: Server, method: str) -> None:
        error_of(request(server, method, f"{JOBS}/{'0' * 32}"), 405)

    def test_one_job_too_many_is_503_and_leaves_nothing(self, tmp_path: Path, clip: Clip) -> None:
        with running_server(tmp_path, MAX_QUEUED_JOBS="0") as server:
            answer = submit(server, clip.path)

            assert error_of(answer, 503)["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0
            assert recordings(server) == []
            assert uploads(server) == []


class TestEvents:
    def test_the_words_and_peaks_come_while_the_job_runs_and_add_up(
        self, server: Server, long_recording: Path
    ) -> None:
        path = accepted(server, long_recording, {"response_format": "verbose_json"})
        events: list[dict[str, Any]] = []
        run, after, shares = "", 0, []
        while True:
            body = look(server, f"{path}/events?run={run}&after={after}")
            assert body["run"] == run or not events
            run, after = body["run"], body["following"]
            events += body["events"]
            if body["job"]["status"] not in ("queued", "running"):
                break
            shares.append(len(events))
        assert max(shares) > min(shares), "nothing came before the end"
        text = "".join(e["delta"] for e in events if e["type"] == "transcript.text.delta")
        result = look(server, f"{path}/result")
        assert text.strip() == result["text"]
        loud = [e for e in events if e["type"] == "transcript.peaks"]
        assert [e["start_s"] for e in loud] == sorted(e["start_s"] for e in loud)
        last = loud[-1]
        end = last["start_s"] + len(base64.b64decode(last["values"])) / last["per_second"]
        assert end == pytest.approx(result["duration"], abs=0.2)

    def test_another_run_is_returned_from_its_beginning(self, server: Server, clip: Clip) -> None:
        path = accepted(server, clip.path)
        finished(server, path)
        first = look(server, f"{path}/events")
        again = look(server, f"{path}/events?run=another&after={first['following']}")
        assert first["events"] == again["events"] != []
        rest = look(server, f"{path}/events?run={first['run']}&after={first['following']}")
        assert rest["events"] == []
        assert rest["job"]["status"] == "succeeded"

    def test_a_wrong_count_is_named(self, server: Server, clip: Clip) -> None:
        path = accepted(server, clip.path)
        answer = request(server, "GET", f"{path}/events", params={"after": "-1"})
        assert error_of(answer, 400)["param"] == "after"


def test_a_client_that_is_killed_during_its_upload_leaves_nothing(
    server: Server, clip: Clip
) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    head = f"POST {JOBS} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + form + clip.path.read_bytes())

    wait_until(
        lambda: uploads(server) == [] and recordings(server) == [],
        what="what came of the upload is removed",
    )
    assert server.health()["jobs"]["queued"] == 0


class TestCancelling:
    def test_a_cancelled_job_costs_nothing_more(self, server: Server, long_recording: Path) -> None:
        path = accepted(server, long_recording)
        under_way(server, path)
        unfinished = request(server, "GET", f"{path}/result")

        answer = request(server, "DELETE", path)
        wait_until(
            lambda: not (waiting_chunks(server) or ffmpegs(server) or recordings(server)),
            what="its work has ended",
        )

        assert error_of(unfinished, 409)["code"] == "job_not_finished"
        assert int(unfinished.headers["retry-after"]) > 0
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert 0 < answer.json()["progress"]["fraction"] < 1
        assert error_of(request(server, "GET", f"{path}/result"), 409)["code"] == "job_cancelled"
        assert request(server, "DELETE", path).json()["deleted"] is True
        error_of(request(server, "GET", path), 404)

    def test_a_finished_job_is_removed_with_its_result(self, server: Server, clip: Clip) -> None:
        path = accepted(server, clip.path)
        finished(server, path)

        assert request(server, "DELETE", path).json() == {
            "id": path.rpartition("/")[2],
            "object": "transcription.job",
            "deleted": True,
        }
        error_of(request(server, "GET", f"{path}/result"), 404)

    def test_short_requests_are_answered_while_a_job_is_worked_on(
        self, server: Server, long_recording: Path, clip: Clip
    ) -> None:
        path = accepted(server, long_recording)
        under_way(server, path)

        assert transcribe(server, clip.path).json()["text"] == clip.text
        assert look(server, path)["status"] == "running"
        assert server.health()["jobs"]["running"] == 1
        request(server, "DELETE", path)


class TestRestarts:
    @pytest.mark.timeout(600)
    def test_a_job_is_finished_after_the_server_was_killed_in_the_middle_of_it(
        self, tmp_path: Path, long_recording: Path, clip: Clip
    ) -> None:
        with running_server(tmp_path) as server:
            done = accepted(server, clip.path, {"response_format": "srt"})
            before = finished(server, done)
            path = accepted(server, long_recording, {"response_format": "text"})
            waiting = accepted(server, clip.path)
            request(server, "DELETE", accepted(server, clip.path))
            under_way(server, path)
            decoders = ffmpegs(server)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(timeout=PATIENCE_S)
        psutil.wait_procs(decoders, timeout=PATIENCE_S)
        assert not any(decoder.is_running() for decoder in decoders)

        with running_server(tmp_path) as server:
            assert look(server, done) == before
            job = finished(server, path)
            direct = transcribe(server, long_recording, {"response_format": "text"})
            assert job["status"] == "succeeded"
            assert job["result"] == direct.text
            assert len(direct.text.split()) > 2000
            assert finished(server, waiting)["result"]["text"] == clip.text
            assert recordings(server) == []

    @pytest.mark.timeout(600)
    def test_sigterm_does_not_wait_for_a_job_which_continues_after_the_start(
        self, tmp_path: Path, long_recording: Path
    ) -> None:
        with running_server(tmp_path) as server:
            path = accepted(server, long_recording)
            under_way(server, path)
            server.process.send_signal(signal.SIGTERM)
            # A forward pass ends first; the 24 minutes do not.
            assert server.process.wait(timeout=PATIENCE_S) == 0
            log = server.log.read_text()
            assert "succeeded" not in log
            assert "Traceback" not in log

        with running_server(tmp_path) as server:
            assert finished(server, path)["status"] == "succeeded"

    def test_two_servers_never_share_a_folder(self, tmp_path: Path, clip: Clip) -> None:
        shared = str(tmp_path / "shared")
        with ExitStack() as stack:
            servers = []
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                starting = running_server(tmp_path / name, DATA_DIR=shared)
                servers.append(stack.enter_context(starting))
            first, second = servers

            path = accepted(first, clip.path)
            answer = submit(second, clip.path)

            error = error_of(answer, 503)
            assert error["code"] == "jobs_unavailable"
            assert shared in error["message"]
            assert "another server" in second.health()["jobs"]["error"]
            assert finished(first, path)["status"] == "succeeded"
            assert uploads(second) == []

    def test_a_folder_that_cannot_be_used_costs_jobs_alone(
        self, tmp_path: Path, clip: Clip
    ) -> None:
        (tmp_path / "file").touch()
        with running_server(tmp_path, DATA_DIR=str(tmp_path / "file")) as server:
            error = error_of(submit(server, clip.path), 503)

            assert f"DATA_DIR='{tmp_path / 'file'}'" in error["message"]
            assert "jobs are not accepted" in server.log.read_text()
            assert transcribe(server, clip.path).json()["text"] == clip.text
            error_of(request(server, "GET", JOBS), 503)


class TestKeys:
    def test_a_job_belongs_to_the_key_that_made_it(self, locked: Server, clip: Clip) -> None:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two=2=two"))
        path = submit(locked, clip.path, headers=one).headers["location"]

        error_of(request(locked, "GET", path), 401)
        error_of(request(locked, "POST", JOBS), 401)
        error_of(request(locked, "GET", JOBS), 401)
        for method, target in [("GET", path), ("GET", f"{path}/result"), ("DELETE", path)]:
            error_of(request(locked, method, target, headers=two), 404)
        assert request(locked, "GET", JOBS, headers=two).json()["data"] == []
        mine = request(locked, "GET", JOBS, headers=one).json()["data"]
        assert [job["id"] for job in mine] == [path.rpartition("/")[2]]
        assert request(locked, "GET", path, headers=one).status_code == 200

    def test_without_keys_a_sent_key_is_ignored(self, server: Server, clip: Clip) -> None:
        sent = {"Authorization": "Bearer unused"}
        path = submit(server, clip.path, headers=sent).headers["location"]

        assert request(server, "GET", path).status_code == 200


class TestWebhooks:
    def test_it_is_sent_the_job_as_it_is_answered(
        self, hooked: Server, receiver: Receiver, clip: Clip
    ) -> None:
        path = accepted(hooked, clip.path, {"webhook_url": f"{receiver.url}/told"})
        wait_until(lambda: receiver.calls, what="the webhook is called")
        wait_until(lambda: look(hooked, path)["webhook"]["delivered"], what="that is noted")

        call, job = receiver.calls.pop(), look(hooked, path)
        assert call.pop("path") == "/told"
        assert call.pop("webhook") == {
            "url": f"{receiver.url}/told",
            "attempts": 0,
            "delivered": False,
            "last_error": None,
        }
        assert job.pop("webhook")["attempts"] == 1
        assert call == job
        assert job["result"]["text"] == clip.text

    def test_a_call_that_failed_is_visible_and_made_again_after_a_restart(
        self, tmp_path: Path, receiver: Receiver, clip: Clip
    ) -> None:
        receiver.answers = [500]
        allowed = {"ALLOW_WEBHOOKS": f"127.0.0.1:{receiver.port}"}
        with running_server(tmp_path, **allowed) as server:
            path = accepted(server, clip.path, {"webhook_url": receiver.url})
            wait_until(
                lambda: look(server, path)["webhook"]["last_error"] is not None,
                what="the failure is noted",
            )
            assert "500" in look(server, path)["webhook"]["last_error"]
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(timeout=PATIENCE_S)

        with running_server(tmp_path, **allowed) as server:
            wait_until(
                lambda: look(server, path)["webhook"]["delivered"],
                what="the webhook is called again",
            )

    @pytest.mark.parametrize("url", ["http://evil.example/", "http://127.0.0.1/", "file:///x"])
    def test_another_host_is_refused(self, hooked: Server, clip: Clip, url: str) -> None:
        error = error_of(submit(hooked, clip.path, {"webhook_url": url}), 400)

        assert error["param"] == "webhook_url"


def test_results_are_removed_after_their_time(tmp_path: Path, clip: Clip) -> None:
    with running_server(tmp_path, JOB_RETENTION_HOURS="0.0003") as server:
        path = accepted(server, clip.path)
        wait_until(
            lambda: request(server, "GET", path).status_code == 404,
            what="the job is removed",
        )
