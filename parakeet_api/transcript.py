"""The data types that modules exchange: chunks, words, segments, transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parakeet_api.keywords import KeywordTree

SAMPLE_RATE = 16_000
"""Sample rate of all decoded audio, Hz: the model's."""

FRAME = 1280
"""Samples in one encoder frame, 80 ms: the resolution of the model's times."""

Pcm = NDArray[np.int16]
"""Signed 16-bit samples at `SAMPLE_RATE`: mono, shape `(samples,)`; where channels are kept apart,
`(samples, channels)`."""


ChannelChoice = Literal["mix", "separate", "auto"]
"""What becomes of a recording's channels: mixed, each transcribed apart, or apart if they hold
different speech."""


@dataclass(frozen=True, slots=True)
class KnownSpeaker:
    """A speaker whose voice the request has sent."""

    name: str
    sound: bytes = b""
    """A few seconds of the voice: little-endian 16-bit samples at `SAMPLE_RATE`, mono. Empty = the
    name belongs to a channel."""

    @property
    def samples(self) -> Pcm:
        """Return the sound, shape `(samples,)`."""
        return np.frombuffer(self.sound, "<i2")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerRequest:
    """What a request wants to know about speakers."""

    channels: ChannelChoice = "mix"
    diarize: bool = False
    """Tell voices apart, where no channels are apart."""
    min_speakers: int | None = None
    max_speakers: int | None = None
    known: tuple[KnownSpeaker, ...] = ()

    @property
    def is_wanted(self) -> bool:
        """Whether words get a speaker, at least in some recordings."""
        return self.diarize or self.channels != "mix"


NO_SPEAKERS = SpeakerRequest()
"""Nobody asked who spoke."""


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
    channel: int | None = None
    """Number of the only channel that it holds, from 1; `None` = the mix of all."""
    channels: int = 1
    """Channels of the recording that have a chunk of their own for this span."""

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
    speaker: str | None = None
    """Who said it: a name, or a letter in the order of speaking; `None` = not asked for."""
    channel: int | None = None
    """Number of the channel that it was said on, from 1; `None` = the mix of all."""

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
    """A sentence, or the words between two long pauses or changes of speaker."""

    words: tuple[Word, ...]
    """At least one; all of one speaker."""

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

    @property
    def speaker(self) -> str | None:
        """Return who said it; `None` = not asked for."""
        return self.words[0].speaker

    @property
    def channel(self) -> int | None:
        """Return the channel that it was said on, from 1; `None` = the mix of all."""
        return self.words[0].channel


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
    """In order of their start; those of two speakers may overlap in time."""
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
