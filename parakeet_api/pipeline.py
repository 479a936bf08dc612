"""The main path: transcribe a file, yielding words as they become final."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.media_info import TrackChoice
from parakeet_api.errors import DiarizationOffError
from parakeet_api.keywords import Keyword, KeywordTree
from parakeet_api.metrics import Metrics
from parakeet_api.settings import Settings
from parakeet_api.speech.activity import SpeechActivity, SpeechDetector
from parakeet_api.speech.assembly import Assembly
from parakeet_api.speech.chunking import ChunkPolicy, plan_chunks, split_channels
from parakeet_api.speech.diarization import Diarizer
from parakeet_api.speech.holes import Completed, Span, complete_words
from parakeet_api.speech.language_detection import spoken_language
from parakeet_api.speech.segmentation import split_into_segments
from parakeet_api.speech.speaker_hearing import SpeakerHearing
from parakeet_api.speech.speech_gate import drop_hallucinations
from parakeet_api.speech.stitching import Stitcher
from parakeet_api.transcript import (
    FRAME,
    NO_SPEAKERS,
    SAMPLE_RATE,
    Caveat,
    Chunk,
    Pcm,
    Segment,
    SoundTrack,
    SpeakerRequest,
    Transcript,
    Word,
)

logger = logging.getLogger(__name__)

ENGLISH = frozenset({"en"})
_MAX_SPEECH_CAVEATS = 100
"""Spans that a transcript warns of; a recording in another language would have thousands."""
_NO_SAMPLES: Pcm = np.zeros(0, np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What became final with one chunk."""

    words: tuple[Word, ...]
    samples: Pcm
    """The samples that were recognised, a view of shape `(samples,)`."""
    done_s: float
    """Seconds of the recording recognised so far."""
    total_s: float | None
    """Duration in seconds by the header, if known; often an estimate."""
    caveats: tuple[Caveat, ...] = ()
    """Warnings about the audio; complete in the last `Progress`."""
    tracks: tuple[SoundTrack, ...] = ()
    segments: tuple[Segment, ...] = ()
    """The words by speaker, where a request asks for that."""


class ChunkRecognizer(Protocol):
    """The interface of `Batcher` that a pipeline uses."""

    def recognize(
        self, chunks: Iterable[Chunk], *, cancelled: Callable[[], bool]
    ) -> Generator[tuple[Chunk, list[Word]]]:
        """Yield each chunk of one recording with its words, in order."""
        ...


class Keywords(Protocol):
    """What a pipeline needs of a `KeywordTrees`."""

    def tree(self, keywords: Sequence[Keyword] = ()) -> KeywordTree | None:
        """Give the tree of a recording's phrases and those of all recordings."""
        ...


class Pipeline:
    """Turn recordings into transcripts; thread-safe."""

    def __init__(
        self,
        *,
        decoder: FfmpegDecoder,
        batcher: ChunkRecognizer,
        policy: ChunkPolicy,
        settings: Settings,
        metrics: Metrics | None = None,
        detector: SpeechDetector | None = None,
        keywords: Keywords | None = None,
        diarizer: Diarizer | None = None,
        grid: Callable[[], int] = lambda: FRAME,
    ) -> None:
        """Without a `detector`, speech without words is not searched for.

        Without `keywords`, those of recordings have no effect. Without a `diarizer`, no voices are
        told apart. `grid` returns the distance in samples of the places where chunks may start.
        """
        self._grid = grid
        self._keywords = keywords
        self._diarizer = diarizer
        self._metrics = metrics or Metrics()
        self._detector = detector
        self._decoder = decoder
        self._batcher = batcher
        self._policy = policy
        self._settings = settings
        self._count_lock = threading.Lock()
        self.recordings = 0
        """Number of recordings being transcribed; may be read at any time."""
        self._preparers = (
            ThreadPoolExecutor(settings.transcribe_num_workers, thread_name_prefix="prepare")
            if settings.transcribe_num_workers
            else None
        )

    def transcribe(
        self,
        path: Path,
        *,
        languages: frozenset[str] = ENGLISH,
        raw_pcm: bool = False,
        track: TrackChoice = None,
        allow_partial: bool = False,
        keywords: Sequence[Keyword] = (),
        speakers: SpeakerRequest = NO_SPEAKERS,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Transcript:
        """Transcribe a whole recording, spoken in one of `languages` (ISO 639-1 codes).

        A single language is passed to a model that takes prompts.

        `track` selects an audio track; with `allow_partial`, a truncated file is transcribed as
        far as it goes, with a caveat. `keywords` are phrases that may be spoken, `speakers` asks
        who spoke.

        Raises `AudioDecodeError` or a subclass for a file that cannot be decoded,
        `InvalidRequestError` for a keyword that the model cannot spell,
        `RequestCancelled` once `cancelled` returns true, and what the model's lease and the
        diarizer raise.
        """
        started = time.monotonic()
        words: list[Word] = []
        segments: list[Segment] = []
        progress = Progress((), _NO_SAMPLES, 0.0, None)
        for progress in self.stream(
            path,
            languages=languages,
            raw_pcm=raw_pcm,
            track=track,
            allow_partial=allow_partial,
            keywords=keywords,
            speakers=speakers,
            cancelled=cancelled,
        ):
            words.extend(progress.words)
            segments.extend(progress.segments)
            on_progress(progress)
        duration_s = progress.done_s
        elapsed_s = time.monotonic() - started
        logger.debug(
            "transcribed %.1f s in %.2f s (%.0f times real time), %d words",
            duration_s,
            elapsed_s,
            duration_s / max(elapsed_s, 1e-3),
            len(words),
        )
        language = spoken_language(words, candidates=languages)
        return Transcript(
            segments=tuple(segments or split_into_segments(words, language=language or "en")),
            duration=duration_s,
            language=language,
            caveats=progress.caveats,
            tracks=progress.tracks,
        )

    def stream(
        self,
        path: Path,
        *,
        languages: frozenset[str] = ENGLISH,
        raw_pcm: bool = False,
        track: TrackChoice = None,
        allow_partial: bool = False,
        keywords: Sequence[Keyword] = (),
        speakers: SpeakerRequest = NO_SPEAKERS,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Progress]:
        """Yield words in order, each once no later audio can change it.

        Decoding, recognition and stitching overlap; memory does not grow with the file's length.
        Closing the generator stops ffmpeg and removes waiting chunks from the queue.
        """
        hearing = self._hearing(speakers)
        assembly = Assembly(
            sentence_boundary_threshold_s=self._settings.sentence_boundary_threshold_s,
            speakers=speakers,
            hearing=hearing,
            language_of=lambda words: spoken_language(words, candidates=languages) or "en",
        )
        done_s = decoding_s = 0.0
        with (
            self.counted(),
            closing(
                self._decoder.stream(
                    path,
                    raw_pcm=raw_pcm,
                    track=track,
                    allow_partial=allow_partial,
                    channels=speakers.channels,
                )
            ) as audio,
            _closing(hearing),
            closing(self._prefetched(self._planned(audio, hearing))) as planned,
            closing(self._with_hints(planned, languages, keywords)) as chunks,
            closing(self._batcher.recognize(chunks, cancelled=cancelled)) as recognized,
        ):
            heard: list[Pcm] = []
            for chunk, words in recognized:
                completed = self.complete(chunk, words, cancelled=cancelled)
                heard.append(chunk.owned_samples)
                final = assembly.add(chunk, completed)
                if final is None:
                    continue
                samples = _mixed(heard)
                heard.clear()
                self._metrics.audio_seconds.inc(len(samples) / SAMPLE_RATE)
                self._metrics.decode_seconds.inc(audio.spent_s - decoding_s)
                done_s, decoding_s = chunk.owned_end / SAMPLE_RATE, audio.spent_s
                yield Progress(
                    final.words, samples, done_s, audio.expected_s, segments=final.segments
                )
        final = assembly.finish()
        caveats = (
            *audio.caveats,
            *speech_without_words_caveats(assembly.without_words()),
            *assembly.caveats(),
        )
        yield Progress(
            final.words, _NO_SAMPLES, done_s, done_s, caveats, audio.tracks, final.segments
        )

    def words_of(
        self,
        samples: Pcm,
        *,
        languages: frozenset[str] = ENGLISH,
        keywords: Sequence[Keyword] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Word]:
        """Recognise audio that is in memory, as `stream` does a file; raises what that raises."""
        stitcher = Stitcher(
            sentence_boundary_threshold_s=self._settings.sentence_boundary_threshold_s
        )
        words: list[Word] = []
        chunks = self._with_hints(self._chunks([samples]), languages, keywords)
        with (
            self.counted(),
            closing(self._batcher.recognize(chunks, cancelled=cancelled)) as recognized,
        ):
            for chunk, found in recognized:
                completed = self.complete(chunk, found, cancelled=cancelled)
                words.extend(stitcher.add(chunk, completed.words))
        self._metrics.audio_seconds.inc(len(samples) / SAMPLE_RATE)
        return [*words, *stitcher.finish()]

    def glance(
        self,
        chunk: Chunk,
        *,
        languages: frozenset[str] = ENGLISH,
        keywords: Sequence[Keyword] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Word]:
        """Recognise a window of a turn that is still growing.

        Speech without words is not decoded again: the next window may have them.
        """
        chunks = self._with_hints([chunk], languages, keywords)
        with (
            self.counted(),
            closing(self._batcher.recognize(chunks, cancelled=cancelled)) as recognized,
        ):
            [(_, words)] = recognized
        activity = SpeechActivity(chunk, self._detector) if self._detector else None
        return drop_hallucinations(chunk, words, activity)

    def complete(
        self,
        chunk: Chunk,
        words: Sequence[Word],
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Completed:
        """Drop a chunk's hallucinated words, and recognise speech without words once more."""

        def recognize(parts: Sequence[Chunk]) -> Iterator[list[Word]]:
            with closing(self._batcher.recognize(parts, cancelled=cancelled)) as recognized:
                for _, part_words in recognized:
                    yield part_words

        completed = complete_words(chunk, words, detector=self._detector, recognize=recognize)
        self._metrics.recovered_words.inc(completed.recovered)
        self._metrics.unheard_seconds.inc(sum(s.end - s.start for s in completed.without_words))
        return completed

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more recording in `recordings` for as long as the block runs."""
        with self._count_lock:
            self.recordings += 1
        try:
            yield
        finally:
            with self._count_lock:
                self.recordings -= 1

    def close(self) -> None:
        """Stop the threads that prepare audio."""
        if self._preparers is not None:
            self._preparers.shutdown()

    def _hearing(self, speakers: SpeakerRequest) -> SpeakerHearing | None:
        """Prepare a diarizer for a recording. Raises `DiarizationOffError` if there is none."""
        if not speakers.diarize:
            return None
        if self._diarizer is None:
            raise DiarizationOffError
        return SpeakerHearing(self._diarizer, speakers.known)

    def _planned(self, audio: Iterable[Pcm], hearing: SpeakerHearing | None) -> Generator[Chunk]:
        """Cut a recording into chunks, one for each channel that is apart."""
        blocks = audio if hearing is None else hearing.through(audio)
        return split_channels(self._chunks(blocks))

    def _chunks(self, blocks: Iterable[Pcm]) -> Generator[Chunk]:
        return plan_chunks(blocks, self._policy.on_grid(self._grid()))

    def _with_hints(
        self,
        chunks: Iterable[Chunk],
        languages: frozenset[str],
        keywords: Sequence[Keyword] = (),
    ) -> Generator[Chunk]:
        """Add what is known about a recording to its chunks: a single language, and keywords."""
        language = next(iter(languages)) if len(languages) == 1 else None
        tree = self._keywords.tree(keywords) if self._keywords else None
        return (replace(chunk, language=language, keywords=tree) for chunk in chunks)

    def _prefetched(self, chunks: Generator[Chunk]) -> Generator[Chunk]:
        return chunks if self._preparers is None else _one_ahead(chunks, self._preparers)


def speech_without_words_caveats(spans: Sequence[Span]) -> list[Caveat]:
    """Turn spans of speech without words into warnings."""
    return [
        Caveat(
            "speech_without_words",
            f"Speech from {span.start:.1f} to {span.end:.1f} s got no words.",
            round(span.start, 3),
            round(span.end, 3),
        )
        for span in spans[:_MAX_SPEECH_CAVEATS]
    ]


def _mixed(channels: Sequence[Pcm]) -> Pcm:
    """Mix the samples of channels, of equal length; shape `(samples,)`."""
    if len(channels) == 1:
        return channels[0]
    return np.asarray(np.mean(channels, axis=0, dtype=np.float32), np.int16)


def _closing(hearing: SpeakerHearing | None) -> AbstractContextManager[object]:
    return nullcontext() if hearing is None else closing(hearing)


def _one_ahead(chunks: Generator[Chunk], executor: Executor) -> Generator[Chunk]:
    """Decode and cut the next chunk in another thread while this one is recognised."""
    upcoming = executor.submit(next, chunks, None)
    try:
        while (chunk := upcoming.result()) is not None:
            upcoming = executor.submit(next, chunks, None)
            yield chunk
    finally:
        # A generator must not be closed while it runs: wait.
        if not upcoming.cancel():
            upcoming.exception()
