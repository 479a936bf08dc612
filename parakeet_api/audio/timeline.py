"""Where decoded sound belongs in time: holes are filled, and nothing is dropped.

A track's timestamps can leave holes, which are real: a muted microphone, a film whose sound starts
late. They can also start again, stand still, or run slower than the sound: then they are wrong, and
the sound goes on where it is.
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
"""The first sample of each of ffmpeg's filter graphs, which is none of the recording's. A graph is
built anew when a track changes its format, and only in the stream itself can be seen where."""

_NO_MARKS = np.zeros(0, np.intp)

_MAX_HOLE_S = 2 * 3600
"""Timestamps of 40 KB can claim ten hours of nothing. Honest holes are a muted microphone, or a
film whose sound starts late."""
_MEANINGLESS_S = 30 * 3600
"""A jump that is no hole but a broken number; ffmpeg's own bound."""
_SPLICE_S = 10.0
"""Streams that are cut together (`_SPLICED`) jump by more than this where one ends, not for lack of
sound; ffmpeg's own bound."""
_SPLICED = frozenset({"mpegts", "mpeg", "ogg"})
_RESTART_S = 1.0
"""Timestamps that fall behind by less are late packets of a live stream: they come again."""
_TOLERANCE_S = 0.1
_COUNTED = frozenset(
    {"aac", "ac3", "amr", "dts", "eac3", "flac", "loas", "mlp", "mp3", "truehd", "wav"}
)
"""Formats without timestamps: ffmpeg counts frames, wrongly so once the rate has changed."""
_TAIL = SAMPLE_RATE // 100
"""What a resampler holds, and gives at its end, at most."""
_ABSOLUTE = frozenset({"mov", "matroska", "nut"})
"""Containers whose times count from the recording's start. In the others, the first timestamp is
anyone's: a broadcast's clock, the granule position of a web radio."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Silence that a track's timestamps ask for."""

    samples: int


def first_moment(info: MediaInfo | None) -> float | None:
    """Give the timestamp at which the recording starts; `None` where its first sound does."""
    if info is None or info.start_s is None:
        return None
    is_absolute = info.container in _ABSOLUTE and not info.has_pictures
    is_late = _TOLERANCE_S < info.start_s <= _MAX_HOLE_S
    return 0.0 if is_absolute and is_late else info.start_s


@dataclass(slots=True)
class Timeline:
    """Lay a track's samples out in time."""

    info: MediaInfo | None
    readings: deque[ClockReading]
    """Added to by whoever reads ffmpeg's log, before the samples come that they are about."""
    marked: bool = True
    """Whether graphs begin with a mark; else the first one's readings alone are of use."""
    position: int = 0
    """Samples laid out so far, the holes among them."""
    _shift_s: float | None = None
    """From timestamps to the recording's time; `None` before the first."""
    _graph_position: int = 0
    """Samples of the current filter graph so far."""
    _rate: int = 0

    def lay_out(self, frames: Frames, *, at_end: bool = False) -> Iterator[Frames | Hole]:
        """Give the frames again, without marks, and with holes where the timestamps have them.

        `at_end` says that no more frames come. Raises `AudioDecodeError` for a hole that is longer
        than anyone's.
        """
        if not self.marked and self._shift_s is None:
            yield from self._begin_graph()
        # A mark that became one of two channels is a little smaller.
        left = frames[:, 0]
        marks = np.flatnonzero((left > MARK / 2) & (left <= MARK)) if self.marked else _NO_MARKS
        start = 0
        for mark in marks.tolist():
            yield from self._go_on(frames[start:mark], ends=True)
            yield from self._begin_graph()
            start = mark + 1
        yield from self._go_on(frames[start:], ends=at_end)

    def _begin_graph(self) -> Iterator[Hole]:
        """Take the first reading of a new graph; what is left of the one before is outdated."""
        while self.readings and self.readings[0].offset_s > 0:
            self.readings.popleft()
        if self.readings:
            reading = self.readings.popleft()
            yield from self._fill(reading, previous_rate=self._rate)
            self._rate = reading.rate
        self._graph_position = 0

    def _go_on(self, frames: Frames, *, ends: bool) -> Iterator[Frames | Hole]:
        """Split frames of one graph where a reading tells of a hole; `ends` = the graph's last."""
        while len(frames):
            if ends:
                self._forget_readings_after(self._graph_position + len(frames) - _TAIL)
            cut = self._next_reading()
            if cut is not None and cut <= 0:
                yield from self._fill(self.readings.popleft(), previous_rate=self._rate)
                continue
            part = frames[:cut]
            self.position += len(part)
            self._graph_position += len(part)
            yield part
            frames = frames[len(part) :]

    def _forget_readings_after(self, position: int) -> None:
        """Forget what is read where a graph ends: ffmpeg 5 reads any number there."""
        while self.readings and self.readings[0].offset_s * SAMPLE_RATE > max(0, position):
            self.readings.popleft()

    def _next_reading(self) -> int | None:
        """Give in how many samples the next reading of this graph applies."""
        if not self.readings or self.readings[0].offset_s <= 0:
            return None
        return round(self.readings[0].offset_s * SAMPLE_RATE) - self._graph_position

    def _fill(self, reading: ClockReading, *, previous_rate: int) -> Iterator[Hole]:
        here_s = self.position / SAMPLE_RATE
        if self._shift_s is None:
            begins_s = first_moment(self.info)
            self._shift_s = -(reading.seconds if begins_s is None else begins_s)
        gap_s = self._gap(reading, here_s, previous_rate)
        if gap_s < -_RESTART_S or self._is_no_hole(gap_s):
            # From here on, other timestamps mean the same moments.
            self._shift_s = here_s - reading.seconds
        elif gap_s > _MAX_HOLE_S:
            raise AudioDecodeError(
                f"The file's timestamps leave a hole of more than {_MAX_HOLE_S // 3600} hours."
                " Convert the file first, for example to flac."
            )
        elif (hole := round(gap_s * SAMPLE_RATE)) > 0:
            self.position += hole
            yield Hole(hole)

    def _gap(self, reading: ClockReading, here_s: float, previous_rate: int) -> float:
        assert self._shift_s is not None
        gap_s = reading.seconds + self._shift_s - here_s
        if self.position and previous_rate not in (0, reading.rate):
            # ffmpeg 5 counts the first frame of another sample rate in the wrong one of the two.
            for ratio in (reading.rate / previous_rate, previous_rate / reading.rate):
                if abs(reading.seconds * ratio + self._shift_s - here_s) < _TOLERANCE_S:
                    return 0.0
        return gap_s

    def _is_no_hole(self, gap_s: float) -> bool:
        container = self.info.container if self.info else ""
        is_miscounted = container in _COUNTED and self.marked
        is_splice = container in _SPLICED and self.position > 0 and gap_s > _SPLICE_S
        return is_miscounted or is_splice or gap_s > _MEANINGLESS_S
