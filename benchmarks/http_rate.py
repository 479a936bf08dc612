"""Measure the overhead of HTTP with a fast GPU: the real server around a recognizer that sleeps.

    .venv/bin/python -m benchmarks.http_rate                               1, 16, 128, 256 clients
    .venv/bin/python -m benchmarks.http_rate --clients 128 --mixed         clips of 2 to 25 s
    CLIP_PROCESSES=2 .venv/bin/python -m benchmarks.http_rate              any setting, like that

The recognizer takes what a batch takes on an H200 (15 ms, and 1.1 ms for each 10 s of audio), and
takes and gives away the interpreter meanwhile, as launching a pass' operations does; all else is
what serves. The load comes from a process of its own that hardly works for it. What matters is the
processor time for a request, in the process with the model and in those that receive clips: such a
GPU has more cores beside it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks.fidelity import ROOT, SPEECH
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.loading import ModelInfo
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm, Token, Word

PASS_S = 0.015
"""Fixed time of a forward pass on an H200."""
AUDIO_S = 0.00011
"""Additional time for each second of audio."""
LAUNCHES = 1500
"""Kernel launches of a pass, each of which acquires and releases the GIL."""
MEGABYTES = 30_000
"""Memory of a pass in the plan of such a GPU."""
WORDS_A_SECOND = 2.5
MIXED_S = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25)


class SleepingRecognizer:
    """Sleeps as long as a GPU would work, and returns words at the rate of speech."""

    info = ModelInfo(
        device="cpu", precision="fp16", precision_reason="a sleep", parameters=0, decoding="greedy"
    )

    def __init__(self) -> None:
        import torch

        self._one_gpu = threading.Lock()
        self._number = torch.zeros(1)
        self._slept_s = 0.0
        self._audio_s = 0.0

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Sleep for a pass; return words for each chunk, with tokens and probabilities."""
        longest_s = max(len(chunk.samples) for chunk in chunks) / SAMPLE_RATE
        with self._one_gpu:
            ends = time.monotonic() + PASS_S + AUDIO_S * longest_s * len(chunks)
            for _ in range(LAUNCHES):
                self._number.add_(1)
            time.sleep(max(0.0, ends - time.monotonic()))
        return [_words(chunk) for chunk in chunks]

    def close(self) -> None:
        """Do nothing."""


def _words(chunk: Chunk) -> list[Word]:
    count = int(len(chunk.samples) / SAMPLE_RATE * WORDS_A_SECOND)
    return [_word(chunk.start / SAMPLE_RATE + 0.4 * number, number) for number in range(count)]


def _word(start_s: float, number: int) -> Word:
    ends_sentence = number % 12 == 11
    texts = (" lan", "tern", ".") if ends_sentence else (" lan", "tern")
    tokens = tuple(Token(100 + place, text, -0.01) for place, text in enumerate(texts))
    return Word("".join(texts).strip(), start_s, start_s + 0.32, tokens)


def serve(batch_size: int) -> None:
    """Serve as `app.py` does on a GPU of 141 GB, with the recognizer that sleeps."""
    import app
    from parakeet_api import served_models
    from parakeet_api.logs import set_up_logging
    from parakeet_api.model.devices import Gpu, available_cores
    from parakeet_api.settings import Settings

    vars(served_models)["load_recognizer"] = lambda *_, **__: SleepingRecognizer()
    environ = {
        "TRANSCRIBE_BATCH_SIZE": str(batch_size),
        "MAX_CHUNK_MEMORY_MB": str(MEGABYTES),
        **os.environ,
    }
    settings = Settings.from_env(environ, detected_vram_gb=141, cores=available_cores())
    set_up_logging(level=settings.log_level, log_format=settings.log_format)
    sys.exit(app.serve(settings, Gpu("one that sleeps", total_gb=141)))


@dataclass
class Load:
    """Results of the clients."""

    statuses: Counter[int] = field(default_factory=Counter)
    audio_s: float = 0.0
    times_s: list[float] = field(default_factory=list)


@dataclass
class _Client:
    """One connection after the other, or one for all its requests."""

    turn: Iterator[tuple[bytes, float]]
    sock: socket.socket | None = None
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    answer: bytes = b""
    audio_s: float = 0.0
    started_at: float = 0.0


def put_load(
    address: tuple[str, int],
    requests: Sequence[tuple[bytes, float]],
    *,
    clients: int,
    seconds: float,
    keep_alive: bool,
) -> Load:
    """Send requests, given with the seconds of audio in each, over so many connections."""
    load = Load()
    selector = selectors.DefaultSelector()
    ends = time.monotonic() + seconds
    members = [
        _Client(itertools.islice(itertools.cycle(requests), number, None))
        for number in range(clients)
    ]
    for client in members:
        _begin(client, address, selector)
    while time.monotonic() < ends + 30 and selector.get_map():
        for key, events in selector.select(1):
            client = key.data
            if events & selectors.EVENT_WRITE:
                _send(client, selector)
            if events & selectors.EVENT_READ and _receive(client, load):
                selector.unregister(client.sock)
                if not keep_alive:
                    client.sock.close()
                    client.sock = None
                if time.monotonic() < ends:
                    _begin(client, address, selector)
    return load


def _begin(client: _Client, address: tuple[str, int], selector: selectors.BaseSelector) -> None:
    if client.sock is None:
        client.sock = socket.create_connection(address)
        client.sock.setblocking(False)
    request, client.audio_s = next(client.turn)
    client.unsent, client.answer, client.started_at = memoryview(request), b"", time.monotonic()
    selector.register(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)


def _send(client: _Client, selector: selectors.BaseSelector) -> None:
    assert client.sock is not None
    with suppress(BlockingIOError):
        while client.unsent:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
        selector.modify(client.sock, selectors.EVENT_READ, client)


def _receive(client: _Client, load: Load) -> bool:
    """Read some of an answer; tell whether it is whole."""
    assert client.sock is not None
    received = client.sock.recv(1 << 16)
    client.answer += received
    head, _, body = client.answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if received and (length is None or len(body) < int(length[1])):
        return False
    status = int(head[9:12] or 0)
    load.statuses[status] += 1
    load.audio_s += client.audio_s if status == 200 else 0.0
    load.times_s.append(time.monotonic() - client.started_at)
    return True


def request_of(samples: Pcm, fields: dict[str, str], *, keep_alive: bool) -> bytes:
    """Write a whole transcription request."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    parts = [('name="file"; filename="clip.wav"', target.getvalue())]
    parts += [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    boundary = b"0123456789abcdef0123456789abcdef"
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
        % (boundary, disposition.encode(), content)
        for disposition, content in parts
    )
    body += b"--%b--\r\n" % boundary
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        "Accept-Encoding: gzip, deflate\r\nUser-Agent: benchmark\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n"
        f"Content-Type: multipart/form-data; boundary={boundary.decode()}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@contextmanager
def serving(*options: str, **environ: str) -> Iterator[tuple[psutil.Process, tuple[str, int]]]:
    """Run the server in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.http_rate", "--serve", *options],
            cwd=ROOT,
            env={
                "HOST": "127.0.0.1",
                "PORT": "0",
                "TEMP_UPLOADS_DIR": folder,
                "DEMO_MODEL": "grammar",
            }
            | os.environ
            | environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        url = next(
            match[1]
            for line in process.stderr
            if (match := re.search(r"listening on (http://\S+)", line))
        )
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        try:
            parts = urlsplit(url)
            yield psutil.Process(process.pid), (parts.hostname or "", parts.port or 0)
        finally:
            process.terminate()
            process.wait()
            drain.join()
            process.stderr.close()


def _warm_up(address: tuple[str, int]) -> None:
    """Load the model."""
    request = request_of(speech()[:SAMPLE_RATE], {}, keep_alive=False)
    put_load(address, [(request, 1.0)], clients=1, seconds=0, keep_alive=False)


@dataclass(frozen=True, slots=True)
class Rate:
    """A row of the table."""

    clients: int
    seconds: float
    answers: int
    errors: int
    audio_s: float
    cpu_ms: tuple[float, float]
    """For an answer: of the process with the model, and of its children."""
    p50_s: float
    p95_s: float

    def __str__(self) -> str:
        own_ms, others_ms = self.cpu_ms
        return (
            f"| {self.clients} | {self.answers / self.seconds:.0f} |"
            f" {self.audio_s / self.seconds:,.0f} |"
            f" {self.errors} | {own_ms:.2f} + {others_ms:.2f} |"
            f" {1000 * self.p50_s:.0f} | {1000 * self.p95_s:.0f} |"
        )


def measure(
    server: psutil.Process, address: tuple[str, int], options: argparse.Namespace, clients: int
) -> Rate:
    """Load the server from another process."""
    command = [sys.executable, "-m", "benchmarks.http_rate", "--load", json.dumps(address)]
    command += ["--clients", str(clients), "--seconds", str(options.seconds)]
    command += ["--keep-alive"] * options.keep_alive + ["--mixed"] * options.mixed
    before = _processor_s(server)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    count = sum(result["statuses"].values())
    ok = result["statuses"].get("200", 0)
    own_s, others_s = (now - then for now, then in zip(_processor_s(server), before, strict=True))
    return Rate(
        clients=clients,
        seconds=result["seconds"],
        answers=ok,
        errors=count - ok,
        audio_s=result["audio_s"],
        cpu_ms=(1000 * own_s / max(count, 1), 1000 * others_s / max(count, 1)),
        p50_s=result["p50_s"],
        p95_s=result["p95_s"],
    )


def _processor_s(process: psutil.Process) -> tuple[float, float]:
    """Return what a process has worked, and what its children have, seconds of a core."""
    children = sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return sum(process.cpu_times()[:2]), children


def _tell_load(options: argparse.Namespace) -> None:
    host, port = json.loads(options.load)
    samples = speech()
    lengths = MIXED_S if options.mixed else (10,)
    fields = {"model": "whisper-1", "response_format": "json"}
    requests = [
        (
            request_of(samples[: length * SAMPLE_RATE], fields, keep_alive=options.keep_alive),
            float(length),
        )
        for length in lengths
    ]
    started = time.monotonic()
    load = put_load(
        (host, port),
        requests,
        clients=options.clients[0],
        seconds=options.seconds,
        keep_alive=options.keep_alive,
    )
    times = sorted(load.times_s)
    result = {
        "statuses": load.statuses,
        "audio_s": load.audio_s,
        "seconds": time.monotonic() - started,
        "p50_s": statistics.median(times),
        "p95_s": times[int(0.95 * len(times))],
    }
    print(json.dumps(result))


def speech() -> Pcm:
    """Return some minutes of speech, shape `(samples,)`."""
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
    return np.concatenate(list(decoder.stream(SPEECH / "long-dense.ogg")))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 128, 256])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--keep-alive", action="store_true")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.batch_size)
    elif options.load:
        _tell_load(options)
    else:
        _print_table(options)


def _print_table(options: argparse.Namespace) -> None:
    alone = PASS_S + AUDIO_S * 10 * options.batch_size
    print(f"the GPU alone: {options.batch_size / alone:.0f} clips of 10 s a second\n")
    print("| clients | answers a second | times real time | errors | CPU ms each | p50 | p95 |")
    print("|---|---|---|---|---|---|---|")
    with serving("--batch-size", str(options.batch_size)) as (server, address):
        _warm_up(address)
        for clients in options.clients:
            print(measure(server, address, options, clients), flush=True)


if __name__ == "__main__":
    main()
