"""A server process that can be killed, stopped and inspected, and whose disk can be filled."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.faulty_server import SWITCHED_WITHIN_S, InUse, Switches, memory_file
from benchmarks.fidelity import ROOT
from benchmarks.fire.journal import GRACE_S

DISK_MB = 96
"""Some long recordings and what jobs keep."""
_START_S = 120.0
"""On a busy machine."""
_STOP_S = GRACE_S + 30.0
_TRIM_S = 60.0
"""It takes about 0.3 s on an idle machine."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Disk:
    """Where the server writes."""

    folder: Path
    is_small: bool
    """Whether it is a separate file system, which may be filled."""

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill it completely."""
        ballast = self.folder / "ballast"
        try:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(1024 * 1024)):
                    pass
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount a small disk at a folder; where that is not allowed, it is the folder itself."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, is_small=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a server."""

    resident_mb: float
    threads: int
    descriptors: int
    children: int
    files: int
    """Uploads, recordings of jobs, temporary files."""


class Server:
    """`benchmarks.faulty_server` on one port and one disk, over all restarts."""

    def __init__(self, folder: Path, disk: Disk, **environ: str) -> None:
        self.address = ("127.0.0.1", _free_port())
        self.url = "http://{}:{}".format(*self.address)
        self.log = folder / "server.log"
        self._switches = folder / "switches.json"
        self._written = [disk.folder / name for name in ("uploads", "data/recordings", "tmp")]
        temporary = self._written[-1]
        temporary.mkdir()
        self._environ = os.environ | {
            "HOST": self.address[0],
            "PORT": str(self.address[1]),
            "DEMO_MODEL": "grammar",
            "MODELS_DIR": str(folder / "models"),
            # With `auto`, the precision may differ between starts, and with it a word.
            "PRECISION": "fp32",
            "STOP_GRACE_SECONDS": str(GRACE_S),
            "TEMP_UPLOADS_DIR": str(self._written[0]),
            "DATA_DIR": str(disk.folder / "data"),
            "TMPDIR": str(temporary),
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.switch(Switches())

    def start(self) -> None:
        """Start, and wait until a transcription could be served."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.faulty_server", str(self._switches)],
                cwd=ROOT,
                env=self._environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; see {self.log}")
            time.sleep(_POLL_S)

    def is_running(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill the process, as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Stop the process as an operator would; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def in_use(self) -> InUse:
        """Make it release free memory; measure what is in use."""
        memory = memory_file(self._switches)
        memory.unlink(missing_ok=True)
        self._look().send_signal(signal.SIGUSR1)
        # It looks at signals when something happens on a connection.
        self.health()
        deadline = time.monotonic() + _TRIM_S
        while not memory.is_file() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return InUse(**json.loads(memory.read_text()))

    def switch(self, switches: Switches) -> None:
        """Switch faults; they have their effect when this returns."""
        switches.write(self._switches)
        time.sleep(SWITCHED_WITHIN_S)

    def connected(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(self.address, timeout=_START_S)

    def decoders(self) -> list[psutil.Process]:
        """List the running ffmpegs: the server starts nothing else."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._look().children(recursive=True)
        return []

    def health(self) -> dict[str, Any]:
        """Ask for its health."""
        health: dict[str, Any] = self._get("/health").raise_for_status().json()
        return health

    def is_idle(self) -> bool:
        """Tell whether nothing of any request or job is left."""
        health = self.health()
        waiting = (
            any(health["queue"].values()) or health["jobs"]["queued"] or health["jobs"]["running"]
        )
        return not (waiting or self.decoders() or self.files())

    def files(self) -> list[Path]:
        """List the files that requests and jobs have now."""
        return [
            path
            for folder in self._written
            if folder.is_dir()
            for path in folder.rglob("*")
            if path.is_file()
        ]

    def resources(self) -> Resources:
        """Measure its resources."""
        process = self._look()
        return Resources(
            resident_mb=process.memory_info().rss / 1e6,
            threads=process.num_threads(),
            descriptors=process.num_fds(),
            children=len(self.decoders()),
            files=len(self.files()),
        )

    def _look(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._get("/ready").status_code == 200
        return False

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60, trust_env=False, verify=False)


def processes_of(folder: Path) -> list[str]:
    """List the command lines of all processes that name a folder."""
    exceptions = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line and process.pid != os.getpid():
                exceptions.append(line)
    return exceptions


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
