"""Models that do nothing, and threads that use them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from conftest import PATIENCE_S

from parakeet_api.model.checkpoints import Checkpoint, CheckpointStore
from parakeet_api.model.loading import ModelInfo
from parakeet_api.transcript import Chunk, Word

INFO = ModelInfo(
    device="cpu", precision="fp32", precision_reason="a test", parameters=3, decoding="greedy"
)


class Models:
    """Loads models that do nothing, and counts them."""

    def __init__(self) -> None:
        self.loads = 0
        self.alive = 0
        self.most_alive = 0
        self.before: Callable[[], None] = lambda: None
        """Called in the middle of a load."""
        self._lock = threading.Lock()

    def load(self, *_: object) -> Model:
        with self._lock:
            self.loads += 1
        self.before()
        with self._lock:
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
        return Model(self)

    def unload(self) -> None:
        with self._lock:
            self.alive -= 1


class Model:
    """A recogniser that fails when it is used after it was closed."""

    info = INFO

    def __init__(self, models: Models) -> None:
        self._models = models
        self._closed = False

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        assert not self._closed, "used after it was unloaded"
        return [[] for _ in chunks]

    def close(self) -> None:
        assert not self._closed, "unloaded twice"
        self._closed = True
        self._models.unload()


def files(name: str = "a") -> CheckpointStore:
    """Return a store whose file is on the disk."""
    checkpoint = Checkpoint(Path(f"{name}.nemo"), is_demo=False)
    return cast(CheckpointStore, SimpleNamespace(name=name, checkpoint=lambda: checkpoint))


def run_all(*tasks: Callable[[], None], patience_s: float = 30) -> list[BaseException]:
    """Run tasks at the same time; give what they raised."""
    ready = threading.Barrier(len(tasks))
    raised: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        ready.wait(PATIENCE_S)
        try:
            task()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_s)
        assert not thread.is_alive(), "hangs"
    return raised


def assert_true(value: bool) -> None:
    assert value
