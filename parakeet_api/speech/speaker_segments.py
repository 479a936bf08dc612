"""Group the words of several speakers into segments, as they become final.

A segment has words of one speaker. Separate channels have a list of words each; a mix has a single
list, whose words a diarizer assigns to speakers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice
from typing import Protocol

from parakeet_api.speech.segmentation import LONG_PAUSE_S, split_into_segments
from parakeet_api.speech.speakers import SpeakerActivity, assign_speakers, letters
from parakeet_api.transcript import Segment, Word

_DECIDED_S = 3.0
"""Words that follow within this time may change the most likely speaker of a word."""

LanguageOf = Callable[[Sequence[Word]], str]
"""Return the language of words, an ISO 639-1 code."""


class SpeakerSegments(Protocol):
    """Collect words; return segments, in their final order, once no later word can change them."""

    def add(self, words: Sequence[Word], channel: int | None) -> None:
        """Add final words of a channel, in order of time; `None` = the mix."""

    def ready(self, until_s: float) -> list[Segment]:
        """Return further complete segments; all words before `until_s` have been added."""
        ...

    def finish(self) -> list[Segment]:
        """Return the remaining segments."""
        ...


class ChannelSegments:
    """The segments of separate channels, each of them a speaker, ordered by their start."""

    def __init__(
        self, channels: int, *, language_of: LanguageOf, names: Sequence[str] = ()
    ) -> None:
        """Expect channels 1 to `channels`; the first ones have `names`, the others letters."""
        self._language_of = language_of
        self._names = [*names[:channels], *islice(letters(names), len(names), channels)]
        self._open: dict[int, list[Word]] = {n: [] for n in range(1, channels + 1)}
        """Channel -> words of a sentence that may continue."""
        self._complete: list[Segment] = []
        """Complete segments, some of which wait for another channel's earlier ones."""

    def add(self, words: Sequence[Word], channel: int | None) -> None:
        """Add final words of a channel, in order of time."""
        assert channel is not None
        speaker = self._names[channel - 1]
        self._open[channel].extend(
            dataclasses.replace(word, channel=channel, speaker=speaker) for word in words
        )

    def ready(self, until_s: float) -> list[Segment]:
        """Return further complete segments that begin before any channel's open sentence."""
        horizon_s = until_s
        for channel, words in self._open.items():
            complete, self._open[channel] = _complete(words, until_s, self._language_of)
            self._complete += complete
            if self._open[channel]:
                horizon_s = min(horizon_s, self._open[channel][0].start)
        self._complete.sort(key=_by_start)
        ready = [segment for segment in self._complete if segment.start <= horizon_s]
        del self._complete[: len(ready)]
        return ready

    def finish(self) -> list[Segment]:
        """Return the remaining segments."""
        return self.ready(float("inf"))


def _by_start(segment: Segment) -> tuple[float, int]:
    return segment.start, segment.channel or 0


class VoiceSegments:
    """The segments of a mixed recording, whose speakers a diarizer tells apart."""

    def __init__(
        self,
        activity: SpeakerActivity,
        *,
        language_of: LanguageOf,
        names: Callable[[], Mapping[int, str]] = dict,
        max_speakers: int | None = None,
    ) -> None:
        """Name speakers by letters in the order of speaking, known ones by the `names` returned.

        With `max_speakers`, only that many of them get words: those who have spoken longest.
        """
        self._activity = activity
        self._language_of = language_of
        self._known = names
        self._max_speakers = max_speakers
        self._undecided: list[Word] = []
        self._open: list[Word] = []
        """Words with a speaker, of a sentence that may continue."""
        self._last: Word | None = None
        """The last word that was assigned a speaker."""
        self._last_speaker: int | None = None
        self._names: dict[int, str] = {}
        """Number of a speaker with words -> name."""

    @property
    def speakers(self) -> int:
        """Number of speakers with words so far."""
        return len(self._names)

    def add(self, words: Sequence[Word], channel: int | None) -> None:
        """Add final words, in order of time."""
        assert channel is None
        self._undecided.extend(words)

    def ready(self, until_s: float) -> list[Segment]:
        """Return further complete segments, up to where the diarizer has got."""
        diarized_s = min(until_s, self._activity.covered_s)
        diarized = [word for word in self._undecided if word.end <= diarized_s]
        decided_s = diarized_s - _DECIDED_S
        self._decide(diarized, sum(word.end <= decided_s for word in diarized))
        complete, self._open = _complete(self._open, decided_s, self._language_of)
        return complete

    def finish(self) -> list[Segment]:
        """Return the remaining segments, after the diarizer's last frame."""
        self._decide(self._undecided, len(self._undecided))
        complete, self._open = _complete(self._open, float("inf"), self._language_of)
        return complete

    def _decide(self, words: Sequence[Word], count: int) -> None:
        """Assign speakers to `words`; the first `count` of them are final."""
        if not count:
            return
        most = self._max_speakers
        speakers = assign_speakers(
            words,
            self._activity,
            before=self._last,
            speaker_before=self._last_speaker,
            allowed=self._activity.most_active(most) if most else None,
        )
        for word, speaker in zip(words[:count], speakers, strict=False):
            self._open.append(dataclasses.replace(word, speaker=self._name(speaker)))
        self._last, self._last_speaker = words[count - 1], speakers[count - 1]
        del self._undecided[:count]

    def _name(self, speaker: int) -> str:
        if speaker not in self._names:
            known = self._known()
            unnamed = sum(number not in known for number in self._names)
            self._names[speaker] = known.get(speaker) or next(
                islice(letters(known.values()), unnamed, None)
            )
        return self._names[speaker]


def _complete(
    words: Sequence[Word], until_s: float, language_of: LanguageOf
) -> tuple[list[Segment], list[Word]]:
    """Split words into segments; return those that are complete, and the words of an open one."""
    if not words:
        return [], []
    language = language_of(words)
    segments = [
        segment
        for _, turn in groupby(words, key=lambda word: word.speaker)
        for segment in split_into_segments(turn, language=language)
    ]
    if until_s - segments[-1].end >= LONG_PAUSE_S:
        return segments, []
    return segments[:-1], list(segments[-1].words)
