"""Decode any recording or video to 16 kHz mono PCM, as a stream.

    file -> parts -> ffmpeg -> frames of all channels -> timeline -> downmix -> level -> PCM

Where a request separates the channels, there is no downmix, and blocks have a column for each.

No audio is dropped, and samples stay at their time in the recording. Where ffmpeg would drop audio
or mix it wrongly, this package measures the signal and decides. Audio that cannot be decoded raises
an error or adds a `Caveat`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from parakeet_api.audio.decode_report import DecodeReport
from parakeet_api.audio.ffmpeg import (
    Executables,
    FfmpegRun,
    Input,
    check_filter,
    find_ffmpeg,
    running_ffmpeg,
)
from parakeet_api.audio.media_info import TrackChoice
from parakeet_api.audio.pieces import Piece, plan_pieces
from parakeet_api.audio.recording_decoding import RecordingDecoding
from parakeet_api.errors import AudioTooLongError, ServiceUnavailableError
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE, Caveat, ChannelChoice, Pcm, SoundTrack

FILE_EXTENSIONS = (  # noqa: SIM905 - 60 strings in quotes would be 60 lines
    "3g2 3gp 8svx aac ac3 aif aiff amr ape asf au avi caf dsf dts dv eac3 f4v flac flv gxf m2ts m4a"
    " m4b m4v mj2 mka mkv mov mp2 mp3 mp4 mpc mpeg mpg mpga mts mxf nut oga ogg ogv opus qcp ra rm"
    " rmvb sf snd sox sph spx tak thd ts tta vob voc w64 wav webm wma wmv wtv wv"
).split()
"""Usual file extensions, for file dialogs. The decoder itself looks at the content."""


class AudioStream(Iterator[Pcm]):
    """Iterate over a recording's PCM blocks as they are decoded; closing it stops the decoder."""

    def __init__(self, blocks: Generator[Pcm], report: DecodeReport) -> None:
        self._blocks = blocks
        self._report = report
        self.spent_s = 0.0
        """Seconds spent waiting for blocks."""

    def __next__(self) -> Pcm:
        """Return the next block, as `FfmpegDecoder.stream` says. Raises `AudioDecodeError`."""
        started = time.monotonic()
        try:
            return next(self._blocks)
        finally:
            self.spent_s += time.monotonic() - started

    @property
    def expected_s(self) -> float | None:
        """Duration in seconds by the header, if known; often an estimate."""
        return self._report.expected_s

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """Warnings about the audio; complete at its end."""
        return tuple(self._report.caveats)

    @property
    def tracks(self) -> tuple[SoundTrack, ...]:
        """The audio tracks; empty until a track has been selected."""
        return tuple(self._report.tracks)

    def close(self) -> None:
        """Stop decoding."""
        self._blocks.close()


@dataclass(frozen=True, slots=True)
class FfmpegDecoder:
    """Turn files into PCM blocks."""

    executable: str
    """The ffmpeg to run; if it cannot be started, another one is looked for."""
    max_seconds: float
    """Longest recording accepted; a longer one raises `AudioTooLongError`."""
    audio_filter: str | None = None
    """An ffmpeg filter chain to run before recognition."""
    workers: int = 1
    """How many ffmpeg processes may decode one long mp3 or wav file in parallel."""
    executables: Executables = field(init=False, compare=False, repr=False)
    _parallel_lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, compare=False, repr=False
    )
    """Held while a recording is decoded in pieces: only one may use that much memory and CPU."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "executables", Executables(self.executable))

    @classmethod
    def from_settings(
        cls, settings: Settings, *, executable: str | None = None, workers: int = 1
    ) -> Self:
        """Build a decoder from the settings; without an `executable`, find ffmpeg and check it.

        Raises `SettingsError` if there is no ffmpeg, or if it rejects `DENOISE_FILTER`.
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
        """Whether an ffmpeg can be started."""
        return next(self.executables.usable(), None) is not None

    def stream(
        self,
        path: Path,
        *,
        raw_pcm: bool = False,
        track: TrackChoice = None,
        allow_partial: bool = False,
        channels: ChannelChoice = "mix",
    ) -> AudioStream:
        """Decode a recording to int16 blocks, shape `(samples,)`, at 16 kHz, mono.

        With `channels="separate"`, the shape is `(samples, channels)`; with `auto` it is, if the
        channels hold different speech.

        Samples follow the track's timestamps: a late start and gaps become silence, so that
        subtitles match the video. A `raw_pcm` file already holds such samples, little-endian,
        without a header. With `allow_partial`, a truncated file is decoded as far as it goes, with
        a caveat.

        The stream raises `AudioDecodeError` or a subclass, `InvalidRequestError` for a track
        that does not exist, and `ServiceUnavailableError` if ffmpeg was stopped by anything other
        than the file.
        """
        report = DecodeReport(allow_partial=allow_partial)
        decoding = RecordingDecoding(self, path, report, track=track, channels=channels)
        blocks = decoding.blocks(raw_pcm=raw_pcm)
        if channels == "separate":
            blocks = _in_columns(blocks)
        return AudioStream(self._bounded(blocks), report)

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
        """Plan the pieces to decode in parallel; none where one ffmpeg should decode the file."""
        is_file = not (source.head or source.ranges)
        if self.workers < 2 or not is_file or not self._parallel_lock.acquire(blocking=False):  # noqa: PLR2004
            yield ()
            return
        try:
            yield plan_pieces(source.path, workers=self.workers)
        finally:
            self._parallel_lock.release()

    def _cpu_s(self) -> int:
        """Return the limit of ffmpeg's CPU time: the slowest codecs take a tenth of it."""
        return 60 + math.ceil(self.max_seconds / 4)

    @contextlib.contextmanager
    def running(
        self, options: Sequence[str], *, url: str, stdin_data: Callable[[], Iterator[bytes]] | None
    ) -> Iterator[FfmpegRun]:
        """Run the first ffmpeg that starts; `stdin_data` returns what is piped to it.

        Raises `ServiceUnavailableError` if none starts.
        """
        for executable in self.executables.usable():
            with contextlib.ExitStack() as stack:
                try:
                    run = stack.enter_context(
                        running_ffmpeg(
                            executable,
                            options,
                            url=url,
                            stdin_data=stdin_data() if stdin_data else None,
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


def _in_columns(blocks: Generator[Pcm]) -> Generator[Pcm]:
    """Give blocks of a recording that has one channel the shape `(samples, 1)`."""
    with contextlib.closing(blocks):
        for block in blocks:
            yield block[:, np.newaxis] if block.ndim == 1 else block
