"""A replica without a cluster, around models that do nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BUNDLED_MODELS, PATIENCE_S, ROOT, whole
from model_helpers import Model, Models

from parakeet_api.errors import EXIT_DEVICE_LOST
from parakeet_api.scale import replica
from parakeet_api.scale.replica import RecognizerReplica
from parakeet_api.settings import Settings
from parakeet_api.transcript import Chunk, Word

CHUNK = whole(np.ones(16_000, np.int16))


class Gated(Model):
    """A model that waits for the test, and counts the chunks of each pass."""

    def __init__(self) -> None:
        super().__init__(Models())
        self.gate = threading.Event()
        self.passes: list[int] = []

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        self.passes.append(len(chunks))
        self.gate.wait(PATIENCE_S)
        return [[Word("Yes.", chunk.start / 16_000, chunk.end / 16_000)] for chunk in chunks]


def replica_of(model: Model, monkeypatch: pytest.MonkeyPatch, **environ: str) -> RecognizerReplica:
    monkeypatch.setattr(replica, "load_recognizer", lambda *_, **__: model)
    settings = Settings.from_env({"DEMO_MODEL": "grammar", "DEVICE": "cpu"} | environ)
    return RecognizerReplica(settings, model=None, bundled=BUNDLED_MODELS, calls=16)


def test_calls_of_several_servers_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gated()
    served = replica_of(model, monkeypatch, MAX_CONCURRENT_INFERENCES="1")

    async def run() -> list[list[list[Word]]]:
        first = asyncio.create_task(served.recognize([CHUNK]))
        while not model.passes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(served.recognize([CHUNK])) for _ in range(5)]
        while served._batcher.waiting() < 5:
            await asyncio.sleep(0.001)
        model.gate.set()
        return [await task for task in [first, *others]]

    answers = asyncio.run(run())

    assert model.passes == [1, 5]
    assert all(words == [[Word("Yes.", 0.0, 1.0)]] for words in answers)


def test_a_cancelled_call_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gated()
    served = replica_of(model, monkeypatch, MAX_CONCURRENT_INFERENCES="1")

    async def run() -> None:
        first = asyncio.create_task(served.recognize([CHUNK]))
        while not model.passes:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(served.recognize([CHUNK, CHUNK]))
        while not served._batcher.waiting():
            await asyncio.sleep(0.001)
        second.cancel()
        while served._batcher.waiting():
            await asyncio.sleep(0.001)
        model.gate.set()
        await first

    asyncio.run(run())

    assert model.passes == [1]


def test_the_replica_says_which_checkpoint_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replica_of(Gated(), monkeypatch).describe().checkpoint == "parakeet-tdt-demo-en"


def test_a_replica_that_loses_its_gpu_ends(tmp_path: Path) -> None:
    program = """
import asyncio, sys
sys.path[:0] = ["tests", "."]
import pytest
from test_replica import CHUNK, Gated, replica_of
from parakeet_api.errors import DeviceLostError

class Lost(Gated):
    def recognize(self, chunks):
        raise DeviceLostError

with pytest.MonkeyPatch.context() as patch:
    asyncio.run(replica_of(Lost(), patch).recognize([CHUNK]))
"""
    environ: dict[str, Any] = {"PYTHONPATH": str(ROOT / "tests" / "scale")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environ, check=False, timeout=PATIENCE_S
    )

    assert done.returncode == EXIT_DEVICE_LOST
