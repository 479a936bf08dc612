"""The main path: a file in, words out, as they become final."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from parakeet_api.audio import FfmpegDecoder
from parakeet_api.batching import Batcher
from parakeet_api.chunking import ChunkPolicy, plan_chunks
from parakeet_api.segmentation import split_into_segments
from parakeet_api.settings import Settings
from parakeet_api.speech_gate import heard_words
from parakeet_api.stitching import Stitcher
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Transcript, Word

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """What became final with one chunk."""

    words: tuple[Word, ...]
    done_s: float
    """Seconds of the recording that have been recognised."""


class Pipeline:
    """Turn recordings into transcripts; safe to use from many threads."""

    def __init__(
        self, *, decoder: FfmpegDecoder, batcher: Batcher, policy: ChunkPolicy, settings: Settings
    ) -> None:
        self._decoder = decoder
        self._batcher = batcher
        self._policy = policy
        self._settings = settings
        self._preparers = (
            ThreadPoolExecutor(settings.transcribe_num_workers, thread_name_prefix="prepare")
            if settings.transcribe_num_workers
            else None
        )

    def transcribe(
        self,
        path: Path,
        *,
        language: str = "en",
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Transcript:
        """Transcribe a whole recording.

        Raises `AudioDecodeError` or one of its kinds for a file that cannot be used,
        `RequestCancelled` once `cancelled` turns true, and what the model's lease raises.
        """
        started = time.monotonic()
        words: list[Word] = []
        duration_s = 0.0
        for progress in self.stream(path, cancelled=cancelled):
            words.extend(progress.words)
            duration_s = progress.done_s
            on_progress(progress)
        elapsed_s = time.monotonic() - started
        logger.info(
            "transcribed %.1f s in %.2f s (%.0f times real time), %d words",
            duration_s,
            elapsed_s,
            duration_s / max(elapsed_s, 1e-3),
            len(words),
        )
        return Transcript(
            segments=tuple(split_into_segments(words, language=language)),
            duration=duration_s,
            language=language,
        )

    def stream(
        self, path: Path, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[Progress]:
        """Yield words in order, each once no later audio can change it.

        Decoding, recognition and stitching overlap; what is held does not grow with the file.
        Closing the generator ends ffmpeg and takes waiting chunks out of the queue.
        """
        stitcher = Stitcher(
            sentence_boundary_threshold_s=self._settings.sentence_boundary_threshold_s
        )
        done_s = 0.0
        with (
            closing(self._decoder.stream(path)) as blocks,
            closing(self._prepared(plan_chunks(blocks, self._policy))) as chunks,
            closing(self._batcher.recognize(chunks, cancelled=cancelled)) as recognized,
        ):
            for chunk, words in recognized:
                final = tuple(stitcher.add(chunk, heard_words(chunk, words)))
                done_s = chunk.owned_end / SAMPLE_RATE
                yield Progress(final, done_s)
        yield Progress(tuple(stitcher.finish()), done_s)

    def close(self) -> None:
        """End the threads that prepare audio."""
        if self._preparers is not None:
            self._preparers.shutdown()

    def _prepared(self, chunks: Generator[Chunk]) -> Generator[Chunk]:
        return chunks if self._preparers is None else _one_ahead(chunks, self._preparers)


def _one_ahead(chunks: Generator[Chunk], executor: Executor) -> Generator[Chunk]:
    """Cut the next chunk in another thread while this one is worked on."""
    coming = executor.submit(next, chunks, None)
    try:
        while (chunk := coming.result()) is not None:
            coming = executor.submit(next, chunks, None)
            yield chunk
    finally:
        # The source must not be closed while it runs.
        if not coming.cancel():
            coming.exception()
