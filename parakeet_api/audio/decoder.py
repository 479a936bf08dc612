"""Decode any recording or video to 16 kHz mono PCM, as a stream.

    file -> parts -> ffmpeg -> frames of all channels -> timeline -> downmix -> level -> PCM

All sound is kept, at its time: what ffmpeg would drop or mix wrongly is decided here, by measuring.
What cannot be heard raises, or is told as a `Caveat`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np

from parakeet_api.audio.downmix import Mono, silence
from parakeet_api.audio.ffmpeg import (
    Executables,
    FfmpegRun,
    Input,
    check_filter,
    find_ffmpeg,
    running_ffmpeg,
    supported,
)
from parakeet_api.audio.levels import level_of, peak, to_pcm
from parakeet_api.audio.media_files import (
    MediaFile,
    inspect,
)
from parakeet_api.audio.media_info import MediaInfo, Track
from parakeet_api.audio.pieces import Piece, plan_pieces
from parakeet_api.audio.sound_files import Sound, open_sound
from parakeet_api.audio.track_decoding import NothingDecodedError, TrackDecoding
from parakeet_api.errors import (
    AudioDecodeError,
    AudioTooLongError,
    InvalidRequestError,
    ServiceUnavailableError,
    TruncatedAudioError,
)
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE, Caveat, Pcm, SoundTrack

logger = logging.getLogger(__name__)

FILE_EXTENSIONS = (  # noqa: SIM905 - 60 strings in quotes would be 60 lines
    "3g2 3gp 8svx aac ac3 aif aiff amr ape asf au avi caf dsf dts dv eac3 f4v flac flv gxf m2ts m4a"
    " m4b m4v mj2 mka mkv mov mp2 mp3 mp4 mpc mpeg mpg mpga mts mxf nut oga ogg ogv opus qcp ra rm"
    " rmvb sf snd sox sph spx tak thd ts tta vob voc w64 wav webm wma wmv wtv wv"
).split()
"""What such files are usually called. For file dialogs: the decoder itself looks at the content."""

TrackChoice = int | Literal["all"] | None
"""A sound track's number from 1, all of them mixed, or the one that a player would play."""

_MAX_CAVEATS = 20
"""A recording with more is told of well enough."""
_READ_BYTES = 1024 * 1024
_FRAME_SAMPLES = 2 * SAMPLE_RATE
"""What the filter of a person's own hands on at a time. Since its version 7, ffmpeg's parts are
threads of their own, and waking one for each 24 ms of an mp3 cost more than decoding it."""
_MAX_MIXED_TRACKS = 16
"""Each is decoded by an ffmpeg of its own."""
_SILENT = 2.0**-16
"""Half a step of 16 bits."""

_LOSSLESS_FLOATS = re.compile(r"pcm_f\d|pcm_s\d\d|wavpack|alac|flac|tta|tak|ape|dsd")
_DECODED_OVERSHOOT = 2.0
"""What lossy codecs make of full scale, at most: clipped, as every player does."""


class AudioStream(Iterator[Pcm]):
    """A recording while it is decoded: an iterator of PCM blocks; closing it ends the decoder."""

    def __init__(self, blocks: Generator[Pcm], heard: Heard) -> None:
        self._blocks = blocks
        self._heard = heard
        self.spent_s = 0.0
        """Seconds that were spent waiting for blocks."""

    def __next__(self) -> Pcm:
        """Give the next block, shape `(samples,)`. Raises `AudioDecodeError`."""
        started = time.monotonic()
        try:
            return next(self._blocks)
        finally:
            self.spent_s += time.monotonic() - started

    @property
    def expected_s(self) -> float | None:
        """Seconds that the recording will have, as far as its header tells; often an estimate."""
        return self._heard.expected_s

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """What is to be told of the sound; complete at its end."""
        return tuple(self._heard.caveats)

    @property
    def tracks(self) -> tuple[SoundTrack, ...]:
        """The sound tracks, once it is known which is used."""
        return tuple(self._heard.tracks)

    def close(self) -> None:
        """Stop decoding."""
        self._blocks.close()


@dataclass(slots=True)
class Heard:
    """What is found out of a recording while it is decoded."""

    expected_s: float | None = None
    caveats: list[Caveat] = field(default_factory=list)
    tracks: list[SoundTrack] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FfmpegDecoder:
    """Turn files into PCM blocks."""

    executable: str
    """Another one is looked for where it is gone."""
    max_seconds: float
    """Longest recording that is decoded; one more sample is an `AudioTooLongError`."""
    audio_filter: str | None = None
    """An ffmpeg filter chain to run before recognition."""
    workers: int = 1
    """How many ffmpegs may decode one long mp3 or wav file side by side; one file at a time."""
    executables: Executables = field(init=False, compare=False, repr=False)
    _side_by_side: threading.Lock = field(
        default_factory=threading.Lock, init=False, compare=False, repr=False
    )
    """Held while a recording is decoded in pieces: they take memory, and cores that others use."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "executables", Executables(self.executable))

    @classmethod
    def from_settings(
        cls, settings: Settings, *, executable: str | None = None, workers: int = 1
    ) -> Self:
        """Decode as the settings say; without an `executable`, with the ffmpeg that is found.

        That one is tried first. Raises `SettingsError` where there is none, or where it refuses the
        settings' filter chain.
        """
        if executable is None:
            executable = find_ffmpeg()
            if settings.enable_ffmpeg_denoise:
                check_filter(executable, settings.denoise_filter)
        return cls(
            executable=executable,
            max_seconds=settings.max_audio_hours * 3600,
            audio_filter=settings.denoise_filter if settings.enable_ffmpeg_denoise else None,
            workers=workers,
        )

    @property
    def is_usable(self) -> bool:
        """Whether there is an ffmpeg."""
        return next(self.executables.usable(), None) is not None

    def stream(
        self,
        path: Path,
        *,
        raw_pcm: bool = False,
        track: TrackChoice = None,
        allow_partial: bool = False,
    ) -> AudioStream:
        """Decode a recording to int16 blocks, shape `(samples,)`, at 16 kHz, mono.

        The track's own timestamps are kept: sound that starts late or has holes is filled with
        silence, so that subtitles fit the picture. A `raw_pcm` file is such samples already,
        little-endian, without a header. With `allow_partial`, a file that is cut short ends where
        it ends, with a caveat.

        The stream raises `AudioDecodeError` or one of its kinds, `InvalidRequestError` for a track
        that is not there, and `ServiceUnavailableError` where the decoder was ended by anything but
        the file.
        """
        heard = Heard()
        decoding = _Decoding(self, path, heard, track=track, allow_partial=allow_partial)
        return AudioStream(self._bounded(decoding.blocks(raw_pcm=raw_pcm)), heard)

    def _bounded(self, blocks: Generator[Pcm]) -> Generator[Pcm]:
        limit = round(self.max_seconds * SAMPLE_RATE)
        decoded = 0
        with contextlib.closing(blocks):
            for block in blocks:
                decoded += len(block)
                if decoded > limit:
                    raise AudioTooLongError(
                        f"The recording is longer than {self.max_seconds / 3600:g} hours, the most"
                        " this server accepts (MAX_AUDIO_HOURS). Split it and send the parts."
                    )
                yield block

    @contextlib.contextmanager
    def pieces(self, source: Input) -> Iterator[tuple[Piece, ...]]:
        """Give the pieces that may be decoded side by side; none where one ffmpeg is to do it."""
        is_file = not (source.head or source.ranges)
        if self.workers < 2 or not is_file or not self._side_by_side.acquire(blocking=False):  # noqa: PLR2004
            yield ()
            return
        try:
            yield plan_pieces(source.path, workers=self.workers)
        finally:
            self._side_by_side.release()

    def _cpu_s(self) -> int:
        """Give ffmpeg's time on a core: the slowest codecs decode ten times as fast as this."""
        return 60 + math.ceil(self.max_seconds / 4)

    @contextlib.contextmanager
    def running(
        self, options: Sequence[str], *, url: str, fed: Callable[[], Iterator[bytes]] | None
    ) -> Iterator[FfmpegRun]:
        """Run whichever ffmpeg can be started."""
        for executable in self.executables.usable():
            with contextlib.ExitStack() as stack:
                try:
                    run = stack.enter_context(
                        running_ffmpeg(
                            executable,
                            options,
                            url=url,
                            fed=fed() if fed else None,
                            cpu_s=self._cpu_s(),
                        )
                    )
                except OSError as error:
                    self.executables.note_broken(executable, str(error))
                    continue
                yield run
                return
        raise ServiceUnavailableError(
            "The server has no decoder at the moment: ffmpeg is gone or broken. Try again later."
        )


class _Decoding:
    """One recording while it is decoded."""

    def __init__(
        self,
        decoder: FfmpegDecoder,
        path: Path,
        heard: Heard,
        *,
        track: TrackChoice,
        allow_partial: bool,
    ) -> None:
        self.decoder = decoder
        self._path = path
        self._heard = heard
        self._choice = track
        self._allow_partial = allow_partial
        self._file = MediaFile()
        self._info: MediaInfo | None = None
        self.track: Track | None = None
        """The track that is decoded."""

    def blocks(self, *, raw_pcm: bool) -> Generator[Pcm]:
        """Open the recording; the generator decodes it to the end, or raises."""
        if raw_pcm:
            self._check_choice(1)
            self._heard.expected_s = self._path.stat().st_size // 2 / SAMPLE_RATE
            return _read_pcm(self._path)
        self._file = inspect(self._path)
        is_plain = self.decoder.audio_filter is None and not self._file.parts
        sound = open_sound(self._path) if is_plain else None
        return self._decoded() if sound is None else self._read(sound)

    def _read(self, sound: Sound) -> Generator[Pcm]:
        """Give a recording that needs no ffmpeg."""
        self._check_choice(1)
        self._heard.expected_s = sound.seconds
        self._heard.caveats += sound.caveats
        return self._read_to_end(sound)

    def _read_to_end(self, sound: Sound) -> Generator[Pcm]:
        yield from sound.blocks
        self._check_whole(sound.seconds)

    def _decoded(self) -> Generator[Pcm]:
        with contextlib.closing(self._chosen()) as chosen:
            pcm = to_pcm(chosen, most=self._most, measure=self._measured_level)
            yield from pcm if self.decoder.audio_filter is None else self._filtered(pcm)

    def _check_choice(self, tracks: int) -> None:
        if isinstance(self._choice, int) and self._choice > tracks:
            has = "one sound track" if tracks == 1 else f"{tracks} sound tracks"
            raise InvalidRequestError(
                f"audio_track={self._choice}: the file has {has}.", param="audio_track"
            )

    def needs_floats(self, track: Track) -> bool:
        """Tell whether 16 bits would take something of a track."""
        is_exact = _LOSSLESS_FLOATS.match(track.codec) is not None
        return self._choice == "all" or track.is_loose or (track.is_fine and is_exact)

    def _most(self) -> float:
        is_exact = self._choice == "all" or (
            self.track is not None and _LOSSLESS_FLOATS.match(self.track.codec)
        )
        return 1.0 if is_exact else _DECODED_OVERSHOOT

    def _measured_level(self) -> float:
        """Decode it once more, for its level."""
        again = _Decoding(self.decoder, self._path, Heard(), track=self._choice, allow_partial=True)
        again._file = self._file
        with contextlib.closing(again._chosen()) as chosen:
            return level_of(_first_seconds(chosen, self.decoder.max_seconds))

    def _filtered(self, pcm: Iterable[Pcm]) -> Generator[Pcm]:
        """Run the filter of a person's own, in an ffmpeg of its own."""
        chain = f"{self.decoder.audio_filter},asetnsamples=n={_FRAME_SAMPLES}:p=0"
        raw = ("-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1")
        options = ["-loglevel", "repeat+info", "-protocol_whitelist", "file,pipe", "-threads", "1"]
        options += [*raw, "-i", "pipe:0", "-af", chain, *raw, "pipe:1"]
        sent = (block.tobytes() for block in pcm)
        with self.decoder.running(options, url="pipe:0", fed=lambda: sent) as run:
            rest = b""
            for data in run.blocks():
                samples = rest + data
                whole = len(samples) - len(samples) % 2
                rest = samples[whole:]
                yield np.frombuffer(samples[:whole], dtype="<i2")
            run.check_end()

    def _chosen(self) -> Generator[Mono]:
        if self._choice == "all":
            return self._all_mixed()
        if self._choice is not None:
            return self._only(self._choice)
        return self._first_heard()

    def _only(self, number: int) -> Generator[Mono]:
        try:
            yield from self._decode(number)
        except NothingDecodedError as error:
            raise error.told from error
        self._note_tracks({number})

    def _first_heard(self) -> Generator[Mono]:
        """Decode the first track, in the order of preference, that is more than silence."""
        passed: list[Caveat] = []
        failure: NothingDecodedError | None = None
        silent_samples = 0
        for number in self._candidates():
            with contextlib.closing(self._decode(number)) as sound:
                try:
                    opening, silent = self._opening(sound)
                except NothingDecodedError as error:
                    failure = failure or error
                    passed.append(_passed("track_undecodable", self.track, "could not be decoded"))
                    continue
                if opening is not None:
                    self._note_passed(passed)
                    yield from silence(silent)
                    yield opening
                    yield from sound
                    return
                silent_samples = silent_samples or silent
                passed.append(_passed("track_silent", self.track, "was silent"))
        if not silent_samples:
            raise (
                failure.told
                if failure
                else AudioDecodeError(f"The file holds no sound. {supported()}")
            )
        self._note_tracks({1})
        yield from silence(silent_samples)

    def _candidates(self) -> Iterator[int | None]:
        """Give the tracks in the order of preference; the first is known once it is looked at."""
        yield None
        if self._info is not None:
            yield from (track.number for track in self._info.preferred()[1:])

    def _opening(self, sound: Iterator[Mono]) -> tuple[Mono | None, int]:
        """Read up to the first block that is no silence; give it, and how long the silence is.

        Where there is no other track, that is the first block.
        """
        silent = 0
        for block in sound:
            alone = self._info is None or len(self._info.tracks) == 1
            if alone or not _is_silent(block):
                return block, silent
            silent += len(block)
        return None, silent

    def _note_passed(self, passed: list[Caveat]) -> None:
        number = self.track.number if self.track else 1
        for caveat in passed:
            self._heard.caveats.append(
                Caveat(caveat.code, f"{caveat.message}, track {number} was used.")
            )
        self._note_tracks({number})

    def _note_tracks(self, used: set[int]) -> None:
        tracks = self._info.tracks if self._info else ()
        self._heard.tracks[:] = [track.described(used=track.number in used) for track in tracks]
        if len(tracks) > len(used):
            numbers = ", ".join(map(str, sorted(used)))
            self._heard.caveats.append(
                Caveat(
                    "tracks_not_used",
                    f"The file has {len(tracks)} sound tracks; track {numbers} was used."
                    " audio_track=N takes another one, audio_track=all mixes them.",
                )
            )

    def _all_mixed(self) -> Generator[Mono]:
        """Decode all tracks side by side, and add them up."""
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(contextlib.closing(self._decode_or_tell(1)))
            opening = next(first, None)
            tracks = len(self._info.tracks) if self._info else 1
            if tracks > _MAX_MIXED_TRACKS:
                raise InvalidRequestError(
                    f"audio_track=all: the file has {tracks} sound tracks, more than the"
                    f" {_MAX_MIXED_TRACKS} that are mixed. Choose one.",
                    param="audio_track",
                )
            others = [
                stack.enter_context(contextlib.closing(self._decode_or_tell(number)))
                for number in range(2, tracks + 1)
            ]
            sounds = [itertools.chain([opening] if opening is not None else [], first), *others]
            self._note_tracks(set(range(1, tracks + 1)))
            yield from _added_up(sounds)

    def _decode_or_tell(self, number: int) -> Generator[Mono]:
        """Decode a track that is one of several; one that cannot be decoded gives nothing."""
        try:
            yield from self._decode(number)
        except NothingDecodedError as error:
            self._heard.caveats.append(Caveat("track_undecodable", f"Track {number}: {error}"))

    def _decode(self, number: int | None) -> Generator[Mono]:
        """Decode a track, in all parts of the file. Raises `NothingDecodedError`."""
        sources = [Input(self._path, part.head, part.ranges) for part in self._file.parts]
        failure: NothingDecodedError | None = None
        offset = 0
        for source in sources or [Input(self._path)]:
            part = TrackDecoding(self, source, number, offset=offset)
            try:
                with contextlib.closing(part.sound()) as sound:
                    for block in sound:
                        offset += len(block)
                        yield block
            except NothingDecodedError as error:
                failure = failure or error
                if not error.is_empty:
                    break
        if failure is not None and not (offset and failure.is_empty):
            raise failure if not offset else failure.told
        self._check_whole(offset / SAMPLE_RATE)

    def _check_whole(self, decoded_s: float) -> None:
        """Raise `TruncatedAudioError` where the file's own structure tells of more bytes."""
        if self._file.missing_bytes:
            self.end_early(
                f"{self._file.missing_bytes} of {self._file.expected_bytes} bytes are missing, and"
                f" it ends after {decoded_s:.1f} s",
                decoded_s,
            )

    def found(self, info: MediaInfo, number: int | None) -> Track:
        """Take note of what a file is; give the track that is decoded.

        Raises `InvalidRequestError` where there is none of that number.
        """
        if self._info is None:
            self._info = info
            self._heard.expected_s = info.duration_s
            self._check_choice(len(info.tracks))
        preferred = info.preferred()
        self.track = next((track for track in preferred if track.number == number), preferred[0])
        return self.track

    def note(self, caveats: Iterable[Caveat], offset: int) -> None:
        """Take note of caveats whose times count from sample `offset`."""
        shift_s = offset / SAMPLE_RATE
        for caveat in caveats:
            start, end = (
                None if at is None else round(at + shift_s, 3) for at in (caveat.start, caveat.end)
            )
            if len(self._heard.caveats) < _MAX_CAVEATS:
                self._heard.caveats.append(Caveat(caveat.code, caveat.message, start, end))

    def end_early(self, how: str, decoded_s: float) -> None:
        """Tell that the file is cut short. Raises `TruncatedAudioError` unless that is allowed."""
        told = f"The file is cut short: {how}."
        if not self._allow_partial:
            raise TruncatedAudioError(
                f"{told} Send it again; if it is all there is, allow_partial=true transcribes what"
                " there is."
            )
        if all(caveat.code != TruncatedAudioError.code for caveat in self._heard.caveats):
            caveat = Caveat("truncated_audio", told, start=round(decoded_s, 3))
            self._heard.caveats.append(caveat)


def _read_pcm(path: Path) -> Generator[Pcm]:
    with path.open("rb") as file:
        # Half a sample at the end is not sound.
        while len(data := file.read(_READ_BYTES)) > 1:
            yield np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")


def _first_seconds(sound: Iterable[Mono], seconds: float) -> Iterator[Mono]:
    left = round(seconds * SAMPLE_RATE)
    for block in sound:
        if left <= 0:
            return
        left -= len(block)
        yield block


def _is_silent(block: Mono) -> bool:
    return not block.any() or (block.dtype != np.int16 and peak(block) < _SILENT)


def _added_up(sounds: Sequence[Iterator[Mono]]) -> Iterator[Mono]:
    """Add sounds up that come in blocks of any lengths, until the last ends."""
    held: list[Mono] = [np.zeros(0, np.float32) for _ in sounds]
    ended = [False for _ in sounds]
    while True:
        for number, sound in enumerate(sounds):
            if not len(held[number]) and not ended[number]:
                block = next(sound, None)
                ended[number] = block is None
                held[number] = held[number] if block is None else block
        lengths = [len(block) for block in held if len(block)]
        if not lengths and all(ended):
            return
        if lengths:
            length = min(lengths)
            total = np.zeros(length, np.float32)
            for number, block in enumerate(held):
                if len(block):
                    total += block[:length]
                    held[number] = block[length:]
            yield total


def _passed(code: str, track: Track | None, why: str) -> Caveat:
    named = f"Track {track.number}" if track else "A track"
    return Caveat(code, f"{named} {why}")
