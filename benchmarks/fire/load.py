"""The clients: normal ones, slow ones, some that disconnect, some that send garbage."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jiwer

from benchmarks.fire.journal import CUT, Journal
from benchmarks.fire.live import hang_up_live, transcribe_live
from benchmarks.fire.outcomes import PATIENCE_S, Outcome, outcome_of, read_answer, read_stream
from benchmarks.fire.recordings import ENDPOINT, Question, Recordings, transcript_in
from benchmarks.fire.server import Server
from benchmarks.fuzz import HEAD_BYTES, damage, damage_request, make_requests, wrong_with

OTHER_SEAMS = 0.05
"""Words of a long recording that may differ where memory was short: it was then cut into pieces of
5 to 15 s with 2 s of context, where of dense speech 4 % differ."""
MOST_JOBS = 30
"""Unfinished at a time."""
MOST_KEPT = 200
"""Jobs that are left in the server, to be found there at the end."""
MOST_HITS = 3
"""Attempts of the server at a job that crashes the process or fails unexpectedly."""
_HANG_UP_NOW = struct.pack("ii", 1, 0)
"""For SO_LINGER: the connection is reset, and what was not sent is dropped."""
AFTER_CUT_S = 0.5
_SILENCE_S = 2.0
"""A server that has nothing more to say to a damaged request may wait for the rest of it."""
_JOB_POLL_S = 0.5
_LIVE_SPEEDS = (1.0, 50.0)
_LIVE_GARBAGE = (
    "{",
    "[]",
    b"\xff" * 1000,
    '{"type": "no.such.event"}',
    '{"type": "input_audio_buffer.append"}',
    '{"type": "input_audio_buffer.append", "audio": "%%%"}',
    '{"type": "session.update", "session": {"audio": 7}}',
    '{"type": "input_audio_buffer.commit"}',
)
_PROBE_S = 1.0
_PROBES = ("/health", "/health/simple", "/ready", "/metrics")
_PROBE_WITHIN_S = 10.0
"""On a machine that is busy with the other clients."""


@dataclass(slots=True)
class Accepted:
    """A job that the server has accepted."""

    id: str
    question: Question | None
    """`None` for garbage."""
    began: float
    cancelled: bool = False


@dataclass(slots=True)
class Load:
    """Concurrent clients, each sending requests in a loop."""

    server: Server
    recordings: Recordings
    right: dict[Question, str]
    journal: Journal
    seed: int
    clients: int = 6
    jobs: dict[str, Accepted] = field(default_factory=dict)
    """Accepted, and not yet succeeded."""
    kept_jobs: set[str] = field(default_factory=set)
    """Succeeded, and left on the server."""
    removed: set[str] = field(default_factory=set)
    """Succeeded, and deleted by a request."""
    unanswered_jobs: int = 0
    """Sent, but the connection closed before the response: the server may or may not have them."""
    slowest_probe_s: float = 0.0
    _asking: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _busy: set[int] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start the clients."""
        self._asking.set()
        work: list[Callable[[], None]] = [self._watch_jobs, self._probe]
        work += [Client(self, number).run for number in range(self.clients)]
        self._threads = [threading.Thread(target=run, daemon=True) for run in work]
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """Send no new requests, and wait for all responses."""
        self._asking.clear()
        while self._busy:
            time.sleep(0.1)

    def go_on(self) -> None:
        """Resume sending requests."""
        self._asking.set()

    def close(self) -> None:
        """End the clients."""
        self._done.set()
        self._asking.set()
        for thread in self._threads:
            thread.join()

    def missing_jobs(self) -> Iterator[str]:
        """Return the jobs that the server's list lacks, and those that it should not have."""
        listed = {job["id"]: job["status"] for job in self._list_jobs()}
        for job_id in self.jobs.keys() | (self.kept_jobs - listed.keys()):
            yield f"{job_id} is {listed.get(job_id, 'lost')}"
        unknown = listed.keys() - self.kept_jobs - self.removed - self.jobs.keys()
        if len(unknown) > self.unanswered_jobs:
            yield f"{len(unknown)} that nobody sent; of {self.unanswered_jobs} the answer was lost"

    def _list_jobs(self) -> Iterator[dict[str, Any]]:
        after, more = "", True
        with self.client() as client:
            while more:
                page = client.get("/v1/jobs", params={"limit": 100, "after": after}).json()
                yield from page["data"]
                more, after = page["has_more"], page["data"][-1]["id"] if page["data"] else ""

    def take_turn(self, number: int) -> bool:
        """Wait while there is a pause; tell whether to go on at all."""
        while not self._done.is_set():
            # Before the question, so that `pause` cannot overlook this client.
            self._busy.add(number)
            if self._asking.is_set():
                return True
            self._busy.discard(number)
            self._asking.wait(0.1)
        self._busy.discard(number)
        return False

    def judge(
        self,
        kind: str,
        outcome: Outcome,
        question: Question | None,
        began: float,
        *,
        excusable: bool = True,
    ) -> None:
        """Count a request; a wrong transcript or an error that no fault explains is a finding."""
        ended = time.monotonic()
        if outcome.code == CUT:
            # The server may be down: thousands of refused connections would only delay its start.
            time.sleep(AFTER_CUT_S)
        if outcome.text is None:
            if excusable and self.journal.excuse(outcome.code, began, ended):
                self.journal.count(kind, f"{outcome.code}, by a fault")
            elif question is None and outcome.code in _REFUSALS:
                self.journal.count(kind, "refused")
            else:
                self.journal.count(kind, f"{outcome.code}, unexplained")
                self._find(kind, f"{outcome.code} for {_name(question)}", began, ended)
        elif question is None:
            self.journal.count(kind, "accepted")
        elif (text := transcript_in(outcome.text, question)) == self.right[question]:
            self.journal.count(kind, "right")
        elif (
            question.is_long
            and self.journal.memory_was_short(began, ended)
            and jiwer.wer(self.right[question], text) <= OTHER_SEAMS
        ):
            self.journal.count(kind, "right, in smaller chunks")
        else:
            self.journal.count(kind, "wrong")
            differs = f"...{text[-150:]!r}, not ...{self.right[question][-150:]!r}"
            self._find(kind, f"wrong transcript of {_name(question)}: {differs}", began, ended)

    def _find(self, kind: str, what: str, began: float, ended: float) -> None:
        beside = ", ".join(str(fault.kind) for fault in self.journal.overlapping(began, ended))
        self.journal.find(kind, f"{what} (took {ended - began:.1f} s; beside: {beside or 'none'})")

    def _watch_jobs(self) -> None:
        """Follow every accepted job to its end."""
        with self.client() as client:
            while not self._done.wait(_JOB_POLL_S):
                for job in list(self.jobs.values()):
                    # The server is down; the job must be there when it is up again.
                    with contextlib.suppress(httpx.TransportError):
                        self._follow(client, job)

    def _follow(self, client: httpx.Client, job: Accepted) -> None:
        started = time.monotonic()
        answer = client.get(f"/v1/jobs/{job.id}/result")
        outcome = read_answer(answer)
        if outcome.code == "job_not_finished" or self.journal.excuse(
            outcome.code, started, time.monotonic()
        ):
            return
        if job.cancelled and outcome.code in ("job_cancelled", "not_found"):
            self.journal.count("job", "cancelled by the client")
        elif outcome.code == "internal_error" and self._was_hit_often(job):
            self.journal.count("job", "given up after three faults")
        else:
            # A job outlives its faults: none of them explains that it failed.
            self.judge("job", outcome, job.question, job.began, excusable=False)
        if len(self.kept_jobs) < MOST_KEPT:
            self.kept_jobs.add(job.id)
        else:
            self.removed.add(job.id)
            client.delete(f"/v1/jobs/{job.id}")
        del self.jobs[job.id]

    def _was_hit_often(self, job: Accepted) -> bool:
        faults = self.journal.overlapping(job.began, time.monotonic())
        hits = [fault for fault in faults if fault.kind in ("server killed", "recognizer raises")]
        return len(hits) >= MOST_HITS

    def _probe(self) -> None:
        """Check that `/health` and the other probes respond at once."""
        with self.client() as client:
            while not self._done.wait(_PROBE_S):
                for path in _PROBES:
                    self._probe_once(client, path)

    def _probe_once(self, client: httpx.Client, path: str) -> None:
        began = time.monotonic()
        status: int | None = None
        with contextlib.suppress(httpx.TransportError):
            status = client.get(path).status_code
        took_s = time.monotonic() - began
        faults = self.journal.overlapping(began, time.monotonic())
        if any(fault.kind in ("server killed", "server stopped") for fault in faults):
            return
        self.slowest_probe_s = max(self.slowest_probe_s, took_s)
        self.journal.count("probe", str(status))
        if took_s > _PROBE_WITHIN_S or (status != 200 and not (faults and path == "/ready")):
            self._find("probe", f"{path}: {status}", began, time.monotonic())

    def client(self) -> httpx.Client:
        """Make a client that opens a connection for every request."""
        return httpx.Client(
            base_url=self.server.url,
            timeout=PATIENCE_S,
            trust_env=False,
            verify=False,
            headers={"Connection": "close"},
        )


_REFUSALS = frozenset(
    {"invalid_audio", "no_audio_track", "truncated_audio", "audio_too_long", "invalid_request"}
)
"""Statuses that garbage may get."""


class Client:
    """One after the other: every kind of request, at random."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._rng = random.Random(f"{load.seed} client {number}")
        self._http = load.client()
        self._garbage = make_requests()
        self._kinds: dict[Callable[[], None], int] = {
            self._clip: 30,
            self._stream: 15,
            self._hang_up: 20,
            self._slow: 5,
            self._live: 8,
            self._live_hang_up: 5,
            self._damaged_media: 8,
            self._damaged_request: 8,
            self._job: 12,
        }
        """And how often."""
        if load.recordings.long:
            self._kinds[self._long] = 2

    def run(self) -> None:
        """Send requests until the load is closed."""
        with self._http:
            while self._load.take_turn(self._number):
                ask = self._rng.choices([*self._kinds], [*self._kinds.values()])[0]
                try:
                    ask()
                # Thread boundary: a client that stops would reduce the load unnoticed.
                except Exception as error:
                    self._load.journal.find("client", repr(error))

    def _any_question(self) -> Question:
        """Choose one, seldom a long one."""
        long = self._load.recordings.long
        wanted = long if long and self._rng.random() < 0.1 else self._load.recordings.clips
        return self._rng.choice(wanted)

    def _clip(self) -> None:
        self._transcribe("clip", self._rng.choice(self._load.recordings.clips))

    def _long(self) -> None:
        question = self._rng.choice(self._load.recordings.long)
        if self._rng.random() < 0.5:
            self._transcribe("long", question)
        else:
            self._stream_of("long stream", question)

    def _stream(self) -> None:
        self._stream_of("stream", self._rng.choice(self._load.recordings.clips))

    def _transcribe(self, kind: str, question: Question) -> None:
        began = time.monotonic()
        outcome = self._post(ENDPOINT, question.content, response_format=question.response_format)
        self._load.judge(kind, outcome, question, began)

    def _post(self, path: str, content: bytes, **fields: str) -> Outcome:
        try:
            answer = self._http.post(path, files={"file": content}, data=fields)
        except httpx.TimeoutException:
            return Outcome(code=f"nothing within {PATIENCE_S:.0f} s")
        except httpx.TransportError:
            return Outcome(code=CUT)
        return read_answer(answer)

    def _stream_of(self, kind: str, question: Question) -> None:
        began = time.monotonic()
        fields = {"stream": "true", "response_format": question.response_format}
        try:
            with self._http.stream(
                "POST", ENDPOINT, files={"file": question.content}, data=fields
            ) as answer:
                outcome = read_stream(answer, question.response_format)
        except httpx.TimeoutException:
            outcome = Outcome(code=f"nothing within {PATIENCE_S:.0f} s")
        except httpx.TransportError:
            outcome = Outcome(code=CUT)
        self._load.judge(kind, outcome, question, began)

    def _hang_up(self) -> None:
        """Reset the connection in the middle: of the upload, of the work, or of the answer."""
        rng = self._rng
        question = self._any_question()
        sent = _request(question, stream=rng.random() < 0.5)
        if rng.random() < 0.3:
            sent = sent[: rng.randrange(len(sent))]
        began = time.monotonic()
        try:
            with self._load.server.connected() as connection:
                connection.sendall(sent)
                time.sleep(rng.expovariate(2.0))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HANG_UP_NOW)
        except OSError:
            self._load.judge("hung up", Outcome(code=CUT), question, began)
        else:
            self._load.journal.count("hung up", "by the client")

    def _slow(self) -> None:
        """Send a clip in pieces, and take some time to read."""
        question = self._rng.choice(self._load.recordings.clips)
        sent, began = _request(question), time.monotonic()
        piece = len(sent) // self._rng.randrange(5, 20) + 1
        try:
            with self._load.server.connected() as connection:
                for start in range(0, len(sent), piece):
                    connection.sendall(sent[start : start + piece])
                    time.sleep(self._rng.uniform(0.1, 1.0))
                answer = http.client.HTTPResponse(connection, method="POST")
                answer.begin()
                time.sleep(self._rng.uniform(0.0, 2.0))
                outcome = outcome_of(answer.status, answer.headers, answer.read().decode())
        except (OSError, http.client.HTTPException):
            outcome = Outcome(code=CUT)
        self._load.judge("slow", outcome, question, began)

    def _live(self) -> None:
        question = self._rng.choice(self._load.recordings.live)
        speed, began = self._rng.choice(_LIVE_SPEEDS), time.monotonic()
        outcome = transcribe_live(self._load.server.url, question.content, speed=speed)
        self._load.judge("live", outcome, question, began)

    def _live_hang_up(self) -> None:
        sound = self._rng.choice(self._load.recordings.live).content
        part = sound[: self._rng.randrange(len(sound))]
        hang_up_live(self._load.server.url, part, self._rng.choice(_LIVE_GARBAGE))
        self._load.journal.count("live hung up", "by the client")

    def _damaged_media(self) -> None:
        began = time.monotonic()
        outcome = self._post(ENDPOINT, self._damaged())
        self._load.judge("damaged media", outcome, None, began)

    def _damaged(self) -> bytes:
        within = HEAD_BYTES if self._rng.random() < 0.8 else sys.maxsize
        return damage(self._rng.choice(self._load.recordings.media), self._rng, within=within)

    def _damaged_request(self) -> None:
        sent, began = damage_request(self._rng.choice(self._garbage), self._rng), time.monotonic()
        try:
            received = self._exchange(sent)
            # Where more is expected than was sent, nothing comes.
            findings = list(wrong_with(sent, received)) if received else []
        except (OSError, http.client.HTTPException):
            self._load.judge("damaged request", Outcome(code=CUT), None, began)
            return
        status = received.split(maxsplit=2)[1].decode() if received else "no answer"
        self._load.journal.count("damaged request", status)
        if findings and not self._load.journal.overlapping(began, time.monotonic()):
            self._load.journal.find("damaged request", f"{findings} to {sent[:300]!r}")

    def _exchange(self, sent: bytes) -> bytes:
        """Send bytes; return everything received until the server is silent."""
        received = b""
        with self._load.server.connected() as connection:
            connection.sendall(sent)
            connection.settimeout(_SILENCE_S)
            # Not shutting down the sending side, which the server takes for a disconnect.
            with contextlib.suppress(TimeoutError):
                while data := connection.recv(1 << 16):
                    received += data
        return received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _job(self) -> None:
        if len(self._load.jobs) >= MOST_JOBS:
            return
        rng, began = self._rng, time.monotonic()
        question: Question | None = None
        if rng.random() < 0.9:
            question = self._any_question()
        content = question.content if question else self._damaged()
        response_format = question.response_format if question else "json"
        outcome = self._post("/v1/jobs", content, response_format=response_format)
        if outcome.text is None:
            self._load.unanswered_jobs += outcome.code == CUT
            self._load.judge("job sent", outcome, question, began)
            return
        self._load.journal.count("job sent", "accepted")
        job = Accepted(json.loads(outcome.text)["id"], question, began)
        if rng.random() < 0.1:
            job.cancelled = True
            with contextlib.suppress(httpx.TransportError):
                self._http.delete(f"/v1/jobs/{job.id}")
        self._load.jobs[job.id] = job


def _request(question: Question, *, stream: bool = False) -> bytes:
    fields = {"response_format": question.response_format} | ({"stream": "true"} if stream else {})
    request = httpx.Request(
        "POST", f"http://here{ENDPOINT}", files={"file": question.content}, data=fields
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {ENDPOINT} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode() + request.read()


def _name(question: Question | None) -> str:
    return f"{question.name} as {question.response_format}" if question else "garbage"
