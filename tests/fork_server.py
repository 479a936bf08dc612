"""Servers that start in a tenth of a second, from a process that has torch and NeMo imported.

A server's imports take seven seconds of a core, and the tests start a hundred servers. What a
server does with its environment, its files and its signals is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Protocol

import pytest

TESTS = Path(__file__).resolve().parent
READ_AT_IMPORT = ("HF_", "PYTHON", "OMP_", "CUDA_", "RAY_", "LD_", "NEMO_", "TORCH_")
"""Variables that the preloaded packages have read before the server has its own."""


class ServerProcess(Protocol):
    """What tests use of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class StartProcess(Protocol):
    """`start_anew` or `fork`."""

    def __call__(
        self, program: Sequence[str], *, folder: Path, environ: Mapping[str, str], log: Path
    ) -> ServerProcess: ...


class ForkedServer:
    """A `ServerProcess` that the fork server started."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("app.py", timeout or 0.0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def can_fork(program: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Tell whether a forked server would do what a new process does."""
    return program[0].endswith(".py") and not any(
        name.startswith(READ_AT_IMPORT) for name in environ
    )


def start_anew(
    program: Sequence[str], *, folder: Path, environ: Mapping[str, str], log: Path
) -> ServerProcess:
    """Run `python PROGRAM` in a folder; its output is added to the log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *program],
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def fork(
    program: Sequence[str], *, folder: Path, environ: Mapping[str, str], log: Path
) -> ServerProcess:
    """Do the same in a copy of the fork server."""
    process = _start_fork_server().Process(
        target=_run, args=(tuple(program), folder, dict(environ), log)
    )
    process.start()
    return ForkedServer(process)


def _start_fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # Up to Python 3.12 it does not take the path of its parent before it imports.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        forkserver.ensure_running()
    return context


def _run(program: Sequence[str], folder: Path, environ: Mapping[str, str], log: Path) -> None:
    with log.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    sys.argv = list(program)
    runpy.run_path(program[0], run_name="__main__")
