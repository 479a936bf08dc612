"""The page's main path in Firefox, driven over WebDriver BiDi."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from conftest import PEOPLE, ROOT, Server, output_of, running_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("firefox"), DEMO_MODEL="always") as started:
        yield started


def test_transcribing_editing_and_recording_work_in_firefox(english: Server) -> None:
    firefox, node = shutil.which("firefox-esr") or shutil.which("firefox"), shutil.which("node")
    if firefox is None or node is None:
        pytest.skip("Firefox or Node is not installed")

    command = [node, "firefox.mjs", firefox, english.url, str(PEOPLE / "england.flac")]
    seen = json.loads(output_of(command, folder=ROOT / "tests" / "node"))

    assert "England being principally confined to the east" in seen["transcript"]
    assert seen["afterReload"].split()[0] == "Well"
    assert seen["afterReload"].split()[1:] == seen["transcript"].split()[1:]
    assert not seen["tooWide"]
    assert seen["faults"] == []
