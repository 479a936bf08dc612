"""The recipes of docs/clients.md, run with each client's released package.

`make clients` installs the packages into an environment of their own; without it, all but OpenAI's
packages are skipped.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import PATIENCE_S, ROOT, Clip, Server, encode, output_of, wait_until
from markdown import Block, blocks

from parakeet_api.audio.ffmpeg import find_ffmpeg

pytestmark = pytest.mark.integration

ADDRESS = "http://localhost:5092"
PAGE = ROOT / "docs" / "clients.md"
PACKAGES = ROOT / ".venv-clients" / "bin" / "python"
NODE = ROOT / "tests" / "node"

needs_packages = pytest.mark.skipif(not PACKAGES.exists(), reason="no packages: `make clients`")
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules" / "openai").is_dir(),
    reason="no node, or no OpenAI package for it: `npm ci` in tests/node",
)


def _recipe(heading: str, *languages: str) -> str:
    (first, *_) = [block for block in blocks(PAGE, *languages) if block.heading == heading]
    assert isinstance(first, Block)
    return first.text


@pytest.fixture(scope="module")
def talk(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the file that the recipes send; its folder also has an `ffmpeg`."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "ffmpeg").symlink_to(find_ffmpeg())
    return encode(clips[0].path, folder / "talk.wav", "-ac", "1", "-ar", "16000")


def _run(command: list[str | Path], *, folder: Path, path: Path) -> str:
    environment = os.environ | {
        "PATH": f"{path}:{os.environ['PATH']}",
        # Without it, LiteLLM asks the network for prices.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return output_of(command, folder=folder, environ=environment)


def test_openai_python(server: Server, talk: Path, clips: list[Clip]) -> None:
    code = _recipe("openai-python", "python").replace(ADDRESS, server.url)

    assert (
        _run([sys.executable, "-c", code], folder=talk.parent, path=talk.parent)
        == f"{clips[0].text}\n"
    )


@needs_node
def test_openai_for_node(server: Server, talk: Path, clips: list[Clip]) -> None:
    code = _recipe("openai for Node", "js").replace(ADDRESS, server.url)
    code = code.replace("talk.wav", str(talk))

    output = _run(["node", "--input-type=module", "-e", code], folder=NODE, path=talk.parent)

    assert output == f"{clips[0].text}\n"


@needs_packages
@pytest.mark.parametrize("heading", ["LiteLLM", "LangChain", "LiveKit Agents", "Pipecat"])
def test_a_python_client(heading: str, server: Server, talk: Path, clips: list[Clip]) -> None:
    code = _recipe(heading, "python").replace(ADDRESS, server.url)

    output = _run([PACKAGES, "-W", "ignore", "-c", code], folder=talk.parent, path=talk.parent)

    assert output.splitlines()[-1] == clips[0].text


@pytest.fixture
def wyoming(server: Server, tmp_path: Path) -> Iterator[int]:
    """Run Home Assistant's proxy as on the page; give its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
    (line,) = re.findall(r"^python (-m .*)$", _recipe("Home Assistant", "sh"), re.MULTILINE)
    arguments = shlex.split(
        line.replace(ADDRESS, server.url).replace("0.0.0.0:10300", f"127.0.0.1:{port}")
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([PACKAGES, *arguments], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: _accepts(port), what="Home Assistant's proxy")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@needs_packages
def test_home_assistants_proxy(wyoming: int, talk: Path, clips: list[Clip]) -> None:
    client = Path(__file__).parent / "wyoming_client.py"

    output = _run([PACKAGES, client, str(wyoming), talk], folder=talk.parent, path=talk.parent)

    assert output == f"{clips[0].text}\n"
