"""The data types that modules exchange: chunks, words, segments, transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from parakeet_api.keywords import KeywordTree

SAMPLE_RATE = 16_000
"""Sample rate of all decoded audio, Hz: the model's."""

FRAME = 1280
"""Samples in one encoder frame, 80 ms: the resolution of the model's times."""

Pcm = NDArray[np.int16]
"""Mono signed 16-bit samples at `SAMPLE_RATE`, shape `(samples,)`."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of a recording that the model processes at once.

    It contains `[start, end)` and owns `[owned_start, owned_end)`; the rest is context, which a
    neighbour owns. Owned ranges tile the recording.
    """

    index: int
    """Position among the recording's chunks, from 0."""
    start: int
    """Its first sample, counted from the start of the recording."""
    samples: Pcm
    owned_start: int
    owned_end: int
    language: str | None = None
    """ISO 639-1 code that the request states; `None` = it does not."""
    keywords: KeywordTree | None = None
    """Phrases that may be spoken in it."""

    def part(self, begin: int, end: int) -> Chunk:
        """Cut out the samples from `begin` to `end`, which the part owns; the hints stay."""
        start = self.start + begin
        samples = self.samples[begin:end]
        return replace(
            self,
            index=0,
            start=start,
            samples=samples,
            owned_start=start,
            owned_end=start + len(samples),
        )

    @property
    def end(self) -> int:
        """One past its last sample."""
        return self.start + len(self.samples)

    @property
    def owned_samples(self) -> Pcm:
        """Return the samples that the chunk owns, as a view."""
        return self.samples[self.owned_start - self.start : self.owned_end - self.start]


@dataclass(frozen=True, slots=True)
class Token:
    """One token that the model emitted."""

    id: int
    text: str
    """The token with its word-start mark as a space: `" Bos"`, `"ton"`."""
    logprob: float | None
    """Natural logarithm of the model's probability; `None` if the decoder gives none."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word between two spaces, punctuation included, with its time in the recording."""

    text: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    """Seconds from the start of the recording; never before `start`."""
    tokens: tuple[Token, ...] = ()
    language: str | None = None
    """ISO 639-1 code, where the model itself tags languages."""
    from_keyword: bool = False
    """Whether a keyword replaced what the model recognises without any."""

    @property
    def middle(self) -> float:
        """Return its middle in seconds, which decides to which chunk the word belongs."""
        return (self.start + self.end) / 2

    @property
    def logprob(self) -> float | None:
        """Sum the tokens' log-probabilities; `None` if one is unknown."""
        logprobs = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(logprobs) if logprobs and len(logprobs) == len(self.tokens) else None


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence, or the words between two long pauses."""

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
    """A warning about a recording or its transcript."""

    code: str
    """For programs: `track_silent`, `channels_out_of_phase`, `truncated_audio`, ..."""
    message: str
    """For people; ASCII, on one line."""
    start: float | None = None
    """Seconds from the start of the recording; `None` = all of it."""
    end: float | None = None


@dataclass(frozen=True, slots=True)
class SoundTrack:
    """One of a recording's sound tracks."""

    number: int
    """Number among the audio tracks, from 1."""
    codec: str
    """ffmpeg's name for it."""
    language: str | None
    """As stated in the file, usually three letters."""
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
    """The recording's audio tracks, if the decoder listed them."""

    @property
    def words(self) -> list[Word]:
        return [word for segment in self.segments for word in segment.words]

    @property
    def text(self) -> str:
        return join_words(self.words)


def mean_logprob(words: Iterable[Word]) -> float | None:
    """Average the log-probabilities of words' tokens; `None` if none is known (beam search)."""
    known = [t.logprob for word in words for t in word.tokens if t.logprob is not None]
    return sum(known) / len(known) if known else None


def join_words(words: list[Word] | tuple[Word, ...]) -> str:
    """Join words to running text."""
    return " ".join(word.text for word in words)
