"""The commands and programs in the README and docs/ do what the page says.

What needs Docker, systemd, Kubernetes or the network is checked by its form only.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from conftest import PEOPLE, ROOT, Server, encode, output_of, running_server
from http_helpers import CURL, needs_curl
from markdown import PAGES, blocks, inline_code, name_of

ADDRESS = "http://localhost:5092"
DOCUMENTS = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")]
NOT_RUN = {
    *("docker", "git", "pip", "kubectl", "systemctl", "journalctl", "apt-get", "cp", "install"),
    *("cosign", "echo", "python", "python3", "uv", ".venv/bin/pip"),
}
"""Programs that need the network or an installation; their arguments are checked where possible."""


def _commands(text: str) -> list[list[str]]:
    """Split shell code into commands: lines, `&&` and assignments before a command."""
    joined = text.replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in joined.splitlines()]
    parts = [part for line in lines for part in line.split(" && ")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [command for command in map(_without_assignments, words) if command]


def _without_assignments(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


_STARTS = ("make ", "docker compose ", ".venv/bin/python ", "git pull ")
"""How code within a sentence begins if it is a command."""
SHELL = [
    (page, command)
    for page in DOCUMENTS
    for text in (
        *(block.text for block in blocks(page, "sh")),
        *(code for code in inline_code(page) if code.startswith(_STARTS)),
    )
    for command in _commands(text)
]


@pytest.mark.parametrize(
    ("page", "command"),
    SHELL,
    ids=lambda part: name_of(part) if isinstance(part, Path) else " ".join(part)[:60],
)
def test_every_shell_command_is_known(page: Path, command: list[str]) -> None:
    program, *arguments = command
    if program == "make":
        target = [word for word in arguments if "=" not in word]
        subprocess.run(["make", "--dry-run", *target], cwd=ROOT, check=True, capture_output=True)
    elif program == ".venv/bin/python":
        assert (ROOT / program).exists()
        if arguments[0] == "app.py" and "transcribe" not in arguments:
            assert arguments == ["app.py"]
    elif program == "cd":
        assert arguments == ["parakeet-api"]
    else:
        assert program in NOT_RUN
    if command[:2] == ["docker", "compose"]:
        _check_compose(command[2:])
    for option in ("-r", "-c"):
        if "install" in command and option in arguments:
            assert (ROOT / arguments[arguments.index(option) + 1]).exists()


def _check_compose(arguments: list[str]) -> None:
    """Check the files, the service and the verb of a Compose command."""
    # Before the verb; after `logs`, -f has another meaning.
    pairs = itertools.pairwise(arguments)
    files = [file for word, file in pairs if word == "-f" and file.endswith(".yml")]
    assert all((ROOT / file).exists() for file in files)
    assert {"build", "up", "run", "exec", "pull", "stop", "logs"} & set(arguments)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    if {"run", "exec"} & set(arguments):
        assert set(services) & set(arguments)


@pytest.mark.integration
class TestRun:
    @pytest.fixture(scope="class")
    @staticmethod
    def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        """A server with the bundled model, which the examples' answers are of."""
        settings = {"DEMO_MODEL": "always", "ENABLE_LAZY_LOAD": "false"}
        with running_server(tmp_path_factory.mktemp("english"), **settings) as started:
            yield started

    @needs_curl
    @pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/api.md"])
    def test_curl_prints_what_the_page_shows(self, english: Server, page: str) -> None:
        for block in blocks(ROOT / page, "console"):
            for command, shown in _examples(block.text):
                assert _fits(shown, _curl(english, command)), command

    @needs_curl
    def test_a_job_is_sent_followed_and_fetched(self, english: Server, tmp_path: Path) -> None:
        (example,) = blocks(ROOT / "docs/jobs.md", "console")
        (send, accepted), (follow, running), (fetch, _) = _examples(example.text)
        clip = send.replace("samples/speech/long-pauses.ogg", str(PEOPLE / "england.flac"))

        answer = _curl(english, clip)
        assert _fits(accepted.replace("6f3c...", "..."), answer)
        job = json.loads(answer)["id"]
        assert _keys(running) <= _keys(_curl(english, follow.replace("6f3c...", job)))
        target = tmp_path / "long-pauses.srt"
        fetch = fetch.replace("6f3c...", job).replace("long-pauses.srt", str(target))
        while not target.exists() or "-->" not in target.read_text():
            _curl(english, fetch)

    @pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/api.md"])
    def test_a_program_prints_what_its_comments_say(self, english: Server, page: str) -> None:
        for block in blocks(ROOT / page, "python"):
            code = block.text.replace(ADDRESS, english.url)
            output = output_of([sys.executable, "-W", "ignore", "-c", code], folder=ROOT)
            shown = re.findall(r"^(?:print\(.*\)  )?# (.*)$", block.text, re.MULTILINE)
            assert _fits("\n".join(shown), output)

    def test_the_live_program_prints_what_was_said(self, english: Server, tmp_path: Path) -> None:
        encode(PEOPLE / "england.flac", tmp_path / "talk.wav", "-ac", "1", "-ar", "16000")
        (program,) = blocks(ROOT / "docs/realtime.md", "python")
        code = program.text.replace(ADDRESS, english.url)

        output = output_of([sys.executable, "-W", "ignore", "-c", code], folder=tmp_path)

        assert "cultivated in England" in output

    def test_files_are_transcribed_without_a_server(self, tmp_path: Path) -> None:
        for name, source in (("talk.mp4", "england.flac"), ("interview.mp3", "eggs.flac")):
            encode(PEOPLE / source, tmp_path / name, *(("-c:a", "aac") if "mp4" in name else ()))
        example = next(
            block
            for block in blocks(ROOT / "docs/install.md", "console")
            if "transcribe" in block.text
        )
        ((command, shown),) = _examples(example.text)
        words = [
            str(ROOT / w) if w in (".venv/bin/python", "app.py") else w
            for w in shlex.split(command)
        ]

        output = output_of(
            [sys.executable, *words[1:]],
            folder=tmp_path,
            environ={"DEMO_MODEL": "always", "PATH": "/usr/bin:/bin"},
        )

        assert output == shown.replace("/home/me/parakeet-api", str(tmp_path))
        assert "-->" in (tmp_path / "subtitles/talk.srt").read_text()


def _examples(text: str) -> list[tuple[str, str]]:
    """Split a console session into commands and what they print."""
    parts = re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def _curl(server: Server, command: str) -> str:
    """Run a `curl` of a page, against the test's server."""
    words = shlex.split(command.replace(ADDRESS, server.url))
    assert words[0] == "curl"
    return output_of([*CURL, *words[1:]], folder=ROOT)


def _fits(shown: str, printed: str) -> bool:
    """Tell whether a text is what a page shows; `...` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in _compact(shown).split("..."))
    return re.fullmatch(pattern, _compact(printed), re.DOTALL) is not None


def _compact(text: str) -> str:
    """Leave out the spaces that JSON may have."""
    return re.sub(r"(?<=[:,])\s+", "", text.strip())


def _keys(text: str) -> set[str]:
    return set(re.findall(r'"(\w+)":', text))
