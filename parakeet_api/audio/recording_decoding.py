"""Decode one recording: choose its tracks, put its parts together, report what is missing."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from parakeet_api.audio import track_decoding
from parakeet_api.audio.channels import Channels
from parakeet_api.audio.downmix import Mono, silence
from parakeet_api.audio.ffmpeg import Input, supported
from parakeet_api.audio.file_parts import MediaFile
from parakeet_api.audio.levels import level_of, peak, to_pcm
from parakeet_api.audio.media_files import inspect
from parakeet_api.audio.media_info import MediaInfo, Track, TrackChoice
from parakeet_api.audio.sound_files import Sound, open_sound
from parakeet_api.audio.track_decoding import NothingDecodedError, TrackDecoding
from parakeet_api.errors import (
    AudioDecodeError,
    InvalidRequestError,
    NoAudioTrackError,
    TruncatedAudioError,
)
from parakeet_api.transcript import SAMPLE_RATE, Caveat, ChannelChoice, Pcm, SoundTrack

_MAX_CAVEATS = 20
"""More warnings would not help the reader."""
_READ_BYTES = 1024 * 1024
_FRAME_SAMPLES = 2 * SAMPLE_RATE
"""Frame size after the operator's filter. Since version 7, ffmpeg runs filters in their own
threads; waking one for every 24 ms of an mp3 costs more than decoding it."""
_MAX_MIXED_TRACKS = 16
"""Each track takes an ffmpeg process."""
_SILENT = 2.0**-16
"""Half a quantization step of 16 bits."""

_LOSSLESS_FLOATS = re.compile(r"pcm_f\d|pcm_s\d\d|wavpack|alac|flac|tta|tak|ape|dsd")
_DECODED_OVERSHOOT = 2.0
"""Lossy codecs may decode full scale to at most this peak; it is clipped, as every player does."""


@dataclass(slots=True)
class DecodeReport:
    """What decoding has learned about a recording so far."""

    expected_s: float | None = None
    caveats: list[Caveat] = field(default_factory=list)
    tracks: list[SoundTrack] = field(default_factory=list)


class Decoder(track_decoding.Decoder, Protocol):
    """The decoder, as `RecordingDecoding` uses it."""

    @property
    def audio_filter(self) -> str | None:
        """An ffmpeg filter chain to run before recognition."""

    @property
    def max_seconds(self) -> float:
        """Longest recording accepted."""


class RecordingDecoding:
    """Decode one recording."""

    def __init__(
        self,
        decoder: Decoder,
        path: Path,
        report: DecodeReport,
        *,
        track: TrackChoice,
        allow_partial: bool,
        channels: ChannelChoice,
    ) -> None:
        self.decoder = decoder
        # Several tracks are mixed, whatever their channels.
        self.channels = Channels("mix" if track == "all" else channels)
        self._path = path
        self._report = report
        self._choice = track
        self._allow_partial = allow_partial
        self._file = MediaFile()
        self._info: MediaInfo | None = None
        self.track: Track | None = None
        """The track being decoded."""

    def blocks(self, *, raw_pcm: bool) -> Generator[Pcm]:
        """Open the recording; the generator decodes it to the end, or raises."""
        if raw_pcm:
            self._check_choice(1)
            self._report.expected_s = self._path.stat().st_size // 2 / SAMPLE_RATE
            return _read_pcm(self._path)
        self._file = inspect(self._path)
        is_plain = self.decoder.audio_filter is None and not self._file.parts
        sound = open_sound(self._path, self.channels) if is_plain else None
        return self._decoded() if sound is None else self._read(sound)

    def _read(self, sound: Sound) -> Generator[Pcm]:
        """Read a recording that needs no ffmpeg."""
        self._check_choice(1)
        self._report.expected_s = sound.seconds
        self._report.caveats += sound.caveats
        return self._read_to_end(sound)

    def _read_to_end(self, sound: Sound) -> Generator[Pcm]:
        yield from sound.blocks
        self._check_whole(sound.seconds)

    def _decoded(self) -> Generator[Pcm]:
        with contextlib.closing(self._selected_audio()) as selected:
            pcm = to_pcm(selected, max_level=self._max_level, measure=self._measure_level)
            yield from pcm if self.decoder.audio_filter is None else self._filtered(pcm)

    def _check_choice(self, tracks: int) -> None:
        if isinstance(self._choice, int) and self._choice > tracks:
            has = "one sound track" if tracks == 1 else f"{tracks} sound tracks"
            raise InvalidRequestError(
                f"audio_track={self._choice}: the file has {has}.", param="audio_track"
            )

    def needs_floats(self, track: Track) -> bool:
        """Tell whether 16-bit samples would lose information of a track."""
        is_exact = _LOSSLESS_FLOATS.match(track.codec) is not None
        return self._choice == "all" or track.is_discrete or (track.exceeds_16_bits and is_exact)

    def _max_level(self) -> float:
        is_exact = self._choice == "all" or (
            self.track is not None and _LOSSLESS_FLOATS.match(self.track.codec)
        )
        return 1.0 if is_exact else _DECODED_OVERSHOOT

    def _measure_level(self) -> float:
        """Decode the recording once more, to measure its level."""
        again = RecordingDecoding(
            self.decoder,
            self._path,
            DecodeReport(),
            track=self._choice,
            allow_partial=True,
            channels="mix" if self.channels.count is None else "separate",
        )
        again._file = self._file
        with contextlib.closing(again._selected_audio()) as selected:
            return level_of(_first_seconds(selected, self.decoder.max_seconds))

    def _filtered(self, pcm: Iterable[Pcm]) -> Generator[Pcm]:
        """Run the operator's filter (`DENOISE_FILTER`) in a second ffmpeg."""
        chain = f"{self.decoder.audio_filter},asetnsamples=n={_FRAME_SAMPLES}:p=0"
        blocks = iter(pcm)
        first = next(blocks, np.zeros(0, np.int16))
        apart = first.shape[1:]
        channels = math.prod(apart)
        raw = ("-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", str(channels))
        options = ["-loglevel", "repeat+info", "-protocol_whitelist", "file,pipe", "-threads", "1"]
        options += [*raw, "-i", "pipe:0", "-af", chain, *raw, "pipe:1"]
        sent = (block.tobytes() for block in itertools.chain([first], blocks))
        with self.decoder.running(options, url="pipe:0", stdin_data=lambda: sent) as run:
            rest = b""
            for data in run.blocks():
                joined = rest + data
                whole_bytes = len(joined) - len(joined) % (2 * channels)
                rest = joined[whole_bytes:]
                yield np.frombuffer(joined[:whole_bytes], dtype="<i2").reshape(-1, *apart)
            run.check_end()

    def _selected_audio(self) -> Generator[Mono]:
        if self._choice == "all":
            return self._all_mixed()
        if self._choice is not None:
            return self._one_track(self._choice)
        return self._first_audible_track()

    def _one_track(self, number: int) -> Generator[Mono]:
        try:
            yield from self._decode(number)
        except NothingDecodedError as error:
            raise error.decode_error from error
        self._note_tracks({number})

    def _first_audible_track(self) -> Generator[Mono]:
        """Decode the first track, in order of preference, that is not silent."""
        skipped: list[Caveat] = []
        failure: NothingDecodedError | None = None
        silent_samples = 0
        silent_track: Track | None = None
        for number in self._candidates():
            with contextlib.closing(self._decode(number)) as sound:
                try:
                    opening, silent = self._opening(sound)
                except NothingDecodedError as error:
                    failure = failure or error
                    skipped.append(
                        _skipped_track("track_undecodable", self.track, "could not be decoded")
                    )
                    continue
                if opening is not None:
                    self._note_skipped(skipped)
                    yield from silence(silent, self.channels.count)
                    yield opening
                    yield from sound
                    return
                if not silent_samples:
                    silent_samples, silent_track = silent, self.track
                skipped.append(_skipped_track("track_silent", self.track, "was silent"))
        if not silent_samples:
            raise (
                failure.decode_error
                if failure
                else AudioDecodeError(f"The file holds no sound. {supported()}")
            )
        self.track = silent_track
        self._note_skipped([c for c in skipped if c.code == "track_undecodable"])
        yield from silence(silent_samples, self.channels.count)

    def _candidates(self) -> Iterator[int | None]:
        """List tracks in order of preference; `None` = the best one, before any is known."""
        yield None
        if self._info is not None:
            yield from (track.number for track in self._info.preferred()[1:])

    def _opening(self, sound: Iterator[Mono]) -> tuple[Mono | None, int]:
        """Read up to the first block that is not silent; return it and the silent samples before.

        If the file has only one track, that is the first block, silent or not.
        """
        silent = 0
        for block in sound:
            alone = self._info is None or len(self._info.tracks) == 1
            if alone or not _is_silent(block):
                return block, silent
            silent += len(block)
        return None, silent

    def _note_skipped(self, skipped: list[Caveat]) -> None:
        number = self.track.number if self.track else 1
        first = self._info.first if self._info else None
        if first is not None and first.number != number and not first.is_known:
            unknown = _skipped_track("track_undecodable", first, "could not be decoded")
            skipped = list(dict.fromkeys([unknown, *skipped]))
        for caveat in skipped:
            self._report.caveats.append(
                Caveat(caveat.code, f"{caveat.message}, track {number} was used.")
            )
        self._note_tracks({number})

    def _note_tracks(self, used: set[int]) -> None:
        tracks = self._info.tracks if self._info else ()
        self._report.tracks[:] = [
            track.as_sound_track(used=track.number in used) for track in tracks
        ]
        if len(tracks) > len(used):
            numbers = ", ".join(map(str, sorted(used)))
            self._report.caveats.append(
                Caveat(
                    "tracks_not_used",
                    f"The file has {len(tracks)} sound tracks; track {numbers} was used."
                    " audio_track=N takes another one, audio_track=all mixes them.",
                )
            )

    def _all_mixed(self) -> Generator[Mono]:
        """Decode all tracks in parallel and add them up."""
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(contextlib.closing(self._decode_or_warn(1)))
            opening = next(first, None)
            tracks = len(self._info.tracks) if self._info else 1
            if tracks > _MAX_MIXED_TRACKS:
                raise InvalidRequestError(
                    f"audio_track=all: the file has {tracks} sound tracks, more than the"
                    f" {_MAX_MIXED_TRACKS} that are mixed. Choose one.",
                    param="audio_track",
                )
            others = [
                stack.enter_context(contextlib.closing(self._decode_or_warn(number)))
                for number in range(2, tracks + 1)
            ]
            tracks_audio = [
                itertools.chain([opening] if opening is not None else [], first),
                *others,
            ]
            self._note_tracks(set(range(1, tracks + 1)))
            yield from _sum_tracks(tracks_audio)

    def _decode_or_warn(self, number: int) -> Generator[Mono]:
        """Decode one track of several; one that cannot be decoded yields nothing and a caveat."""
        try:
            yield from self._decode(number)
        except NothingDecodedError as error:
            self._report.caveats.append(Caveat("track_undecodable", f"Track {number}: {error}"))

    def _decode(self, number: int | None) -> Generator[Mono]:
        """Decode a track through all parts of the file. Raises `NothingDecodedError`."""
        sources = [Input(self._path, part.head, part.ranges) for part in self._file.parts]
        failure: NothingDecodedError | None = None
        no_track: NoAudioTrackError | None = None
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
            except NoAudioTrackError as error:
                no_track = error
        if no_track is not None and not offset and failure is None:
            raise no_track
        if failure is not None and not offset and self._file.lacks_index:
            raise TruncatedAudioError(
                "The file is cut short: a part of its index, which stands at its end, is missing."
                " Send it again."
            )
        if failure is not None and not (offset and failure.is_empty):
            raise failure if not offset else failure.decode_error
        self._check_whole(offset / SAMPLE_RATE)

    def _check_whole(self, decoded_s: float) -> None:
        """Raise `TruncatedAudioError` if the file's structure tells that its end is missing."""
        if self._file.ends_within_sample:
            self.end_early(f"it ends within a sample, after {decoded_s:.1f} s", decoded_s)
        if self._file.missing_bytes:
            self.end_early(
                f"{self._file.missing_bytes} of {self._file.expected_bytes} bytes are missing, and"
                f" it ends after {decoded_s:.1f} s",
                decoded_s,
            )

    def select_track(self, info: MediaInfo, number: int | None) -> Track:
        """Record the file's description; return the track to decode.

        Raises `InvalidRequestError` if there is no track of that number.
        """
        if self._info is None:
            self._info = info
            self._report.expected_s = info.duration_s
            self._check_choice(len(info.tracks))
        preferred = info.preferred()
        self.track = next((track for track in preferred if track.number == number), preferred[0])
        return self.track

    def add_caveats(self, caveats: Iterable[Caveat], offset: int) -> None:
        """Record caveats whose times count from sample `offset`."""
        shift_s = offset / SAMPLE_RATE
        for caveat in caveats:
            start, end = (
                None if at is None else round(at + shift_s, 3) for at in (caveat.start, caveat.end)
            )
            if len(self._report.caveats) < _MAX_CAVEATS:
                self._report.caveats.append(Caveat(caveat.code, caveat.message, start, end))

    def end_early(self, how: str, decoded_s: float) -> None:
        """Record that the file is truncated. Raises `TruncatedAudioError` unless allowed."""
        message = f"The file is cut short: {how}."
        if not self._allow_partial:
            raise TruncatedAudioError(
                f"{message} Send it again; if it is all there is, allow_partial=true transcribes"
                " what there is."
            )
        if all(caveat.code != TruncatedAudioError.code for caveat in self._report.caveats):
            caveat = Caveat("truncated_audio", message, start=round(decoded_s, 3))
            self._report.caveats.append(caveat)


def _read_pcm(path: Path) -> Generator[Pcm]:
    with path.open("rb") as file:
        # An odd byte at the end is not a sample.
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


def _sum_tracks(tracks_audio: Sequence[Iterator[Mono]]) -> Iterator[Mono]:
    """Add up tracks that arrive in blocks of any length, until the last one ends."""
    pending: list[Mono] = [np.zeros(0, np.float32) for _ in tracks_audio]
    ended = [False for _ in tracks_audio]
    while True:
        for number, sound in enumerate(tracks_audio):
            if not len(pending[number]) and not ended[number]:
                block = next(sound, None)
                ended[number] = block is None
                pending[number] = pending[number] if block is None else block
        lengths = [len(block) for block in pending if len(block)]
        if not lengths and all(ended):
            return
        if lengths:
            length = min(lengths)
            total = np.zeros(length, np.float32)
            for number, block in enumerate(pending):
                if len(block):
                    total += block[:length]
                    pending[number] = block[length:]
            yield total


def _skipped_track(code: str, track: Track | None, why: str) -> Caveat:
    named = f"Track {track.number}" if track else "A track"
    return Caveat(code, f"{named} {why}")
