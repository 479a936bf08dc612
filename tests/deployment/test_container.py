"""The container's files, tested without building; `check_image.py` builds the image."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml  # type: ignore[import-untyped]
from check_image import GRACE_PERIOD_S
from conftest import PATIENCE_S, ROOT, wait_until
from settings_tables import ALL_NAMES, OF_THE_IMAGE, TABLES, table_rows

from parakeet_api import __version__

pytestmark = pytest.mark.integration

DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENTRYPOINT = (ROOT / "entrypoint.sh").read_text()
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and becomes other users")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader that supports Compose's tag `!reset`."""


_Loader.add_constructor("!reset", lambda *_: None)


def _service(file: str) -> dict[str, Any]:
    composition = yaml.load((ROOT / file).read_text(), Loader=_Loader)
    assert "version" not in composition
    service: dict[str, Any] = composition["services"]["parakeet-api-docker"]
    return service


SERVICE = _service("docker-compose.yml")


def test_compose_uses_the_documented_port_and_volumes() -> None:
    assert SERVICE["ports"] == ["5092:5092"]
    assert SERVICE["volumes"][:2] == [
        "./models:/app/models:ro",
        "./temp_uploads:/app/temp_uploads",
    ]


def test_every_variable_of_the_compose_file_is_read_by_something() -> None:
    unknown = SERVICE["environment"].keys() - set(ALL_NAMES) - OF_THE_IMAGE
    assert not unknown


def test_compose_sets_no_other_defaults_than_the_image() -> None:
    # A name without a value would unset what the image sets.
    values = {name: value for name, value in SERVICE["environment"].items() if value is not None}
    assert values == {
        "PUID": "${PUID:-1000}",
        "PGID": "${PGID:-1000}",
        "DEMO_MODEL": f"${{DEMO_MODEL:-{_image_variable('DEMO_MODEL')}}}",
    }


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_list_what_the_image_reads(page: str) -> None:
    rows = {name: text.replace("`", "") for name, text in table_rows(page).items()}

    for name in ("PUID", "PGID"):
        assert SERVICE["environment"][name] == f"${{{name}:-{rows[name]}}}"
        assert f"${{{name}:-{rows[name]}}}" in ENTRYPOINT


def test_the_image_sets_only_the_demo_model() -> None:
    assert set(re.findall(r"^\s*(?:ENV )?([A-Z_]+)=", DOCKERFILE, re.MULTILINE)) & set(
        ALL_NAMES
    ) == {"DEMO_MODEL"}


def test_compose_requests_a_gpu_and_the_cpu_override_does_not() -> None:
    assert SERVICE["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    override = _service("docker-compose.cpu.yml")
    assert override["deploy"] is None
    assert override["build"] == {"args": {"TORCH": "cpu"}}


def test_the_image_check_uses_the_stop_time_of_compose() -> None:
    assert SERVICE["stop_grace_period"] == f"{GRACE_PERIOD_S:.0f}s"


def test_downloads_go_to_the_named_volume() -> None:
    targets = [volume.split(":")[1] for volume in SERVICE["volumes"]]
    assert Path(_image_variable("HF_HOME")).is_relative_to(targets[2])


def test_the_image_uses_the_demo_model_only_if_configured() -> None:
    assert _image_variable("DEMO_MODEL") == "never"


def test_torchs_allocator_has_its_own_settings() -> None:
    """Expandable segments fail in WSL 2 (torch issue 192330), and a limit for splitting beside them
    keeps what a pass has freed from being used by the next one (torch pull request 193400)."""
    assert "ALLOC_CONF" not in DOCKERFILE


def test_the_image_is_labelled_with_the_version() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in DOCKERFILE


def test_a_change_of_the_code_reinstalls_no_package() -> None:
    packages, final = re.split(r"^FROM .*\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert re.findall(r"^COPY (.*)", packages, re.MULTILINE) == [
        "requirements.txt requirements-ray.txt constraints.txt ./"
    ]
    assert final.index("COPY --from=packages") < final.index("COPY . .")


def test_everything_that_the_server_needs_is_in_the_image() -> None:
    let_in = {
        line.removeprefix("!").split("/")[0]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert {"app.py", "entrypoint.sh", "parakeet_api", "static", "templates", "samples"} <= let_in
    assert all((ROOT / name).exists() for name in let_in)


def _image_variable(name: str) -> str:
    match = re.search(rf"^\s*{name}=(\S+)", DOCKERFILE, re.MULTILINE)
    assert match is not None, name
    return match[1]


def enter(
    folder: Path, *command: str, user: int | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the entrypoint with both folders of its own in `folder`."""
    variables = {
        "PATH": os.environ["PATH"],
        "TEMP_UPLOADS_DIR": str(folder / "uploads"),
        "HF_HOME": str(folder / "cache" / "huggingface"),
    }
    # Another user may not be able to read the checkout.
    script = shutil.copy(ROOT / "entrypoint.sh", folder)
    return subprocess.run(
        [script, *command],
        env=variables | environ,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that every user can reach, and write to."""
    # pytest makes them all for one user, one more where tests run side by side.
    for path in tmp_path.parents:
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    tmp_path.chmod(0o777)
    return tmp_path


def test_the_entrypoint_execs_the_command_and_returns_its_exit_code(folder: Path) -> None:
    done = enter(folder, "sh", "-c", "echo $PPID; exit 7", user=_someone())
    assert done.returncode == 7, done.stderr
    # Not a child of the script: its parent is this test.
    assert done.stdout.strip() == str(os.getpid())


def test_large_temporary_files_are_next_to_the_uploads(folder: Path) -> None:
    done = enter(folder, "sh", "-c", "echo $TMPDIR", user=_someone())
    assert done.stdout.strip() == str(folder / "uploads")
    done = enter(folder, "sh", "-c", "echo $TMPDIR", user=_someone(), TMPDIR="/tmp")
    assert done.stdout.strip() == "/tmp"


@as_root
def test_an_unwritable_folder_is_reported_with_the_fix(folder: Path) -> None:
    (folder / "uploads").mkdir(mode=0o755)
    done = enter(folder, "true", user=1234)
    assert done.returncode == 73
    assert f"{folder}/uploads cannot be written to by user 1234:1234" in done.stderr
    assert "chown 1234:1234" in done.stderr


@as_root
def test_an_unwritable_cache_alone_stops_nothing(folder: Path) -> None:
    (folder / "cache").mkdir(mode=0o755)
    done = enter(folder, "true", user=1234)
    assert done.returncode == 0
    assert "no model can be downloaded there" in done.stderr


@as_root
def test_root_changes_the_owner_of_folders_and_switches_to_puid_and_pgid(folder: Path) -> None:
    (folder / "uploads").mkdir(mode=0o755)
    (folder / "uploads" / "left").touch()
    outside = folder / "outside"
    outside.touch()
    (folder / "uploads" / "link").symlink_to(outside)
    done = enter(folder, "sh", "-c", "id -u; id -g; id -G", PUID="1001", PGID="1002")
    assert done.stdout.split() == ["1001", "1002", "1002"]
    assert "belonged to 0:0, now it belongs to 1001:1002" in done.stderr
    assert _owners(folder / "uploads", folder / "uploads" / "left") == {(1001, 1002)}
    assert _owners(outside) == {(0, 0)}, "a link led out of the folder"


@as_root
def test_a_folder_that_can_be_written_to_keeps_its_owner(folder: Path) -> None:
    (folder / "uploads").mkdir()
    (folder / "uploads").chmod(0o777)
    done = enter(folder, "id", "-u", PUID="1001")
    assert done.stdout.strip() == "1001"
    assert _owners(folder / "uploads") == {(0, 0)}


@as_root
def test_puid_0_stays_root(folder: Path) -> None:
    assert enter(folder, "id", "-u", PUID="0", PGID="0").stdout.strip() == "0"


@as_root
@pytest.mark.parametrize("name", ["PUID", "PGID"])
@pytest.mark.parametrize("value", ["me", "-1", "1.5", "99999999999"])
def test_an_id_that_is_no_number_is_refused_by_name(folder: Path, name: str, value: str) -> None:
    done = enter(folder, "true", user=None, **{name: value})
    assert done.returncode == 2
    assert f"{name}='{value}' is not the number of a user or group" in done.stderr


def test_a_user_who_is_not_root_gets_a_message_that_puid_has_no_effect(folder: Path) -> None:
    done = enter(folder, "true", user=_someone(), PUID="4321")
    assert done.returncode == 0
    assert "have no effect" in done.stderr


def _someone() -> int | None:
    """Return a user to become who is not root: as such, oneself."""
    return 1234 if os.geteuid() == 0 else None


def _owners(*paths: Path) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in paths}


class TestProcessOne:
    """Process 1 of a container without an init: signals without a handler are ignored."""

    def test_the_server_can_be_stopped_before_its_imports_are_done(self, tmp_path: Path) -> None:
        # The first slow import; it never finishes.
        marker = tmp_path / "importing"
        (tmp_path / "numpy.py").write_text(
            f"import pathlib, time\npathlib.Path({str(marker)!r}).touch()\ntime.sleep(600)\n"
        )
        command = [sys.executable, str(ROOT / "app.py")]
        with as_process_one(command, PYTHONPATH=str(tmp_path)) as (process, outside):
            wait_until(marker.exists, what="the import")
            process.terminate()
            assert outside.wait(timeout=PATIENCE_S) == 128 + signal.SIGTERM

    def test_the_entrypoint_can_be_stopped(self, folder: Path) -> None:
        # Its first command is slow, as is changing the owner of a large folder.
        marker = folder / "working"
        slow = folder / "bin" / "mkdir"
        slow.parent.mkdir()
        slow.write_text(f"#!/bin/sh\ntouch {marker}\nsleep 2\n")
        slow.chmod(0o755)
        command = [str(ROOT / "entrypoint.sh"), "echo", "served"]
        paths = f"{slow.parent}:{os.environ['PATH']}"
        with as_process_one(command, PATH=paths, PUID="0", PGID="0") as (process, outside):
            wait_until(marker.exists, what="the first command")
            process.terminate()
            output, _ = outside.communicate(timeout=PATIENCE_S)
        assert outside.returncode == 128 + signal.SIGTERM
        assert output == b""


@contextmanager
def as_process_one(
    command: Sequence[str], **environ: str
) -> Iterator[tuple[psutil.Process, subprocess.Popen[bytes]]]:
    """Run a command as process 1 of a namespace; give it and, outside, what waits for it."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of processes can be made here")
    outside = subprocess.Popen(
        [*unshare, *command], env=os.environ | environ, stdout=subprocess.PIPE
    )
    try:
        wait_until(psutil.Process(outside.pid).children, what="process 1 is there")
        yield psutil.Process(outside.pid).children()[0], outside
    finally:
        outside.kill()
        outside.communicate()
