"""A load generator: clients that send clips over HTTP from several processes.

Each request is written once, before the first is sent, and goes out in one piece over a connection
of its own, as from programs that keep none. A process has some threads, which wait nearly all the
time: `busy` tells how far these clients are from being what limits the server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_GO = "go\n"
_LIMIT_S = 60.0
"""How long a client waits for the server."""
_MAX_PROCESSES = 8
_BOUNDARY = b"0123456789abcdef0123456789abcdef"


@dataclass
class Load:
    """Results of the clients within the measured time."""

    seconds: float = 0.0
    times_s: list[float] = field(default_factory=list)
    """Of each answer 200."""
    others: Counter[str] = field(default_factory=Counter)
    """Other statuses, and failures of the connection, by name."""
    busy: float = 0.0
    """Share of the time that the busiest process worked itself."""


def put_load(
    host: str,
    port: int,
    clips: Sequence[Path],
    *,
    clients: int,
    seconds: float,
    warm_up_s: float,
) -> Load:
    """Let so many clients ask for the clips, over and over, and gather what they met."""
    processes = min(clients, _MAX_PROCESSES, max(1, (os.cpu_count() or 1) // 2))
    shares = [len(range(number, clients, processes)) for number in range(processes)]
    options = {"host": host, "port": port, "seconds": seconds, "warm-up": warm_up_s}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.http_load", *flags, *map(str, clips)]
    running = [
        subprocess.Popen(
            [*command, "--clients", str(share)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write(_GO)
        process.stdin.flush()
    return _gathered([json.loads(process.communicate()[0]) for process in running], seconds)


def request_of(clip: bytes) -> bytes:
    """Write a whole request for the transcript of a wav file."""
    fields = {b"model": b"whisper-1", b"response_format": b"json"}
    parts = [(b'name="file"; filename="clip.wav"', clip)]
    parts += [(b'name="%b"' % name, value) for name, value in fields.items()]
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (_BOUNDARY, *part)
        for part in parts
    )
    body += b"--%b--\r\n" % _BOUNDARY
    return (
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=%b\r\nContent-Length: %d\r\n\r\n%b"
    ) % (_BOUNDARY, len(body), body)


def ask(address: tuple[str, int], request: bytes) -> str:
    """Send a request and read its answer; give the status, or the failure's name."""
    try:
        with socket.create_connection(address, timeout=_LIMIT_S) as connection:
            # A server that refuses may close before it has read all; its answer is there then.
            with suppress(ConnectionError):
                connection.sendall(request)
            with connection.makefile("rb") as answer:
                head = answer.readline()
                answer.read()
    except OSError as error:
        return type(error).__name__
    return head.split()[1].decode("ascii") if head.startswith(b"HTTP/") else "no answer"


def ask_on(
    address: tuple[str, int], requests: Iterable[bytes], load: Load, *, begin: float, end: float
) -> None:
    """Send one request after the other; answers between two moments of the clock count."""
    for request in requests:
        if (started := time.monotonic()) >= end:
            return
        status = ask(address, request)
        ended = time.monotonic()
        if not begin <= ended < end:
            continue
        if status == "200":
            load.times_s.append(ended - started)
        else:
            load.others[status] += 1


def _gathered(member_loads: Sequence[dict[str, object]], seconds: float) -> Load:
    loads = [Load(**member) for member in member_loads]  # type: ignore[arg-type]
    return Load(
        seconds=seconds,
        times_s=list(itertools.chain.from_iterable(load.times_s for load in loads)),
        others=sum((Counter(load.others) for load in loads), Counter()),
        busy=max(load.busy for load in loads),
    )


def _turns(requests: Sequence[bytes], first: int) -> Iterator[bytes]:
    """Return the requests over and over, from one on."""
    return itertools.islice(itertools.cycle(requests), first % len(requests), None)


def main() -> None:
    """Run one process; print the results of its clients as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    requests = [request_of(clip.read_bytes()) for clip in options.clips]
    # All processes start once all are ready.
    print("ready", flush=True)
    sys.stdin.readline()
    load = Load(seconds=options.seconds)
    started, worked_s = time.monotonic(), time.process_time()
    begin = started + options.warm_up
    threads = [
        threading.Thread(
            target=ask_on,
            args=((options.host, options.port), _turns(requests, number), load),
            kwargs={"begin": begin, "end": begin + options.seconds},
        )
        for number in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.busy = (time.process_time() - worked_s) / (time.monotonic() - started)
    print(json.dumps(vars(load)))


if __name__ == "__main__":
    main()
