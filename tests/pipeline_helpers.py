"""Pipelines around a stand-in for the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.batching import Batcher
from parakeet_api.model.devices import plan_inference
from parakeet_api.model.loading import ModelInfo
from parakeet_api.model.recognizer import Recognizer
from parakeet_api.pipeline import Pipeline
from parakeet_api.settings import Settings
from parakeet_api.speech.chunking import ChunkPolicy
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Word


@contextmanager
def pipeline_of(
    recognizer: Recognizer,
    *,
    leased: Callable[[], None] = lambda: None,
    max_seconds: float = 12 * 3600,
    grid: Callable[[], int] = lambda: FRAME,
    **environ: str,
) -> Iterator[Pipeline]:
    settings = Settings.from_env(environ)

    @contextmanager
    def lease() -> Iterator[Recognizer]:
        leased()
        yield recognizer

    plan = plan_inference(settings, None)
    batcher = Batcher(lease, plan=plan, permits=settings.max_concurrent_inferences)
    pipeline = Pipeline(
        decoder=FfmpegDecoder(executable=find_ffmpeg(), max_seconds=max_seconds),
        batcher=batcher,
        policy=ChunkPolicy.from_settings(settings, longest_s=plan.longest_chunk_s),
        settings=settings,
        grid=grid,
    )
    try:
        yield pipeline
    finally:
        pipeline.close()
        batcher.close()


class Counting:
    """A stand-in for the model that returns one word per second."""

    info = ModelInfo("cpu", "fp32", "", 0, "greedy")

    def __init__(self) -> None:
        self.chunks = 0

    def close(self) -> None:
        """Hold nothing."""

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        self.chunks += len(chunks)
        return [
            [
                Word(f"w{second}.", second + 0.1, second + 0.4)
                for second in range(-(-chunk.start // SAMPLE_RATE), chunk.end // SAMPLE_RATE)
            ]
            for chunk in chunks
        ]


def ffmpegs() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        # One may just have ended.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ffmpeg" in process.name():
                found.append(process)
    return found
