"""Parse ffmpeg's log: the description of its input, timestamps, errors."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from parakeet_api.audio.media_info import ClockReading
from parakeet_api.errors import AudioDecodeError

_HEAD_BYTES = 1024 * 1024
"""ffmpeg describes its input first, with all chapters and tags, such as lyrics. For a broken file
thousands of error messages follow."""
_MAX_LINE = 4096

_TAIL_BYTES = 200
"""Enough for ffmpeg's last messages."""

_NUMBER = re.compile(rb"(?:\[Eval @ 0x[0-9a-f]+\] )?(-?\d+\.\d+|-?nan|-?inf)")
_CUT_SHORT = re.compile(
    rb": partial file|File ended prematurely"
    rb"|Error during demuxing: (?!End of file)"
    # A nut file's last packet.
    rb"|no index at the end"
)
_NO_INDEX = b"moov atom not found"
_CORRUPT = re.compile(rb"corrupt (?:input packet|decoded frame)")
_UNDECODABLE = re.compile(
    rb"Error while decoding|Error submitting packet to decoder|Decoding error"
    # Damage that a demuxer skips: Ogg, Matroska, ASF.
    rb"|CRC mismatch!|exceeds (?:max length|containing master element)"
    rb"|invalid as first byte of an EBML number|Unknown-sized element"
    rb"|packet_obj_size \d+ invalid"
)
_NO_MEMORY = b"Cannot allocate memory"
_NO_DECODER = re.compile(rb"no decoder found|Decoder \(codec \w+\) not found|: unknown codec")
_UNMIXABLE = re.compile(rb"Rematrix is needed between (\d+) channels")


@dataclass(slots=True)
class FfmpegLog:
    """Parse ffmpeg's log, line by line, as it arrives."""

    url: bytes = b""
    """The name by which ffmpeg calls its input."""
    readings: deque[ClockReading] = field(default_factory=deque)
    """Timestamps printed by `CLOCK`; the consumer of the samples removes them."""
    graphs: int = 0
    """How often the filter graph was built: more than once if the track's format changes."""
    has_output: bool = False
    """Whether ffmpeg has described its output: from then on it reads packets."""
    cut_short: bool = False
    """Whether ffmpeg reported that the file ends too early or cannot be read further."""
    lacks_index: bool = False
    """Whether the file's index (`moov`), usually at its end, is missing."""
    ends_corrupt: bool = False
    """Whether ffmpeg reported an incomplete packet."""
    undecodable: int = 0
    """Packets that the decoder rejected, and damage that the demuxer skipped."""
    lacks_decoder: bool = False
    """Whether ffmpeg knows no decoder for the track's codec."""
    unmixable_channels: int | None = None
    """Number of channels, if ffmpeg cannot mix their layout."""
    tail: bytes = b""
    """The last bytes of the log."""
    head: bytearray = field(default_factory=bytearray)
    """The first bytes of the log."""
    _rest: bytes = b""
    """A line that has not ended yet."""
    _numbers: list[float] = field(default_factory=list)
    """Numbers that `CLOCK` has printed of an incomplete reading."""

    def add(self, data: bytes) -> None:
        """Parse new output. Raises `AudioDecodeError` if ffmpeg ran out of memory."""
        self.head += data[: _HEAD_BYTES - len(self.head)]
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[-_MAX_LINE:]
        for line in lines:
            # Descriptions are indented, and hold the file's own texts: they are no messages.
            if not line.startswith(b"  "):
                self._parse_line(line)

    def text(self) -> str:
        """Return the beginning of the log."""
        return self.head.decode("utf-8", "replace")

    @property
    def last_line(self) -> str:
        """The last line of the log, perhaps without its beginning."""
        return last_line(self.tail.decode("utf-8", "replace"))

    def _parse_line(self, line: bytes) -> None:
        if line.startswith(b"Output #0"):
            self.has_output = True
        elif number := _NUMBER.fullmatch(line):
            self._add_clock_number(float(number[1]))
        elif _NO_MEMORY in line:
            raise AudioDecodeError(
                "The file takes too much memory to decode. Convert the file first, for example to"
                " flac."
            )
        elif _CORRUPT.search(line):
            self.ends_corrupt = True
        elif _UNDECODABLE.search(line):
            self.undecodable += 1
        elif _NO_INDEX in line:
            self.lacks_index = True
        elif _CUT_SHORT.search(line) or self._is_read_error(line):
            self.cut_short = True
        elif _NO_DECODER.search(line):
            self.lacks_decoder = True
        elif unmixable := _UNMIXABLE.search(line):
            self.unmixable_channels = int(unmixable[1])

    def _is_read_error(self, line: bytes) -> bool:
        """Tell whether ffmpeg 5 reports a read error: such a line begins with the input's name."""
        return (
            self.has_output
            and line.startswith(self.url + b": ")
            and not line.endswith(b"End of file")
        )

    def _add_clock_number(self, number: float) -> None:
        """Collect what `CLOCK` prints: the sample rate, then timestamp and position in samples."""
        self._numbers.append(number)
        if len(self._numbers) == 3:  # noqa: PLR2004
            rate, timestamp, position = self._numbers
            self._numbers.clear()
            if rate > 0:
                reading = ClockReading(timestamp / rate, position / rate, round(rate))
                self.readings.append(reading)
                self.graphs += position == 0


CLOCK = (
    "asetpts='if(isnan(PTS),0,if(lte(abs(PTS-ld(0)),SR/10)*gt(N,0),0,"
    "print(SR,32);print(PTS,32);print(N,32);st(0,PTS)));st(0,ld(0)+NB_SAMPLES);N'"
)
"""A filter that passes all audio and prints timestamps: at the first frame of each filter graph,
and where a timestamp differs from the sample count by more than 0.1 s, which exceeds the jitter of
live recorders. Register 0 holds the end of the audio so far."""


def last_line(text: str) -> str:
    """Return a log's last line."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no message"
