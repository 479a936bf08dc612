"""Two servers and two replicas of the tests' model on a small Ray cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import (
    DEMO_MODEL,
    PATIENCE_S,
    ROOT,
    Clip,
    Server,
    decode,
    running_server,
    wait_until,
    whole,
)
from http_helpers import FORMATS, error_of, events, streamed, transcribe
from in_process import Served, served
from ray_cluster import cluster, replica_processes, serve

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import ClusterUnavailableError
from parakeet_api.keywords import Keyword
from parakeet_api.model.keyword_trees import KeywordTrees
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import Chunk

pytestmark = [pytest.mark.cluster, pytest.mark.integration]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster() as started:
        yield started


@pytest.fixture(scope="module")
def servers(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    environ = {"DEMO_MODEL": "grammar", "RAY_ADDRESS": address, "RAY_REPLICAS": "2"}
    with served(one, **environ) as first, served(two, **environ) as second:
        for each in (first, second):
            load(each)
        wait_until(lambda: running_replicas() == 2, what="two replicas")
        yield [first, second]


def load(each: Served) -> None:
    """Wait for a first replica, with patience for a busy machine."""
    models = each.services.models
    while True:
        try:
            models.load(models.first).result()
        except ClusterUnavailableError:
            # Pytest's own timeout ends this.
            continue
        return


def running_replicas() -> int:
    [deployment] = serve.status().applications["recognizer"].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


def chunks_of(clips: list[Clip], decoder: FfmpegDecoder) -> list[Chunk]:
    return [whole(decode(decoder, clip.path)) for clip in clips]


def said(each: Served, clip: Clip) -> str:
    """Transcribe a clip; give its text, or what was answered instead."""
    answer = transcribe(each.server, clip.path, {"response_format": "text"})
    return answer.text


def test_both_servers_give_the_known_words_in_every_format(
    servers: list[Served], clips: list[Clip]
) -> None:
    clip = clips[0]
    for each in servers:
        for response_format in FORMATS:
            answer = transcribe(each.server, clip.path, {"response_format": response_format})

            assert answer.status_code == 200, answer.text
            spoken = answer.json()["text"] if "json" in response_format else answer.text
            assert clip.text in " ".join(spoken.split()), response_format


def test_a_stream_has_the_known_words(servers: list[Served], clips: list[Clip]) -> None:
    with streamed(servers[0].server, clips[1].path, {}) as lines:
        told = list(events(lines))

    assert told[-1]["text"] == clips[1].text


def test_words_times_probabilities_and_keywords_are_those_of_the_model_itself(
    servers: list[Served], recognizer: NemoRecognizer, clips: list[Clip], decoder: FfmpegDecoder
) -> None:
    tree = KeywordTrees(lambda: DEMO_MODEL).tree([Keyword("Lisbon")])
    chunks = chunks_of(clips[:4], decoder)
    chunks = [replace(chunk, keywords=tree, language="en") for chunk in chunks[:2]] + chunks[2:]

    with servers[0].services.models.first.slot.lease() as remote:
        told = remote.recognize(chunks)

    for there, here in zip(told, recognizer.recognize(chunks), strict=True):
        assert [(w.text, w.start, w.end, w.from_keyword) for w in there] == [
            (w.text, w.start, w.end, w.from_keyword) for w in here
        ]
        assert [w.logprob for w in there] == pytest.approx([w.logprob for w in here], abs=1e-4)


def test_a_request_the_model_refuses_is_refused_as_without_a_cluster(
    servers: list[Served], clips: list[Clip]
) -> None:
    answer = transcribe(servers[0].server, clips[0].path, {"keywords[]": "\u4f60\u597d"})

    assert error_of(answer, 400)["param"] == "keywords[]"


def test_no_request_loses_a_word_when_a_replica_is_killed(
    servers: list[Served], clips: list[Clip]
) -> None:
    asked = [*clips[:12], *clips[:12]]
    known = {clip.path: said(servers[0], clip) for clip in clips[:12]}
    with ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(said, servers[number % 2], clip) for number, clip in enumerate(asked)
        ]
        wait_until(lambda: any(answer.done() for answer in answers), what="the first answer")
        replica_processes()[0].kill()

    assert [answer.result() for answer in answers] == [known[clip.path] for clip in asked]
    wait_until(lambda: running_replicas() == 2, what="a replacement")


def test_a_server_without_a_cluster_answers_503_and_goes_on(
    tmp_path: Path, clips: list[Clip]
) -> None:
    with running_server(tmp_path, RAY_ADDRESS="127.0.0.1:9") as server:
        answer = transcribe(server, clips[0].path)

        assert "RAY_ADDRESS" in error_of(answer, 503)["message"]
        assert int(answer.headers["Retry-After"]) > 0
        assert is_alive(server)


def is_alive(server: Server) -> bool:
    return server.process.poll() is None and bool(server.health()["version"])


def test_a_server_without_ray_address_imports_no_ray(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from app import build_services\n"
        "from parakeet_api.settings import Settings\n"
        f"environ = {{'TEMP_UPLOADS_DIR': {str(tmp_path)!r}, 'DEVICE': 'cpu'}}\n"
        "with build_services(Settings.from_env(environ)):\n"
        "    assert not {'ray', 'psycopg'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=PATIENCE_S)
