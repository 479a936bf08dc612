"""Refuse a release whose tag or names are wrong: check_release.py TAG OWNER/REPOSITORY.

The compose files and the pages name the images and the repository; a release under another name
would send its users to somebody else's images.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "README.md",
    "README.zh-CN.md",
    "docs/upgrading.md",
    "docker-compose.yml",
    "docker-compose.cpu.yml",
    "deploy/kubernetes/base/kustomization.yaml",
)


def faults(tag: str, repository: str) -> list[str]:
    """List what is wrong with a release of `repository` under `tag`."""
    version = re.findall(r'__version__ = "(.+)"', (ROOT / "parakeet_api/__init__.py").read_text())
    found = [f"the tag is {tag}, the version {name}" for name in version if tag != f"v{name}"]
    for file in FILES:
        text = (ROOT / file).read_text(encoding="utf-8")
        names = re.findall(r"(?:ghcr\.io|github\.com)/([\w.-]+/parakeet-api)\b", text)
        wrong = {name.removesuffix(".git") for name in names} - {repository.lower()}
        found += [f"{file} names {name}, this is {repository}" for name in sorted(wrong)]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults(*sys.argv[1:])) or None)
