"""The whole server in this process, on a real port, so that a test can access its objects."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import ROOT, Server
from model_helpers import Model, Models
from waitress import wasyncore

import app
from parakeet_api import served_models
from parakeet_api.http.routes import create_app
from parakeet_api.http.server import bind
from parakeet_api.http.services import Services
from parakeet_api.http.serving import server_for
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word


@dataclass(frozen=True)
class Served:
    """A server that runs in a thread."""

    server: Server
    """As the helpers of requests take it; it has no process of its own."""
    services: Services


@contextmanager
def served(folder: Path, **environ: str) -> Iterator[Served]:
    """Serve until the block ends; settings are keywords."""
    defaults = {"DEVICE": "cpu", "TEMP_UPLOADS_DIR": str(folder / "uploads")}
    settings = Settings.from_env(defaults | environ)
    with app.build_services(settings) as services, closing(bind("127.0.0.1", 0)) as listener:
        services.jobs.start()
        server = server_for(create_app(services, root=ROOT), services, listener=listener)
        thread = threading.Thread(target=server.run)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        no_process = cast(Any, None)
        try:
            yield Served(
                Server(url, settings.temp_uploads_dir, folder / "no.log", no_process), services
            )
        finally:
            server.task_dispatcher.shutdown()
            trigger: Any = server.trigger
            # Its loop ends when no connection is left, perhaps before it is woken.
            with suppress(OSError):
                trigger.pull_trigger(lambda: wasyncore.close_all(server._map))  # type: ignore[attr-defined]
            thread.join()


class Echoes:
    """Fake models instead of checkpoints; each returns its own name, once per chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(served_models, "load_recognizer", self._load)
        self.counts: dict[str, Models] = {}
        """Loads, and models in memory, by name."""
        self._lock = threading.Lock()

    def count_of(self, name: str) -> Models:
        """Return a model's loads, also before there were any."""
        with self._lock:
            return self.counts.setdefault(name, Models())

    def _load(self, checkpoint: Path, *_: object, **__: object) -> Model:
        name = checkpoint.stem
        count = self.count_of(name)
        count.load()
        return Echo(name, count)

    def alive(self) -> int:
        return sum(count.alive for count in self.counts.values())


class Echo(Model):
    """A model that always returns its name."""

    def __init__(self, name: str, models: Models) -> None:
        super().__init__(models)
        self._name = name

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        super().recognize(chunks)
        return [[self._word(chunk)] for chunk in chunks]

    def _word(self, chunk: Chunk) -> Word:
        # The word lasts as long as the chunk, so that no speech is decoded again.
        return Word(self._name, chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE)
