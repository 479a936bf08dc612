"""A real server in a process of its own, reached over HTTP: ours, or the baseline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.fidelity import ROOT

_SAMPLE_S = 0.1
"""Sampling interval of decoders: ffmpeg runs for half a second on ten minutes of mp3."""


@dataclass
class Peak:
    """Peak memory, megabytes."""

    server_mb: float = 0.0
    decoders_mb: float = 0.0

    @property
    def total_mb(self) -> float:
        """Add both, as if the peaks had coincided."""
        return self.server_mb + self.decoders_mb


class Service:
    """A running server; thread-safe."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: list[str]) -> None:
        self.url = httpx.URL(url)
        self.log = log
        """Its lines so far."""
        self._process = psutil.Process(process.pid)
        self._client = httpx.Client(
            base_url=url, timeout=3600, limits=httpx.Limits(max_connections=None)
        )

    def transcribe(self, file: Path) -> str:
        """Send a file; give the transcript as the server wrote it."""
        with file.open("rb") as upload:
            answer = self._client.post(
                "/v1/audio/transcriptions", files={"file": (file.name, upload)}
            )
        return answer.raise_for_status().text

    def threads(self) -> int:
        """Count the server's threads."""
        return int(self._process.num_threads())

    def cpu_s(self) -> float:
        """Return the processor time that the server has taken so far, seconds, without decoders."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Measure the peak memory of the server and its decoders within a block."""
        # Resets the kernel's peak counter of the server, as sampling would miss short passes.
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5", encoding="ascii")
        peak = Peak()
        done = threading.Event()
        watcher = threading.Thread(target=self._watch_decoders, args=(peak, done))
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()
            peak.server_mb = self._high_water_mb()

    def _watch_decoders(self, peak: Peak, done: threading.Event) -> None:
        while not done.wait(_SAMPLE_S):
            peak.decoders_mb = max(peak.decoders_mb, self._decoders_mb())

    def _decoders_mb(self) -> float:
        """Return the memory of all decoders, each with its share of what is shared."""
        total = 0
        for process in self._process.children(recursive=True):
            # One may have just ended.
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def _high_water_mb(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        kilobytes = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        assert kilobytes is not None
        return int(kilobytes[1]) * 1024 / 1e6


@contextmanager
def running_service(**environment: str) -> Iterator[Service]:
    """Serve on a free port, with the demo model unless `MODEL_PATH` is given."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "HOST": "127.0.0.1",
            "PORT": "0",
            "DEMO_MODEL": "grammar",
            "TEMP_UPLOADS_DIR": folder,
        }
        with _running("app.py", **(settings | environment)) as service:
            yield service


@contextmanager
def running_baseline(*, clean_ups: bool) -> Iterator[Service]:
    """Serve the baseline on a free port."""
    flags = () if clean_ups else ("--no-clean-ups",)
    with _running("-m", "benchmarks.baseline", "--port", "0", *flags) as service:
        yield service


@contextmanager
def _running(*arguments: str, **environment: str) -> Iterator[Service]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []
    drain = ThreadPoolExecutor(1)
    try:
        url = _listening_url(process, log)
        drain.submit(log.extend, process.stderr or ())
        yield Service(process, url, log)
    finally:
        process.terminate()
        process.wait()
        drain.shutdown()


def _listening_url(process: subprocess.Popen[str], log: list[str]) -> str:
    """Read the log until the server listens. Raises `RuntimeError` if it ends before."""
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line)
        if match := re.search(r"listening on (http://\S+)", line):
            return match[1]
    raise RuntimeError(f"the server did not start: {''.join(log[-5:])}")
