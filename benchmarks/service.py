"""A real server in a process of its own, reached over HTTP: ours, or the baseline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.fidelity import ROOT


class Service:
    """A running server; may be asked from several threads."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = httpx.URL(url)
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

    def resident_mb(self) -> float:
        """Give the memory of the server and its decoders, each with its share of what is shared."""
        processes = [self._process, *self._process.children(recursive=True)]
        total = 0
        for process in processes:
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                # A decoder that has just ended.
                continue
        return total / 1e6


@contextmanager
def running_service() -> Iterator[Service]:
    """Serve with the demo model on a free port."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _running(
            "app.py", HOST="127.0.0.1", PORT="0", DEMO_MODEL="always", TEMP_UPLOADS_DIR=folder
        ) as service,
    ):
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
    assert process.stderr is not None
    url = next(
        match[1]
        for line in process.stderr
        if (match := re.search(r"listening on (http://\S+)", line))
    )
    drain = ThreadPoolExecutor(1)
    drain.submit(process.stderr.read)
    try:
        yield Service(process, url)
    finally:
        process.terminate()
        process.wait()
        drain.shutdown()
