"""The values that cross borders between modules: chunks, words, segments, transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parakeet_api.keywords import KeywordTree

SAMPLE_RATE = 16_000
"""Samples per second everywhere inside; Parakeet's own rate."""

FRAME = 1280
"""Samples in one encoder frame, 80 ms: the grid of the model's times."""

Pcm = NDArray[np.int16]
"""Mono signed 16-bit samples at `SAMPLE_RATE`, shape `(samples,)`."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A stretch of a recording that the model sees at once.

    It hears `[start, end)` and answers for `[owned_start, owned_end)`; the rest is context that
    a neighbour answers for. Owned ranges tile the recording.
    """

    index: int
    """Position among the recording's chunks, from 0."""
    start: int
    """First sample heard, counted from the start of the recording."""
    samples: Pcm
    owned_start: int
    owned_end: int
    keywords: KeywordTree | None = None
    """Phrases that it may hold."""

    @property
    def end(self) -> int:
        """One past the last sample heard."""
        return self.start + len(self.samples)

    @property
    def owned_samples(self) -> Pcm:
        """Give the samples that the chunk answers for, as a view."""
        return self.samples[self.owned_start - self.start : self.owned_end - self.start]


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of the model's vocabulary, as it was emitted."""

    id: int
    text: str
    """The piece with its word-start mark as a space: `" Bos"`, `"ton"`."""
    logprob: float | None
    """Natural logarithm of the model's probability; `None` where the decoder gives none."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word between two spaces, punctuation included, with its time in the recording."""

    text: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    """Seconds from the start of the recording; never before `start`."""
    tokens: tuple[Token, ...] = ()
    from_keyword: bool = False
    """Whether a keyword put it in the place of what the model hears without any."""

    @property
    def middle(self) -> float:
        """Give the moment by which the word belongs to one chunk or the next, in seconds."""
        return (self.start + self.end) / 2

    @property
    def logprob(self) -> float | None:
        """Sum the tokens' log-probabilities; `None` where one is unknown."""
        logprobs = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(logprobs) if logprobs and len(logprobs) == len(self.tokens) else None


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence, or the stretch between two long pauses."""

    words: tuple[Word, ...]
    """At least one."""

    @property
    def text(self) -> str:
        return join_words(self.words)

    @property
    def start(self) -> float:
        """Seconds."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Seconds."""
        return self.words[-1].end


@dataclass(frozen=True, slots=True)
class Caveat:
    """What a reader of a transcript should know of how its recording was heard: a warning."""

    code: str
    """For programs: `track_silent`, `channels_out_of_phase`, `truncated_audio`, ..."""
    message: str
    """For people; ASCII, without a line break."""
    start: float | None = None
    """Seconds from the start of the recording; `None` = all of it."""
    end: float | None = None


@dataclass(frozen=True, slots=True)
class SoundTrack:
    """One of a recording's sound tracks."""

    number: int
    """Among the sound tracks, from 1."""
    codec: str
    """ffmpeg's name for it."""
    language: str | None
    """As the file says it, usually three letters."""
    title: str | None
    default: bool
    """Whether players play it by default."""
    used: bool
    """Whether it is in the transcript."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a whole recording."""

    segments: tuple[Segment, ...]
    duration: float
    """Seconds of audio that were decoded."""
    language: str | None
    """ISO 639-1 code; `None` = not known."""
    caveats: tuple[Caveat, ...] = ()
    """Answers list them as `warnings`."""
    tracks: tuple[SoundTrack, ...] = ()
    """The recording's sound tracks, as far as they were looked at."""

    @property
    def words(self) -> list[Word]:
        return [word for segment in self.segments for word in segment.words]

    @property
    def text(self) -> str:
        return join_words(self.words)


def mean_logprob(words: Iterable[Word]) -> float | None:
    """Average the log-probabilities of words' tokens; `None` where none is known, as of a beam."""
    known = [t.logprob for word in words for t in word.tokens if t.logprob is not None]
    return sum(known) / len(known) if known else None


def join_words(words: list[Word] | tuple[Word, ...]) -> str:
    """Put words together as running text."""
    return " ".join(word.text for word in words)
