"""Join the words of a recording's chunks: one list of words, or segments by speaker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parakeet_api.speech.holes import Completed, Span, SpeechWithoutWords
from parakeet_api.speech.speaker_hearing import SpeakerHearing
from parakeet_api.speech.speaker_segments import (
    ChannelSegments,
    LanguageOf,
    SpeakerSegments,
    VoiceSegments,
)
from parakeet_api.speech.stitching import Stitcher
from parakeet_api.transcript import Caveat, Chunk, Segment, SpeakerRequest, Word


@dataclass(frozen=True, slots=True)
class Assembled:
    """Words that became final."""

    words: tuple[Word, ...] = ()
    segments: tuple[Segment, ...] = ()
    """The same words by speaker, if the request asks for speakers."""


class Assembly:
    """Join the words of one recording, chunk by chunk."""

    def __init__(
        self,
        *,
        sentence_boundary_threshold_s: float,
        speakers: SpeakerRequest,
        hearing: SpeakerHearing | None,
        language_of: LanguageOf,
    ) -> None:
        """`hearing` diarizes a recording whose channels are mixed; `None` = it is not diarized."""
        self._threshold_s = sentence_boundary_threshold_s
        self._speakers = speakers
        self._hearing = hearing
        self._language_of = language_of
        self._channels: dict[int | None, _Channel] = {}
        self._segments: SpeakerSegments | None = None

    def add(self, chunk: Chunk, completed: Completed) -> Assembled | None:
        """Add a chunk's words; return what became final, `None` before the span's last channel."""
        if not self._channels and self._speakers.is_wanted:
            self._segments = self._segments_of(chunk)
        channel = self._channels.setdefault(chunk.channel, _Channel(self._threshold_s))
        final = channel.add(chunk, completed)
        if self._segments is None:
            return Assembled(final)
        self._segments.add(final, chunk.channel)
        if chunk.channel not in (None, chunk.channels):
            return None
        return _by_speaker(self._segments.ready(channel.settled_s))

    def finish(self) -> Assembled:
        """Return the remaining words after the last chunk."""
        for number, channel in self._channels.items():
            final = channel.finish()
            if self._segments is None:
                return Assembled(final)
            self._segments.add(final, number)
        return _by_speaker(self._segments.finish() if self._segments else [])

    def without_words(self) -> list[Span]:
        """List the speech without words, in order of time; of each channel on its own."""
        spans = [span for channel in self._channels.values() for span in channel.without_words()]
        return sorted(spans, key=lambda span: span.start)

    def caveats(self) -> list[Caveat]:
        """Return warnings about speakers."""
        heard = self._hearing.caveats if self._hearing else []
        return [*heard, *self._too_many()]

    def _segments_of(self, chunk: Chunk) -> SpeakerSegments | None:
        names = [speaker.name for speaker in self._speakers.known]
        if chunk.channel is not None:
            return ChannelSegments(chunk.channels, language_of=self._language_of, names=names)
        hearing = self._hearing
        if hearing is None or hearing.activity is None:
            return None
        return VoiceSegments(
            hearing.activity,
            language_of=self._language_of,
            names=lambda: hearing.names,
            max_speakers=self._speakers.max_speakers,
        )

    def _too_many(self) -> list[Caveat]:
        """Warn if a recording may have more speakers than the diarizer tells apart."""
        activity = self._hearing.activity if self._hearing else None
        if not isinstance(self._segments, VoiceSegments) or activity is None:
            return []
        most = activity.speakers
        is_full = self._segments.speakers == most and self._speakers.max_speakers != most
        if not is_full and (self._speakers.min_speakers or 0) <= most:
            return []
        return [
            Caveat(
                "speakers_at_limit",
                f"The model tells at most {most} speakers apart, and found that many: further"
                " ones, if there are any, are among them."
                if is_full
                else f"The model tells at most {most} speakers apart.",
            )
        ]


class _Channel:
    """The words of one channel that is recognised on its own, or of the mix."""

    def __init__(self, sentence_boundary_threshold_s: float) -> None:
        self._stitcher = Stitcher(sentence_boundary_threshold_s=sentence_boundary_threshold_s)
        self._without_words = SpeechWithoutWords()

    def add(self, chunk: Chunk, completed: Completed) -> tuple[Word, ...]:
        """Add a chunk's words; return those that are final now."""
        self._without_words.add(completed.without_words)
        return self._final(self._stitcher.add(chunk, completed.words))

    def finish(self) -> tuple[Word, ...]:
        return self._final(self._stitcher.finish())

    def without_words(self) -> Sequence[Span]:
        return self._without_words.spans()

    @property
    def settled_s(self) -> float:
        """The time before which no further words come, in seconds."""
        return self._stitcher.settled_s

    def _final(self, words: Iterable[Word]) -> tuple[Word, ...]:
        final = tuple(words)
        self._without_words.remove_covered(final)
        return final


def _by_speaker(segments: Sequence[Segment]) -> Assembled:
    words = tuple(word for segment in segments for word in segment.words)
    return Assembled(words, tuple(segments))
