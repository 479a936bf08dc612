"""The README and the pages of docs/: their size, their links, and facts that the code knows."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]
from conftest import ROOT
from markdown import PAGES, anchors, blocks, links, name_of
from settings_tables import ALL_NAMES

from parakeet_api import __version__, errors

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
MOST_LINES = 150
OF_OTHERS = {
    *("AUDIO_STT_ENGINE", "AUDIO_STT_OPENAI_API_BASE_URL", "AUDIO_STT_OPENAI_API_KEY"),
    *("AUDIO_STT_MODEL", "OPENAI_API_KEY", "OPENAI_PROXY_URL"),
    *("COMPOSE_FILE", "PARAKEET_VERSION", "BASE_IMAGE", "DRY_RUN", "PIP_INDEX_URL"),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"),
}
"""Variables of the compose files, the Makefile, and other programs."""


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_a_readme_is_read_in_five_minutes(readme: Path) -> None:
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if urlsplit(target).scheme:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_other_hosts_are_well_formed(page: Path) -> None:
    outside = [urlsplit(target) for target in links(page) if urlsplit(target).scheme]

    assert {link.scheme for link in outside if link.hostname != "localhost"} <= {"https"}
    assert all(
        re.fullmatch(r"localhost|[a-z0-9-]+(\.[a-z0-9-]+)+", link.hostname or "")
        for link in outside
    )


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}

    assert {page for page in (ROOT / "docs").glob("*.md") if page != index} - listed == set()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name in ("docs", ROOT.name)], ids=name_of
)
def test_every_setting_that_is_given_a_value_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    given = set(re.findall(r"\b([A-Z][A-Z]+_[A-Z_]+)=", text))

    assert given - set(ALL_NAMES) - OF_OTHERS == set()


def test_the_codes_in_troubleshooting_are_codes_of_the_server() -> None:
    known = {getattr(error, "code", None) for error in vars(errors).values()}
    known |= {"speech_without_words"}
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    named = {code for row in rows for code in re.findall(r"`([a-z]+_[a-z_]+)`", row)}

    assert named
    assert named - known - {"temp_uploads"} == set()


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert versions[0] == __version__


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_yaml_block_is_yaml(page: Path) -> None:
    for block in blocks(page, "yaml", "yml"):
        assert yaml.safe_load(block.text)
