"""Request health and short transcripts with and without 300 slow connections, or live sessions.

    make connections                                       500 connections
    .venv/bin/python -m benchmarks.connections --slow 60 --healthy 40
    .venv/bin/python -m benchmarks.connections --live 200 --garbage 20

A quarter of the slow ones each sends its head a byte at a time, its body a byte at a time, asks and
never reads, or says nothing. The healthy ones ask one after the other, each on a connection that
stays open, so that as many as `--healthy` are connected at once. Rounds with and without the slow
ones alternate in one run: the ratio of the two is what counts. With `--live`, so many open live
sessions that say nothing take the place of the slow ones, and `--garbage` further ones that send
what is no event ten times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from benchmarks.fidelity import SPEECH
from benchmarks.service import running_service

ROUNDS = 3
ASKING = 4
"""Number of concurrent normal clients."""
CLIP_EVERY = 10
"""One in so many requests of normal clients is a transcription."""
SETTLE_S = 2.0
"""Requests with which the slow clients begin."""
ENDED_S = 10.0
"""After which no thread of a closed connection is left."""
TRICKLE_S = 1.0
"""How often a slow client sends its next byte."""
CLIP = (SPEECH / "clip-003.flac").read_bytes()

GARBAGE_S = 0.1
GARBAGE = ("{", "[]", '{"type": "no.such.event"}', '{"type": "input_audio_buffer.append"}')

HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: here\r\nX-Slow: "
BODY = (
    HEAD + b"1\r\nContent-Type: multipart/form-data; boundary=sep\r\nContent-Length: 9999\r\n\r\n"
)
UNREAD = b"GET /static/app.js HTTP/1.1\r\nHost: here\r\n\r\n" * 5
"""140 KB, more than such a client's socket buffer holds."""
SLOW_STARTS = (HEAD, BODY, UNREAD, b"")


@contextmanager
def slow_clients(address: tuple[str, int], count: int) -> Iterator[None]:
    """Keep so many slow connections open until the block ends."""
    done = threading.Event()
    with ExitStack() as stack:
        trickling = []
        for n in range(count):
            start = SLOW_STARTS[n % len(SLOW_STARTS)]
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(address)
            slow.sendall(start)
            if start in (HEAD, BODY):
                trickling.append(slow)
        with _under_way(partial(_trickle, trickling, done), done):
            yield


@contextmanager
def live_clients(url: httpx.URL, idle: int, garbage: int) -> Iterator[None]:
    """Keep live sessions open until the block ends: idle ones, and some that send garbage."""
    done = threading.Event()
    address = str(url.copy_with(scheme="ws", path="/v1/realtime"))

    async def session(message: str | None) -> None:
        while not done.is_set():
            # The server may end a session that sends garbage: then the client comes again.
            with contextlib.suppress(WebSocketException, OSError):
                async with connect(address, proxy=None) as connection:
                    while not done.is_set():
                        await asyncio.sleep(GARBAGE_S)
                        if message is not None:
                            await connection.send(message)
                            await connection.recv()

    async def sessions() -> None:
        messages = [None] * idle + [GARBAGE[n % len(GARBAGE)] for n in range(garbage)]
        await asyncio.gather(*map(session, messages))

    with _under_way(lambda: asyncio.run(sessions()), done):
        yield


@contextmanager
def _under_way(work: Callable[[], None], done: threading.Event) -> Iterator[None]:
    """Run `work` in a thread; it begins before the block, and ends by `done`, set after it."""
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        done.set()
        thread.join()


def _trickle(connections: list[socket.socket], done: threading.Event) -> None:
    while not done.wait(TRICKLE_S):
        for connection in connections:
            # Closed by the server, as expected.
            with contextlib.suppress(OSError):
                connection.send(b"x")


def ask_all(clients: list[httpx.Client]) -> tuple[list[float], list[float]]:
    """Send one request per client; return the times of health and of transcripts, ms."""

    def ask(number: int) -> float:
        started = time.perf_counter()
        if number % CLIP_EVERY:
            answer = clients[number].get("/health")
        else:
            answer = clients[number].post("/v1/audio/transcriptions", files={"file": CLIP})
        answer.raise_for_status()
        return 1000 * (time.perf_counter() - started)

    with ThreadPoolExecutor(ASKING) as pool:
        times = list(pool.map(ask, range(len(clients))))
    clips = times[::CLIP_EVERY]
    return [t for n, t in enumerate(times) if n % CLIP_EVERY], clips


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", type=int, default=300)
    parser.add_argument("--healthy", type=int, default=200)
    parser.add_argument("--live", type=int, default=0, help="idle live sessions instead")
    parser.add_argument("--garbage", type=int, default=0, help="live sessions that send garbage")
    options = parser.parse_args()
    live = options.live + options.garbage
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    alone: tuple[list[float], list[float]] = ([], [])
    beside: tuple[list[float], list[float]] = ([], [])
    with (
        running_service(MAX_REALTIME_SESSIONS=str(max(64, live))) as service,
        ExitStack() as stack,
    ):
        url = service.url
        address = (url.host, url.port or 80)
        clients = [
            stack.enter_context(httpx.Client(base_url=url, timeout=120, trust_env=False))
            for _ in range(options.healthy)
        ]
        ask_all(clients)
        threads = service.threads()
        for _ in range(ROUNDS):
            _add(alone, ask_all(clients))
            with (
                live_clients(url, options.live, options.garbage)
                if live
                else slow_clients(address, options.slow)
            ):
                _add(beside, ask_all(clients))
        time.sleep(ENDED_S)
        left = service.threads() - threads
    others = f"{options.live} idle and {options.garbage} live ones that send garbage"
    beside_what = others if live else f"{options.slow} slow ones"
    print(f"{options.healthy} healthy connections beside {beside_what}, {ROUNDS} rounds;")
    print(f"threads of the server afterwards: {left:+d}\n")
    print("request     alone p50/p95 ms   beside p50/p95 ms   ratio p50/p95")
    for name, without, with_ in zip(("health", "transcript"), alone, beside, strict=True):
        (p50, p95), (beside_p50, beside_p95) = _quantiles(without), _quantiles(with_)
        print(
            f"{name:<10} {p50:8.0f} {p95:8.0f} {beside_p50:10.0f} {beside_p95:8.0f}"
            f" {beside_p50 / p50:10.2f} {beside_p95 / p95:6.2f}"
        )


def _add(sums: tuple[list[float], list[float]], times: tuple[list[float], list[float]]) -> None:
    for totals, new in zip(sums, times, strict=True):
        totals.extend(new)


def _quantiles(times: list[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


if __name__ == "__main__":
    main()
