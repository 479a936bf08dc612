"""What ffmpeg says of a recording, read: its container, its sound tracks, and what went wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from parakeet_api.transcript import SoundTrack

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

_BESIDE_THE_SPEECH = frozenset({"comment", "visual impaired", "descriptions", "karaoke", "lyrics"})
"""Flags of tracks that are not what a recording is listened to for."""
_COARSE = frozenset({"u8", "u8p", "s16", "s16p"})
_PAIRED = frozenset({"mono", "stereo", "downmix", "1 channels", "2 channels"})
_SURROUND = re.compile(
    r"[2-7]\.[01](?:\((?:back|front|side|wide|wide-side)\))?|quad(?:\(side\))?|hexagonal|octagonal"
)
"""Layouts of up to eight places around a listener: ffmpeg knows how each is mixed."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A moment at which a track's timestamps are not where its samples are."""

    seconds: float
    """The timestamp of a frame."""
    offset_s: float
    """How much sound of this filter graph came before it; 0 = the graph's first frame."""
    rate: int
    """The track's samples a second, before they were converted."""


@dataclass(frozen=True, slots=True)
class Track:
    """A sound track, as ffmpeg describes it."""

    number: int
    """Among the sound tracks, from 1."""
    codec: str
    layout: str
    """`stereo`, `5.1(side)`, `9 channels`, ..."""
    sample_format: str
    """`s16p`, `flt`, ...; empty where it is not known."""
    language: str | None
    title: str | None
    flags: frozenset[str]
    """`default`, `comment`, ..."""

    @property
    def is_aside(self) -> bool:
        """Whether the file says that it is commentary or the like."""
        return bool(self.flags & _BESIDE_THE_SPEECH)

    @property
    def is_fine(self) -> bool:
        """Whether its samples are finer than 16 bits."""
        return self.sample_format not in _COARSE

    @property
    def is_surround(self) -> bool:
        """Whether it has more than two channels whose places are known."""
        return _SURROUND.fullmatch(self.layout) is not None

    @property
    def is_loose(self) -> bool:
        """Whether it has channels without places, or with ones that ffmpeg does not mix."""
        return bool(self.layout) and not (self.is_surround or self.layout in _PAIRED)

    def described(self, *, used: bool) -> SoundTrack:
        """Give it as answers list it."""
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
    """Where the earliest of its streams starts by its timestamps."""
    duration_s: float | None
    """By its header, or estimated from its size."""
    duration_is_estimated: bool
    has_pictures: bool
    has_other_streams: bool
    """Anything but sound, cover pictures aside."""
    tracks: tuple[Track, ...]

    def preferred(self) -> list[Track]:
        """Order the tracks: first the one that a player would play."""
        return sorted(
            self.tracks,
            key=lambda track: (
                track.codec in ("none", "unknown") or not track.sample_format,
                track.is_aside,
                "default" not in track.flags,
                track.number,
            ),
        )


def parse_media_info(said: str) -> MediaInfo | None:
    """Read the description at the beginning of ffmpeg's log; `None` if it opened nothing."""
    begins = _INPUT.search(said)
    if begins is None:
        return None
    ends = _END.search(said, begins.end())
    described = said[begins.start() : ends.start() if ends else len(said)]
    duration_s, start_s = _times(described)
    others = [line for line in described.splitlines() if _is_picture(line)]
    return MediaInfo(
        container=begins[1].rstrip(",").split(",")[0],
        start_s=start_s,
        duration_s=duration_s,
        duration_is_estimated="Estimating duration from bitrate" in said,
        has_pictures=bool(others),
        has_other_streams="Stream #" in described and ": Audio:" not in described,
        tracks=tuple(_tracks(described)),
    )


def _is_picture(line: str) -> bool:
    stream = _STREAM.match(line)
    return bool(stream and stream[3] == "Video" and "(attached pic)" not in line)


def _times(described: str) -> tuple[float | None, float | None]:
    """Read how long the recording is, and where it starts."""
    found = _DURATION.search(described)
    if found is None:
        return None, None
    hours, minutes, seconds, start = found.groups()
    known = hours is not None
    duration_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds) if known else None
    return duration_s, float(start) if start is not None else None


def _tracks(described: str) -> list[Track]:
    """Read the lines of the sound tracks, each with the lines of its metadata."""
    streams: dict[int, tuple[str | None, str]] = {}
    titles: dict[int, str] = {}
    latest: int | None = None
    for line in described.splitlines():
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
