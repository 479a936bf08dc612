"""A small Ray cluster in this process' children, gone when the block ends."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from conftest import PATIENCE_S, wait_until

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: requirements-ray.txt")
serve: Any = pytest.importorskip("ray.serve", reason="Ray is not installed: requirements-ray.txt")

_OBJECT_STORE_BYTES = 100 * 2**20

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex
os.environ["RAY_raylet_start_wait_time_s"] = str(PATIENCE_S)  # noqa: SIM112 - Ray's spelling
# Ray's processes would give way to all others, and take minutes on a busy machine.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's spelling
# Otherwise Ray warns that its next version will do this.
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"


@contextmanager
def cluster(cpus: int = 4) -> Iterator[str]:
    """Start a cluster and connect this process to it; give its address."""
    context = ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    before = psutil.Process().children(recursive=True)
    try:
        yield str(context.address_info["gcs_address"])
    finally:
        ray.shutdown()
        wait_until(lambda: not any(_is_alive(process) for process in before), what="Ray's end")


def replica_processes() -> list[psutil.Process]:
    """List the processes that Serve's replicas run in."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "ServeReplica" in _command(process)
    ]


def _command(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:
        # It has just ended.
        return ""


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
