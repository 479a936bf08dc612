"""Reads the project's Markdown: code blocks, links and anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

PAGES = sorted(
    page
    for pattern in (
        "*.md",
        "docs/*.md",
        "benchmarks/*.md",
        "models/README.md",
        "samples/**/README.md",
    )
    for page in ROOT.glob(pattern)
)
"""All pages that a reader may land on."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|^\[[^\]]+\]: (\S+)$|<(https?://[^>\s]+)>",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str
    heading: str
    """The nearest heading above it, without the `#`."""


def name_of(page: Path) -> str:
    """Name a page by its path in the repository, for the ids of tests."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Find the blocks of a page in any of the languages, in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        if fence[1] in languages:
            headings = re.findall(r"^#+ (.*)$", _without_code(text[: fence.start()]), re.MULTILINE)
            found.append(Block(fence[1], fence[2], headings[-1] if headings else ""))
    return found


def inline_code(page: Path) -> list[str]:
    """Find the code between single backquotes."""
    text = _without_code(page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def links(page: Path) -> list[str]:
    """Find the targets of a page's links and pictures; code is not searched."""
    text = re.sub(r"`[^`\n]*`", "", _without_code(page.read_text(encoding="utf-8")))
    # A picture in a link has two targets.
    text = re.sub(r"!\[", "[", text)
    return ["".join(match.groups(default="")) for match in _LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """Compute the anchors of a page's headings, as GitHub does."""
    text = _without_code(page.read_text(encoding="utf-8"))
    return {_slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def _slug(heading: str) -> str:
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def _without_code(text: str) -> str:
    return _FENCE.sub("", text)
