"""Measure recognition on a Ray cluster of this machine beside a single process, and with faults.

python -m benchmarks.scale overhead              one web server and one replica, beside one process
python -m benchmarks.scale kills --seconds 300   a replica killed every 5 s under load
python -m benchmarks.scale archive --clips 2000  a worker killed, then the command; a second run

The cluster has Ray's own processes; the model is the model of the tests.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fidelity import ROOT
from benchmarks.service import Service, running_service
from parakeet_api.audio.ffmpeg import find_ffmpeg

SPEECH = ROOT / "samples" / "speech"
CLIPS = [SPEECH / entry["file"] for entry in json.loads((SPEECH / "clips.json").read_text())]
_KILL_EVERY_S = 5.0
_OBJECT_STORE_BYTES = 300 * 2**20


@contextmanager
def cluster(cpus: int) -> Iterator[str]:
    """Start a cluster with so many cores, real or not; give its address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    context: Any = ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield str(context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def processes(of: int, name: str) -> list[psutil.Process]:
    """List the processes of an actor's class below a process."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        # It may have just ended.
        with suppress(psutil.Error):
            if name in "".join(child.cmdline()):
                found.append(child)
    return found


def recording(folder: Path, minutes: int) -> Path:
    """Make an mp3 of so many minutes of speech."""
    target = folder / f"{minutes}.mp3"
    command = [find_ffmpeg(), "-loglevel", "error", "-stream_loop", "-1"]
    command += ["-i", str(SPEECH / "long-dense.ogg"), "-t", str(60 * minutes), str(target)]
    subprocess.run(command, check=True)
    return target


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def send_clips(service: Service, count: int, clients: int) -> None:
    """Send clips from several clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        for answer in [
            pool.submit(service.transcribe, CLIPS[number % len(CLIPS)]) for number in range(count)
        ]:
            answer.result()


def overhead(options: argparse.Namespace) -> None:
    """Print the time through one web server and one replica, relative to one process."""
    long = recording(Path(options.folder), options.minutes)
    works: dict[str, Callable[[Service], object]] = {
        f"{options.minutes}-minute mp3": lambda service: service.transcribe(long),
        f"{options.clips} clips, 16 clients": lambda service: send_clips(
            service, options.clips, 16
        ),
    }
    with (
        cluster(4) as address,
        running_service() as single,
        running_service(RAY_ADDRESS=address) as web,
    ):
        for service in (single, web):
            send_clips(service, 16, 4)
        for name, work in works.items():
            seconds: dict[str, list[float]] = collections.defaultdict(list)
            for turn in range(options.rounds):
                pair = [("single", single), ("web", web)][:: 1 if turn % 2 else -1]
                for place, service in pair:
                    seconds[place].append(timed(lambda: work(service)))  # noqa: B023
            ratios = [w / s for w, s in zip(seconds["web"], seconds["single"], strict=True)]
            print(
                f"{name}: {statistics.median(ratios):.2f} times;"
                f" one process {statistics.median(seconds['single']):.2f} s,"
                f" web server and replica {statistics.median(seconds['web']):.2f} s,"
                f" ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
                flush=True,
            )


def kills(options: argparse.Namespace) -> None:
    """Print what came of requests while replicas were killed."""
    with cluster(4) as address, ExitStack() as stack:
        environ = {"RAY_ADDRESS": address, "RAY_REPLICAS": "2"}
        services = [stack.enter_context(running_service(**environ)) for _ in range(2)]
        known = {clip: services[0].transcribe(clip) for clip in CLIPS}
        deadline = time.monotonic() + options.seconds
        outcomes: collections.Counter[str] = collections.Counter()
        latest_s = [0.0]

        def ask(number: int) -> None:
            while time.monotonic() < deadline:
                clip = CLIPS[number % len(CLIPS)]
                number += 7
                started = time.monotonic()
                try:
                    text = services[number % 2].transcribe(clip)
                    outcomes["right" if text == known[clip] else "wrong"] += 1
                # Counted by kind.
                except Exception as error:
                    outcomes[type(error).__name__] += 1
                latest_s[0] = max(latest_s[0], time.monotonic() - started)

        killed = 0
        with ThreadPoolExecutor(options.clients) as pool:
            for number in range(options.clients):
                pool.submit(ask, number)
            while time.monotonic() < deadline:
                time.sleep(_KILL_EVERY_S)
                for process in processes(os.getpid(), "ServeReplica")[:1]:
                    process.kill()
                    killed += 1
        print(f"{killed} replicas killed in {options.seconds} s; answers: {dict(outcomes)};")
        print(f"the slowest took {latest_s[0]:.1f} s")


def archive(options: argparse.Namespace) -> None:
    """Print what came of an archive whose worker and whose command were killed."""
    source, target = Path(options.folder) / "source", Path(options.folder) / "target"
    source.mkdir()
    for number in range(options.clips):
        clip = CLIPS[number % len(CLIPS)]
        shutil.copyfile(clip, source / f"{number:05d}{clip.suffix}")
    if options.long:
        long = recording(Path(options.folder), options.minutes)
        for number in range(options.long):
            shutil.copyfile(long, source / f"long-{number:02d}{long.suffix}")
    files = options.clips + options.long
    command = [sys.executable, "app.py", "archive", str(source), str(target)]
    command += ["--format", "srt,json", "--workers", str(options.workers)]
    environ = os.environ | {"DEMO_MODEL": "grammar"}
    first = subprocess.Popen(command, cwd=ROOT, env=environ)
    _wait_for(target, files // 4, first)
    processes(first.pid, "MapWorker")[0].kill()
    _wait_for(target, files // 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = _entries(target)
    seconds = timed(lambda: subprocess.run(command, cwd=ROOT, env=environ, check=False))
    after = collections.Counter(entry["file"] for entry in _entries(target))
    twice = sum(count - 1 for count in after.values())
    print(
        f"{files} files: {len(before)} when the command was killed, {len(after)} after the"
        f" second run of {seconds:.0f} s, {twice} done twice"
    )


def _entries(target: Path) -> list[dict[str, Any]]:
    parts = sorted(target.glob("manifest/*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def _wait_for(target: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while len(_entries(target)) < count:
        if process.poll() is not None:
            raise RuntimeError("the command ended before it was killed")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("overhead")
    command.add_argument("--minutes", type=int, default=60)
    command.add_argument("--clips", type=int, default=200)
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=overhead)
    command = commands.add_parser("kills")
    command.add_argument("--seconds", type=int, default=300)
    command.add_argument("--clients", type=int, default=8)
    command.set_defaults(run=kills)
    command = commands.add_parser("archive")
    command.add_argument("--clips", type=int, default=2000)
    command.add_argument("--long", type=int, default=20)
    command.add_argument("--minutes", type=int, default=10)
    command.add_argument("--workers", type=int, default=2)
    command.set_defaults(run=archive)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as options.folder:
        options.run(options)


if __name__ == "__main__":
    main()
