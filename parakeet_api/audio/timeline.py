"""Align decoded samples with timestamps: gaps become silence, and no sample is dropped.

Gaps in a track's timestamps are real: a muted microphone, a video whose audio starts late.
Timestamps that restart, stand still or advance more slowly than the samples are wrong: the samples
then follow each other without a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parakeet_api.audio.media_info import ClockReading, MediaInfo
from parakeet_api.errors import AudioDecodeError
from parakeet_api.transcript import SAMPLE_RATE

Frames = NDArray[Any]
"""Samples of all channels at `SAMPLE_RATE`, shape `(samples, channels)`: int16, or float32 whose
full scale is 1."""

MARK = float(np.float32(2.0**100))
"""Value of a sample inserted at the start of each of ffmpeg's filter graphs. ffmpeg rebuilds the
graph when a track's format changes, and reports it without a position in the output."""

_NO_MARKS = np.zeros(0, np.intp)

_MAX_GAP_S = 2 * 3600
"""Longest gap that is filled: a file of 40 KB can declare ten hours of silence."""
_MEANINGLESS_S = 30 * 3600
"""A longer jump is a corrupt timestamp, not a gap; ffmpeg's limit."""
_SPLICE_S = 10.0
"""In containers whose streams are often spliced (`_SPLICED`), a longer jump is a splice and not a
gap; ffmpeg's limit."""
_SPLICED = frozenset({"mpegts", "mpeg", "ogg"})
_RESTART_S = 1.0
"""Timestamps that fall behind by less are late packets of a live stream: they catch up again."""
_TOLERANCE_S = 0.1
"""Jitter of timestamps; `ffmpeg_log.CLOCK` reports none that differ by less."""
_COUNTED = frozenset(
    {"aac", "ac3", "amr", "dts", "eac3", "flac", "loas", "mlp", "mp3", "truehd", "wav"}
)
"""Formats without timestamps: ffmpeg counts frames, and miscounts once the rate has changed."""
_CHUNK_COUNTED = "avi"
"""Another container without timestamps: ffmpeg counts chunks, and takes a long one for two, or each
for as long as a wrong header declares."""
_PARSED = frozenset({"mpeg", "mpegts", "wtv"})
"""Containers that give one timestamp to several frames; ffmpeg computes the others by the first
sample rate, also after a change of rate."""
_TAIL = SAMPLE_RATE // 100
"""Upper bound of the samples that a resampler holds back until its end."""
_ABSOLUTE = frozenset({"mov", "matroska", "nut"})
"""Containers whose times count from the recording's start. In the others the first timestamp is
arbitrary: a broadcast's clock, the granule position of a web radio."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap in a track's timestamps, to be filled with silence."""

    samples: int
    """Length at `SAMPLE_RATE`."""


def first_moment(info: MediaInfo | None) -> float | None:
    """Return the timestamp at which the recording starts; `None` = that of its first sample."""
    if info is None or info.start_s is None:
        return None
    is_absolute = info.container in _ABSOLUTE and not info.has_video
    is_late = _TOLERANCE_S < info.start_s <= _MAX_GAP_S
    return 0.0 if is_absolute and is_late else info.start_s


@dataclass(slots=True)
class Timeline:
    """Place a track's samples in time."""

    info: MediaInfo | None
    readings: deque[ClockReading]
    """Filled by the parser of ffmpeg's log, before the samples that a reading applies to arrive."""
    marked: bool = True
    """Whether graphs begin with a mark; if not, only the first graph's readings can be used."""
    position: int = 0
    """Samples placed so far, gaps included."""
    _shift_s: float | None = None
    """Recording time minus timestamp; `None` before the first reading."""
    _graph_position: int = 0
    """Samples of the current filter graph so far."""
    _rate: int = 0
    """The track's sample rate in the current graph, by its first reading; 0 = not known."""
    _first_rate: int = 0
    """The same in the first graph."""

    def place(self, frames: Frames, *, at_end: bool = False) -> Iterator[Frames | Gap]:
        """Yield the frames without marks, and the gaps between them.

        `at_end` = no more frames follow. Raises `AudioDecodeError` for a gap of more than two
        hours.
        """
        if not self.marked and self._shift_s is None:
            yield from self._begin_graph()
        # In a mark that was upmixed to stereo, each channel has a lower value.
        left = frames[:, 0]
        marks = np.flatnonzero((left > MARK / 2) & (left <= MARK)) if self.marked else _NO_MARKS
        start = 0
        for mark in marks.tolist():
            yield from self._place_graph(frames[start:mark], ends=True)
            yield from self._begin_graph()
            start = mark + 1
        yield from self._place_graph(frames[start:], ends=at_end)

    def _begin_graph(self) -> Iterator[Gap]:
        """Take the first reading of a new graph; discard what is left of the previous one."""
        while self.readings and self.readings[0].offset_s > 0:
            self.readings.popleft()
        if self.readings:
            reading = self.readings.popleft()
            yield from self._fill(reading, previous_rate=self._rate)
            self._rate = reading.rate
            self._first_rate = self._first_rate or reading.rate
        self._graph_position = 0

    def _place_graph(self, frames: Frames, *, ends: bool) -> Iterator[Frames | Gap]:
        """Split frames of one graph at its readings; `ends` = they are the graph's last."""
        while len(frames):
            if ends:
                self._discard_readings_after(self._graph_position + len(frames) - _TAIL)
            cut = self._next_reading()
            if cut is not None and cut <= 0:
                yield from self._fill(self.readings.popleft(), previous_rate=self._rate)
                continue
            part = frames[:cut]
            self.position += len(part)
            self._graph_position += len(part)
            yield part
            frames = frames[len(part) :]

    def _discard_readings_after(self, position: int) -> None:
        """Discard readings at a graph's end: ffmpeg 5 prints arbitrary numbers there."""
        while self.readings and self.readings[0].offset_s * SAMPLE_RATE > max(0, position):
            self.readings.popleft()

    def _next_reading(self) -> int | None:
        """Return after how many more samples the next reading of this graph applies."""
        if not self.readings or self.readings[0].offset_s <= 0:
            return None
        return round(self.readings[0].offset_s * SAMPLE_RATE) - self._graph_position

    def _fill(self, reading: ClockReading, *, previous_rate: int) -> Iterator[Gap]:
        """Compare a reading with the position; yield the gap, if there is one."""
        position_s = self.position / SAMPLE_RATE
        if self._shift_s is None:
            start_s = first_moment(self.info)
            self._shift_s = -(reading.seconds if start_s is None else start_s)
        gap_s = self._gap_s(reading, position_s, previous_rate)
        if self._is_computed(reading) and gap_s < _RESTART_S:
            return
        if gap_s < -_RESTART_S or self._is_no_gap(gap_s):
            # The timestamps restart here: only their offset changes.
            self._shift_s = position_s - reading.seconds
        elif gap_s > _MAX_GAP_S:
            raise AudioDecodeError(
                f"The file's timestamps leave a hole of more than {_MAX_GAP_S // 3600} hours."
                " Convert the file first, for example to flac."
            )
        elif (gap_samples := round(gap_s * SAMPLE_RATE)) > 0:
            self.position += gap_samples
            yield Gap(gap_samples)

    def _gap_s(self, reading: ClockReading, position_s: float, previous_rate: int) -> float:
        """Return how much later a reading is than the position, in seconds."""
        assert self._shift_s is not None
        gap_s = reading.seconds + self._shift_s - position_s
        if self.position and previous_rate not in (0, reading.rate):
            # ffmpeg 5 counts the first frame after a change of sample rate at the wrong rate.
            for ratio in (reading.rate / previous_rate, previous_rate / reading.rate):
                if abs(reading.seconds * ratio + self._shift_s - position_s) < _TOLERANCE_S:
                    return 0.0
        return gap_s

    def _is_computed(self, reading: ClockReading) -> bool:
        """Tell whether ffmpeg may have computed a timestamp by another sample rate."""
        is_parsed = self.info is not None and self.info.container in _PARSED
        return is_parsed and reading.offset_s > 0 and self._first_rate not in (0, reading.rate)

    def _is_no_gap(self, gap_s: float) -> bool:
        """Tell whether a jump is the container's inaccuracy, a splice or corrupt."""
        container = self.info.container if self.info else ""
        is_miscounted = container in _COUNTED and self.marked
        is_short = 0 < gap_s < _RESTART_S and self.position > 0
        is_miscounted |= container == _CHUNK_COUNTED and is_short
        is_splice = container in _SPLICED and self.position > 0 and gap_s > _SPLICE_S
        return is_miscounted or is_splice or gap_s > _MEANINGLESS_S
