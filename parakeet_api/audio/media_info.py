"""Parse ffmpeg's description of a recording: its container, duration and audio tracks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from parakeet_api.transcript import SoundTrack

TrackChoice = int | Literal["all"] | None
"""An audio track's number from 1; `all` = mix all tracks; `None` = the player's default track."""

_INPUT = re.compile(r"^Input #0, ([^ ]+), from ", re.MULTILINE)
_DURATION = re.compile(
    r"^  Duration: (?:N/A|(\d+):(\d\d):(\d\d\.\d+))(?:, start: (-?\d+\.\d+))?", re.MULTILINE
)
_STREAM = re.compile(r"^ +Stream #0:(\d+)(?:\[0x[0-9a-f]+\])?(?:\(([^)]*)\))?: (\w+): (.*)$")
_TITLE = re.compile(r"^ +title +: (.*)$")
_SOUND = re.compile(
    r", \d+ Hz, (?:(?P<layout>.+?), (?P<format>(?:u8|s16|s32|s64|flt|dbl)p?)\b|(?P<bare>[^,(]+))"
)
_FLAG = re.compile(r" \(([a-z ]+)\)")
_END = re.compile(r"^(?:Stream mapping:|Output #0)", re.MULTILINE)
"""What follows the description."""

_AUXILIARY = frozenset({"comment", "visual impaired", "descriptions", "karaoke", "lyrics"})
"""Dispositions of tracks that do not carry the main programme."""
_UP_TO_16_BITS = frozenset({"u8", "u8p", "s16", "s16p"})
_MONO_OR_STEREO = frozenset({"mono", "stereo", "downmix", "1 channels", "2 channels"})
_SURROUND = re.compile(
    r"[2-7]\.[01](?:\((?:back|front|side|wide|wide-side)\))?|quad(?:\(side\))?|hexagonal|octagonal"
)
"""Layouts of up to eight speaker positions, for which ffmpeg has downmix coefficients."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A timestamp that differs from the sample count, as `ffmpeg_log.CLOCK` prints it."""

    seconds: float
    """The timestamp of a frame."""
    offset_s: float
    """Audio of this filter graph before that frame; 0 = the graph's first frame."""
    rate: int
    """The track's sample rate before conversion."""


@dataclass(frozen=True, slots=True)
class Track:
    """An audio track, as ffmpeg describes it."""

    number: int
    """Number among the audio tracks, from 1."""
    codec: str
    layout: str
    """`stereo`, `5.1(side)`, `9 channels`, ..."""
    sample_format: str
    """`s16p`, `flt`, ...; empty if unknown."""
    language: str | None
    title: str | None
    flags: frozenset[str]
    """Dispositions: `default`, `comment`, ..."""

    @property
    def is_auxiliary(self) -> bool:
        """Whether the file marks it as commentary or the like."""
        return bool(self.flags & _AUXILIARY)

    @property
    def is_known(self) -> bool:
        """Whether ffmpeg knows its codec and sample format."""
        return self.codec not in ("none", "unknown") and bool(self.sample_format)

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """A player's order of preference, the lowest first."""
        return self.is_auxiliary, "default" not in self.flags, self.number

    @property
    def exceeds_16_bits(self) -> bool:
        """Whether its samples have more than 16 bits."""
        return self.sample_format not in _UP_TO_16_BITS

    @property
    def is_surround(self) -> bool:
        """Whether it has more than two channels in a known speaker layout."""
        return _SURROUND.fullmatch(self.layout) is not None

    @property
    def is_discrete(self) -> bool:
        """Whether its channels have no speaker layout, or one that ffmpeg cannot downmix."""
        return bool(self.layout) and not (self.is_surround or self.layout in _MONO_OR_STEREO)

    def as_sound_track(self, *, used: bool) -> SoundTrack:
        """Convert it to the form that responses list."""
        return SoundTrack(
            number=self.number,
            codec=self.codec,
            language=self.language,
            title=self.title,
            default="default" in self.flags,
            used=used,
        )


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """A recording, as ffmpeg describes it."""

    container: str
    """The first of ffmpeg's names for it: `mov`, `matroska`, `mp3`, ..."""
    start_s: float | None
    """Timestamp at which the earliest of its streams starts."""
    duration_s: float | None
    """By the header, or estimated from the file's size."""
    duration_is_estimated: bool
    has_video: bool
    """Whether it has a video stream other than cover art."""
    has_other_streams: bool
    """Whether it has streams, but no audio."""
    tracks: tuple[Track, ...]

    def preferred(self) -> list[Track]:
        """Order the tracks: the one that a player would play comes first."""
        return sorted(self.tracks, key=lambda track: (not track.is_known, *track.rank))

    @property
    def first(self) -> Track | None:
        """The track that a player would play if it knew all codecs."""
        return min(self.tracks, key=lambda track: track.rank, default=None)


def parse_media_info(log: str) -> MediaInfo | None:
    """Parse the beginning of ffmpeg's log; `None` if ffmpeg could not open the file."""
    begins = _INPUT.search(log)
    if begins is None:
        return None
    ends = _END.search(log, begins.end())
    description = log[begins.start() : ends.start() if ends else len(log)]
    duration_s, start_s = _times(description)
    # Not splitlines: titles may hold other separators than line feeds.
    lines = description.split("\n")
    return MediaInfo(
        container=begins[1].rstrip(",").split(",")[0],
        start_s=start_s,
        duration_s=duration_s,
        duration_is_estimated="Estimating duration from bitrate" in log,
        has_video=any(map(_is_video, lines)),
        has_other_streams="Stream #" in description and ": Audio:" not in description,
        tracks=tuple(_tracks(lines)),
    )


def _is_video(line: str) -> bool:
    stream = _STREAM.match(line)
    return bool(stream and stream[3] == "Video" and "(attached pic)" not in line)


def _times(description: str) -> tuple[float | None, float | None]:
    """Parse duration and start time, in seconds."""
    match = _DURATION.search(description)
    if match is None:
        return None, None
    hours, minutes, seconds, start = match.groups()
    known = hours is not None
    duration_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds) if known else None
    return duration_s, float(start) if start is not None else None


def _tracks(lines: Sequence[str]) -> list[Track]:
    """Parse the lines of the audio tracks, and the title in the lines below each."""
    streams: dict[int, tuple[str | None, str]] = {}
    titles: dict[int, str] = {}
    latest: int | None = None
    for line in lines:
        if stream := _STREAM.match(line):
            latest = int(stream[1])
            if stream[3] == "Audio":
                streams.setdefault(latest, (stream[2], stream[4]))
        elif latest in streams and (title := _TITLE.match(line)):
            titles.setdefault(latest, title[1])
    return [
        _track(number, *streams[index], title=titles.get(index))
        for number, index in enumerate(sorted(streams), start=1)
    ]


def _track(number: int, language: str | None, text: str, *, title: str | None) -> Track:
    sound = _SOUND.search(text)
    return Track(
        number=number,
        codec=text.split(" ", 1)[0].rstrip(","),
        layout=(sound["layout"] or sound["bare"]).strip() if sound else "",
        sample_format=sound["format"] or "" if sound else "",
        language=None if language in (None, "und") else language,
        title=title,
        flags=frozenset(_FLAG.findall(text)),
    )
