"""Simulate a cluster of fast GPUs: replicas that sleep as long as an H200 would recognise.

python -m benchmarks.scale_simulation --replicas 1 4 16 64 --servers 1 4 16
python -m benchmarks.scale_simulation --slower 100     replicas sleep a hundred times as long

Real are the web servers' batchers and calls, Ray's processes, and the chunks, 960 kB of silence
each; there is no model, no decoding and no HTTP. All run on this machine, and share its cores.

Slower replicas leave this machine's cores more time for each chunk, as a cluster with so many times
the cores would have, and the speeds in the table are what such a cluster would do. What a core does
for a chunk is the same; a call's way through sockets and locks counts for less than it would.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil

from benchmarks.fidelity import ROOT
from benchmarks.scale import cluster
from parakeet_api.model.batching import Batcher
from parakeet_api.model.devices import InferencePlan
from parakeet_api.model.loading import ModelInfo
from parakeet_api.scale.cluster import connect
from parakeet_api.scale.remote_recognizer import CALL_S, CALLS, RemoteRecognizer, Replicas
from parakeet_api.scale.replica import Served
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word

_APPLICATION = "simulated"
_CHUNK_S = 30
_PASS_S, _SPEED = 0.06, 9300.0
"""A pass takes the first, and a second for so many seconds of audio: with 8 and 32 chunks of 30 s
that is the 2,743 and 5,824 times real time that an H200 was measured at."""
_CALLS_AT_ONCE = 64
_FILLING = 0.25
"""Share of the measured time that passes before, for batches to fill."""
_READY = "ready"
_INFO = ModelInfo("cuda:0", "fp16", "a simulation", 0, "greedy")


class SleepingReplica:
    """Take the chunks that wait, as a batch, and sleep as long as their pass would take."""

    def __init__(self, batch: int, slower: float) -> None:
        self._most_samples = batch * _CHUNK_S * SAMPLE_RATE
        self._slower = slower
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._passing = asyncio.Lock()

    def describe(self) -> Served:
        """Say what is served."""
        return Served(_APPLICATION, _INFO)

    async def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Return no words, when the pass would be done."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((sum(len(chunk.samples) for chunk in chunks), done))
        while not done.done():
            async with self._passing:
                await self._pass()
        return [[] for _ in chunks]

    async def _pass(self) -> None:
        samples, batch = 0, []
        while self._waiting and samples < self._most_samples:
            batch.append(self._waiting.pop(0))
            samples += batch[-1][0]
        if batch:
            await asyncio.sleep(self._slower * (_PASS_S + samples / SAMPLE_RATE / _SPEED))
        for _, done in batch:
            done.set_result(None)


def serve(replicas: int, batch: int, slower: float) -> None:
    """Start the replicas, and wait for all."""
    from ray import serve as ray_serve

    ray_serve.start(proxy_location="Disabled")
    described: Any = ray_serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=_CALLS_AT_ONCE,
        ray_actor_options={
            "num_cpus": 0.01,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
        },
    )(SleepingReplica)
    ray_serve.run(described.bind(batch, slower), name=_APPLICATION, route_prefix=None)


def send(address: str, requests: int, batch: int, seconds: float) -> None:
    """Be one web server: when told, send chunks of so many recordings at once; print the count.

    Counted are those that are done in so many seconds, after a quarter of that to fill the batches.
    """
    connect(address)
    recognizer = RemoteRecognizer(Replicas(_APPLICATION))
    plan = InferencePlan(longest_chunk_s=_CHUNK_S, batch_size=batch, batch_s=CALL_S)
    batcher = Batcher(lambda: contextlib.nullcontext(recognizer), plan=plan, permits=CALLS)
    print(_READY, flush=True)
    sys.stdin.readline()
    begins = time.monotonic() + _FILLING * seconds
    deadline = begins + seconds
    done = [0] * requests

    def ask(number: int) -> None:
        with contextlib.closing(batcher.recognize(_chunks(deadline))) as recognized:
            for _ in recognized:
                done[number] += begins <= time.monotonic() < deadline

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(done), flush=True)
    # Ray's threads are of no use any more.
    os._exit(0)


def _chunks(deadline: float) -> Iterator[Chunk]:
    size = _CHUNK_S * SAMPLE_RATE
    silence = Chunk(0, 0, np.zeros(size, np.int16), 0, size)
    index = 0
    while time.monotonic() < deadline:
        yield replace(silence, index=index)
        index += 1


def measure(address: str, replicas: int, servers: int, options: argparse.Namespace) -> str:
    """Run some servers at once; give a row of the table."""
    # Two batches for each replica; a recording has up to 16 chunks under way.
    requests = max(2, 2 * options.batch * replicas // servers // 16)
    command = [sys.executable, "-m", "benchmarks.scale_simulation", "--server", address]
    command += [
        f"--requests={requests}",
        f"--batch={options.batch}",
        f"--seconds={options.seconds}",
    ]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(servers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == _READY
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    time.sleep(_FILLING * options.seconds)
    busy = psutil.cpu_percent(options.seconds) / 100 * (os.cpu_count() or 1)
    counts = [int(process.communicate()[0]) for process in processes]
    speed = options.slower * sum(counts) * _CHUNK_S / options.seconds
    return (
        f"| {replicas} | {servers} | {speed:,.0f} | {speed / replicas:,.0f} |"
        f" {options.slower * busy:.1f} | {busy:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--slower", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128, help="chunks of a replica's pass")
    parser.add_argument("--server", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        send(options.server, options.requests, options.batch, options.seconds)
    print("| replicas | web servers | times real time | for each replica | cores needed | here |")
    print("|---|---|---|---|---|---|")
    for replicas in options.replicas:
        with cluster(8) as address:
            serve(replicas, options.batch, options.slower)
            for servers in options.servers:
                print(measure(address, replicas, servers, options), flush=True)


if __name__ == "__main__":
    main()
