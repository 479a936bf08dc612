"""Decode one recording: choose its tracks, put its parts together, report what is missing."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from parakeet_api.audio import track_decoding
from parakeet_api.audio.channels import Channels
from parakeet_api.audio.decode_report import DecodeReport
from parakeet_api.audio.denoising import denoised
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
from parakeet_api.transcript import SAMPLE_RATE, Caveat, ChannelChoice, Pcm

_READ_BYTES = 1024 * 1024
_MAX_MIXED_TRACKS = 16
"""Each track takes an ffmpeg process."""
_SILENT = 2.0**-16
"""Half a quantization step of 16 bits."""

_LOSSLESS_FLOATS = re.compile(r"pcm_f\d|pcm_s\d\d|wavpack|alac|flac|tta|tak|ape|dsd")
_DECODED_OVERSHOOT = 2.0
"""Lossy codecs may decode full scale to at most this peak; it is clipped, as every player does."""


class Decoder(track_decoding.Decoder, Protocol):
    """The decoder, as `RecordingDecoding` uses it."""

    @property
    def audio_filter(self) -> str | None:
        """An ffmpeg filter chain to run before recognition."""

    @property
    def max_seconds(self) -> float:
        """Longest recording accepted."""


class RecordingDecoding:
    """Decode one recording: its tracks, and the parts of its file."""

    def __init__(
        self,
        decoder: Decoder,
        path: Path,
        report: DecodeReport,
        *,
        track: TrackChoice,
        channels: ChannelChoice,
    ) -> None:
        self.decoder = decoder
        self.report = report
        # Several tracks are mixed, whatever their channels.
        self.channels = Channels("mix" if track == "all" else channels)
        self._path = path
        self._choice = track
        self._file = MediaFile()
        self._info: MediaInfo | None = None
        self.track: Track | None = None
        """The track being decoded."""

    def blocks(self, *, raw_pcm: bool) -> Generator[Pcm]:
        """Inspect the file; return a generator that decodes it to the end, or raises."""
        if raw_pcm:
            self._check_choice(1)
            self.report.expected_s = self._path.stat().st_size // 2 / SAMPLE_RATE
            return _read_pcm(self._path)
        self._file = inspect(self._path)
        is_plain = self.decoder.audio_filter is None and not self._file.parts
        sound = open_sound(self._path, self.channels) if is_plain else None
        return self._decode_by_ffmpeg() if sound is None else self._read_directly(sound)

    def _read_directly(self, sound: Sound) -> Generator[Pcm]:
        """Read a recording that can be decoded without ffmpeg."""
        self._check_choice(1)
        self.report.expected_s = sound.seconds
        self.report.caveats += sound.caveats
        return self._read_to_end(sound)

    def _read_to_end(self, sound: Sound) -> Generator[Pcm]:
        yield from sound.blocks
        self._check_complete(sound.seconds)

    def _decode_by_ffmpeg(self) -> Generator[Pcm]:
        with contextlib.closing(self._selected_audio()) as selected:
            pcm = to_pcm(selected, max_level=self._max_level, measure=self._measure_level)
            audio_filter = self.decoder.audio_filter
            yield from denoised(pcm, audio_filter, self.decoder) if audio_filter else pcm

    def _check_choice(self, tracks: int) -> None:
        """Raise `InvalidRequestError` if the chosen track is none of `tracks`."""
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
        """Return the peak up to which samples are clipped, not scaled."""
        is_exact = self._choice == "all" or (
            self.track is not None and _LOSSLESS_FLOATS.match(self.track.codec)
        )
        return 1.0 if is_exact else _DECODED_OVERSHOOT

    def _measure_level(self) -> float:
        """Decode the recording once more, to measure its level."""
        again = RecordingDecoding(
            self.decoder,
            self._path,
            DecodeReport(allow_partial=True),
            track=self._choice,
            channels="mix" if self.channels.count is None else "separate",
        )
        again._file = self._file
        with contextlib.closing(again._selected_audio()) as selected:
            return level_of(_first_seconds(selected, self.decoder.max_seconds))

    def _selected_audio(self) -> Generator[Mono]:
        """Decode what the request chose: one track, all of them, or the first that is audible."""
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
        self.report.set_tracks(self._tracks, used={number})

    def _first_audible_track(self) -> Generator[Mono]:
        """Decode the first track, in order of preference, that is not silent."""
        skipped: list[Caveat] = []
        failure: NothingDecodedError | None = None
        silent_samples = 0
        silent_track: Track | None = None
        for number in self._candidates():
            with contextlib.closing(self._decode(number)) as sound:
                try:
                    opening, silent = self._first_audible_block(sound)
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

    @property
    def _tracks(self) -> tuple[Track, ...]:
        return self._info.tracks if self._info else ()

    def _candidates(self) -> Iterator[int | None]:
        """Yield tracks in order of preference; `None` = the first one, while none is known."""
        yield None
        if self._info is not None:
            yield from (track.number for track in self._info.preferred()[1:])

    def _first_audible_block(self, sound: Iterator[Mono]) -> tuple[Mono | None, int]:
        """Return the first block that is not silent, and the number of samples before it.

        Of a file with only one track, return the first block, silent or not.
        """
        silent = 0
        for block in sound:
            is_only_track = len(self._tracks) < 2  # noqa: PLR2004
            if is_only_track or not _is_silent(block):
                return block, silent
            silent += len(block)
        return None, silent

    def _note_skipped(self, skipped: list[Caveat]) -> None:
        """Record the tracks, with warnings about those skipped and that the used one replaced."""
        number = self.track.number if self.track else 1
        first = self._info.first if self._info else None
        if first is not None and first.number != number and not first.is_known:
            unknown = _skipped_track("track_undecodable", first, "could not be decoded")
            skipped = list(dict.fromkeys([unknown, *skipped]))
        for caveat in skipped:
            self.report.caveats.append(
                Caveat(caveat.code, f"{caveat.message}, track {number} was used.")
            )
        self.report.set_tracks(self._tracks, used={number})

    def _all_mixed(self) -> Generator[Mono]:
        """Decode all tracks in parallel and add them up."""
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(contextlib.closing(self._decode_or_warn(1)))
            opening = next(first, None)
            tracks = len(self._tracks) or 1
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
            self.report.set_tracks(self._tracks, used=set(range(1, tracks + 1)))
            yield from _sum_tracks(tracks_audio)

    def _decode_or_warn(self, number: int) -> Generator[Mono]:
        """Decode one track of several; one that cannot be decoded yields nothing and a caveat."""
        try:
            yield from self._decode(number)
        except NothingDecodedError as error:
            self.report.caveats.append(Caveat("track_undecodable", f"Track {number}: {error}"))

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
        if failure is not None and not offset and self._file.missing_bytes:
            raise TruncatedAudioError(
                "The file is cut short, and nothing that it has can be decoded. Send it again."
            )
        if failure is not None and not (offset and failure.is_empty):
            raise failure if not offset else failure.decode_error
        self._check_complete(offset / SAMPLE_RATE)

    def _check_complete(self, decoded_s: float) -> None:
        """Raise `TruncatedAudioError` if the file's structure tells that its end is missing."""
        if self._file.ends_within_sample:
            self.report.add_truncation(
                f"it ends within a sample, after {decoded_s:.1f} s", decoded_s
            )
        if self._file.has_damaged_structure:
            self.report.add_truncation(
                f"a part of it is damaged, and it ends there, after {decoded_s:.1f} s", decoded_s
            )
        if self._file.missing_bytes:
            self.report.add_truncation(
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
            self.report.expected_s = info.duration_s
            self._check_choice(len(info.tracks))
        preferred = info.preferred()
        self.track = next((track for track in preferred if track.number == number), preferred[0])
        return self.track


def _read_pcm(path: Path) -> Generator[Pcm]:
    with path.open("rb") as file:
        # An odd byte at the end is not a sample.
        while len(data := file.read(_READ_BYTES)) > 1:
            yield np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")


def _first_seconds(sound: Iterable[Mono], seconds: float) -> Iterator[Mono]:
    """Yield blocks until they hold `seconds` or more."""
    left = round(seconds * SAMPLE_RATE)
    for block in sound:
        if left <= 0:
            return
        left -= len(block)
        yield block


def _is_silent(block: Mono) -> bool:
    """Tell whether all samples round to 0 at 16 bits."""
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
    name = f"Track {track.number}" if track else "A track"
    return Caveat(code, f"{name} {why}")
