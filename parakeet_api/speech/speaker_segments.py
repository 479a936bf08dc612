"""Group the words of several speakers into segments, as they become final.

A segment holds words of one speaker. A recording in channels has one list of words for each; a
mixed one has a single list, and a diarizer tells whose each word is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Protocol

from parakeet_api.speech.segmentation import LONG_PAUSE_S, split_into_segments
from parakeet_api.speech.speakers import SpeakerActivity, assign_speakers, letter
from parakeet_api.transcript import Segment, Word

_DECIDED_S = 3.0
"""Later words can change the most likely speaker of a word; beyond so many seconds they do not."""

LanguageOf = Callable[[Sequence[Word]], str]
"""Return the language of words, an ISO 639-1 code."""


class SpeakerSegments(Protocol):
    """Collect words; give the segments that no later word can change, in their final order."""

    def add(self, words: Sequence[Word], channel: int | None) -> None:
        """Add final words of a channel, in order of time; `None` = the mix."""

    def ready(self, until_s: float) -> list[Segment]:
        """Return further complete segments; all words before `until_s` were added."""
        ...

    def finish(self) -> list[Segment]:
        """Return the remaining segments."""
        ...


class ChannelSegments:
    """The segments of channels, each of them a speaker, ordered by their start."""

    def __init__(
        self, channels: int, *, language_of: LanguageOf, names: Sequence[str] = ()
    ) -> None:
        """Expect channels 1 to `channels`; the first ones have `names`, the others letters."""
        self._language_of = language_of
        unnamed = [letter(number) for number in range(channels)]
        self._names = [*names[:channels], *unnamed[len(names) :]]
        self._open: dict[int, list[Word]] = {n: [] for n in range(1, channels + 1)}
        """By channel, words of sentences that may go on."""
        self._complete: list[Segment] = []
        """Segments that wait for another channel's earlier ones."""

    def add(self, words: Sequence[Word], channel: int | None) -> None:
        """Add final words of a channel, in order of time."""
        assert channel is not None
        speaker = self._names[channel - 1]
        self._open[channel].extend(
            dataclasses.replace(word, channel=channel, speaker=speaker) for word in words
        )

    def ready(self, until_s: float) -> list[Segment]:
        """Return further complete segments, unless a channel's open sentence began before."""
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
        """Give the speakers letters in the order of speaking, or the `names` of known ones.

        With `max_speakers`, only so many of them get words: those who have spoken longest.
        """
        self._activity = activity
        self._language_of = language_of
        self._known = names
        self._max_speakers = max_speakers
        self._undecided: list[Word] = []
        self._open: list[Word] = []
        """Words with a speaker, of a sentence that may go on."""
        self._last: Word | None = None
        self._last_speaker: int | None = None
        self._letters: dict[int, str] = {}

    @property
    def speakers(self) -> int:
        """Count the speakers who have words so far."""
        return len(self._letters)

    def add(self, words: Sequence[Word], channel: int | None) -> None:
        """Add final words, in order of time."""
        assert channel is None
        self._undecided.extend(words)

    def ready(self, until_s: float) -> list[Segment]:
        """Return further complete segments, as far as the diarizer has heard."""
        heard_s = min(until_s, self._activity.covered_s)
        heard = [word for word in self._undecided if word.end <= heard_s]
        count = sum(word.end <= heard_s - _DECIDED_S for word in heard)
        self._decide(heard, count)
        complete, self._open = _complete(self._open, heard_s - _DECIDED_S, self._language_of)
        return complete

    def finish(self) -> list[Segment]:
        """Return the remaining segments; the diarizer has heard all."""
        self._decide(self._undecided, len(self._undecided))
        complete, self._open = _complete(self._open, float("inf"), self._language_of)
        return complete

    def _decide(self, words: Sequence[Word], count: int) -> None:
        """Find the speakers of `words`, and take the first `count` of these for final."""
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
        if speaker not in self._letters:
            known = self._known()
            lettered = sum(number not in known for number in self._letters)
            self._letters[speaker] = known.get(speaker) or letter(lettered)
        return self._letters[speaker]


def _complete(
    words: Sequence[Word], until_s: float, language_of: LanguageOf
) -> tuple[list[Segment], list[Word]]:
    """Split words into segments; return those that cannot go on, and the words of the last one."""
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
