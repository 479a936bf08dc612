"""Diarize a recording while it is decoded for the recogniser, and identify known speakers.

The reference samples of known speakers are prepended to the recording. The diarizer keeps a
speaker's number from the first minute to the last, so the speaker who is active in a reference has
its name.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from parakeet_api.speech.diarization import DiarizationStream, Diarizer, FloatArray
from parakeet_api.speech.speakers import SpeakerActivity
from parakeet_api.transcript import SAMPLE_RATE, Caveat, KnownSpeaker, Pcm

_FULL_SCALE = np.float32(32768)
_PAUSE_S = 1.0
"""Silence after each reference, so that the next one is another turn."""
_MIN_REFERENCE = 0.3
"""Mean activity in a reference from which a speaker counts as active."""


class SpeakerHearing:
    """The diarization of one recording.

    `through` runs in the thread that decodes; the results may be read in another one.
    """

    def __init__(self, diarizer: Diarizer, known: Sequence[KnownSpeaker] = ()) -> None:
        self._diarizer = diarizer
        # Speakers of channels have a name alone.
        self._known = [speaker for speaker in known if speaker.sound]
        self._stream: DiarizationStream | None = None
        self._frame = 1
        """Samples in one of the diarizer's frames."""
        self._references: list[FloatArray] = []
        """Probabilities of the references, which precede those of the recording."""
        self._lead = 0
        """Frames of references that the diarizer has not returned yet."""
        self.activity: SpeakerActivity | None = None
        """Activity by speaker; `None` before the first block, or if nothing is diarized."""
        self.names: Mapping[int, str] = {}
        """Speaker's number -> name of the known speaker identified."""
        self.caveats: list[Caveat] = []

    def through(self, blocks: Iterable[Pcm]) -> Generator[Pcm]:
        """Yield the blocks of a recording, shape `(samples,)`, after the diarizer has had each.

        Of separate channels, each is a speaker: nothing is diarized. Raises what the diarizer
        raises.
        """
        rest = iter(blocks)
        first = next(rest, None)
        if first is None:
            return
        blocks = chain([first], rest)
        if first.shape[1:] > (1,):
            yield from blocks
        else:
            yield from self._diarized(blocks if first.ndim == 1 else (b[:, 0] for b in blocks))

    def _diarized(self, blocks: Iterable[Pcm]) -> Generator[Pcm]:
        self._stream = self._diarizer.start()
        # A diarizer knows its frames once it has started a recording.
        self._frame = round(self._diarizer.frame_seconds * SAMPLE_RATE)
        activity = self.activity = SpeakerActivity(
            frame_s=self._diarizer.frame_seconds, speakers=self._diarizer.max_speakers
        )
        references = self._reference_samples()
        self._lead = len(references) // self._frame
        if self._lead:
            self._add(activity, self._stream.add(references.astype(np.float32) / _FULL_SCALE))
        for block in blocks:
            self._add(activity, self._stream.add(block.astype(np.float32) / _FULL_SCALE))
            yield block
        self._add(activity, self._stream.finish())

    def close(self) -> None:
        """Free the diarizer's memory."""
        if self._stream is not None:
            self._stream.close()

    def _reference_samples(self) -> Pcm:
        """Return all references, each with a pause, in whole frames; shape `(samples,)`."""
        parts: list[Pcm] = []
        for speaker in self._known:
            samples = speaker.samples
            parts += [samples, np.zeros(self._padded(len(samples)) - len(samples), np.int16)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)

    def _padded(self, samples: int) -> int:
        """Return the length of a reference with its pause, in samples."""
        with_pause = samples + round(_PAUSE_S * SAMPLE_RATE)
        return math.ceil(with_pause / self._frame) * self._frame

    def _add(self, activity: SpeakerActivity, frames: FloatArray) -> None:
        """Add probabilities to the activity; the first ones belong to the references."""
        if self._lead:
            self._references.append(frames[: self._lead])
            frames, self._lead = frames[self._lead :], max(0, self._lead - len(frames))
            if not self._lead:
                self._identify(np.concatenate(self._references))
        activity.add(frames)

    def _identify(self, probabilities: FloatArray) -> None:
        """Find the number of each known speaker: the one most active in the reference."""
        names: dict[int, str] = {}
        begin = 0
        for speaker in self._known:
            frames = math.ceil(len(speaker.samples) / self._frame)
            activity = probabilities[begin : begin + frames].mean(axis=0)
            begin += self._padded(len(speaker.samples)) // self._frame
            number = int(np.argmax(activity))
            if activity[number] < _MIN_REFERENCE:
                self._warn(speaker.name, "no voice was heard in its reference")
            elif number in names:
                self._warn(speaker.name, f"its reference sounds like that of {names[number]!a}")
            else:
                names[number] = speaker.name
        self.names = names

    def _warn(self, name: str, why: str) -> None:
        self.caveats.append(Caveat("known_speaker_not_found", f"Speaker {name!a}: {why}."))
