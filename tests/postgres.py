"""A PostgreSQL of the tests' own, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Debian's; `initdb` is not on the PATH."""
_AS_ANOTHER_USER = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
"""It refuses to run as root."""

needs_postgres = pytest.mark.skipif(
    not _PROGRAMS, reason="no PostgreSQL: apt-get install postgresql"
)


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server until the block ends, on a socket alone; give the address of its databases."""
    # Not pytest's folder, which another user may not enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        data, log = folder / "data", folder / "log"
        _run("initdb", f"--pgdata={data}", "--auth=trust", "--username=tests", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        _run("pg_ctl", f"--pgdata={data}", f"--log={log}", f"--options={options}", "start")
        try:
            yield f"postgresql://tests@/postgres?host={folder}"
        finally:
            _run("pg_ctl", f"--pgdata={data}", "--mode=immediate", "stop")


def new_database(address: str) -> str:
    """Create a database; give its address."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
    return address.replace("/postgres?", f"/{name}?")


def _run(program: str, *arguments: str) -> None:
    command = [str(_PROGRAMS[-1] / program), *arguments]
    if os.geteuid() == 0:
        command = [*_AS_ANOTHER_USER, *command]
    # Not a pipe: the server that pg_ctl starts would keep it open.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, cwd="/", timeout=240
        )
        output.seek(0)
        assert done.returncode == 0, output.read().decode()
