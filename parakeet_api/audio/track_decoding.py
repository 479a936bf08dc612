"""One sound track of one file, or of a stretch of it: ffmpeg's output laid out in time.

What the track is becomes known only while it is decoded: then ffmpeg is started again with better
options, and what was given out already is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from parakeet_api.audio.downmix import Downmix, Mono
from parakeet_api.audio.ffmpeg import (
    CLOCK,
    DEMUXERS,
    DecoderBrokenError,
    Executables,
    FfmpegRun,
    Input,
    Said,
    supported,
)
from parakeet_api.audio.levels import is_quiet
from parakeet_api.audio.media_files import (
    flac_ends_with_a_frame,
    flv_ends_with_a_tag,
    unreadable_kind,
)
from parakeet_api.audio.media_info import MediaInfo, Track
from parakeet_api.audio.pieces import Piece, SideBySide, UnevenError
from parakeet_api.audio.timeline import MARK, Frames, Hole, Timeline
from parakeet_api.errors import (
    AudioDecodeError,
    NoAudioTrackError,
    TruncatedAudioError,
)
from parakeet_api.transcript import SAMPLE_RATE, Caveat

logger = logging.getLogger(__name__)

_MIN_LOSS = SAMPLE_RATE // 4
"""A few packets that the decoder refuses, as where two mp3 files were joined, hold no word."""

_TRUNCATION_TOLERANCE_S = 1.0
"""Encoder delay and padding make an honest file up to some 0.1 s shorter than it declares."""

_DECLARED_LENGTH_IS_EXACT = frozenset(
    {"aiff", "ape", "au", "dsf", "flac", "flv", "mp3", "mpc", "mpc8", "tak", "tta", "wv"}
)
"""ffmpeg's demuxers whose duration is the sound's own and comes from a frame or sample count, or
can be checked (flac, flv). Not wav: recorders that write to a pipe leave a made-up size in its
header."""

_ENDS_WHOLE = {"flac": flac_ends_with_a_frame, "flv": flv_ends_with_a_tag}
"""Checks of a file's own end, which count more than the length that its header declares: a stream
copy leaves that of the whole there, and a writer may note another recording's."""
_LAST_PACKET_IS_WHOLE = frozenset(
    {"caf", "flv", "gxf", "mov", "mxf", "nistsphere", "rm", "sox", "tta", "voc", "w64"}
)
"""Containers that say how long each packet or the whole sound is: a packet that is not whole tells
that the file's end is missing. In streams that can end anywhere, it says nothing."""

_OPENING_SAMPLES = 30 * SAMPLE_RATE

_WRITTEN = re.compile(r"Output #0.*?Audio: pcm_\w+, 16000 Hz, .+?, (\d+) kb/s", re.DOTALL)
"""How much ffmpeg writes, which tells the number of channels: their layout may have any name."""

Mix = Literal["pair", "surround", "loose"]

_LAYOUTS: dict[Mix, str] = {
    "pair": ":channel_layouts=mono|stereo",
    "surround": ":channel_layouts=mono",
    "loose": "",
}
"""What ffmpeg gives of a track's channels: one or two as they are, more that have places in a room
mixed as the standards say, and those without places each on its own."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What ffmpeg is told."""

    track: int
    mix: Mix = "pair"
    fine: bool = False
    """Whether samples are passed on as floats, and not as 16 bits."""
    marked: bool = False
    """Whether the first sample of each filter graph is a mark: it costs a fifth of the decoding."""
    pieces: tuple[Piece, ...] = ()
    """What is decoded side by side; none = one ffmpeg decodes all."""

    def options(self, piece: Piece) -> list[str]:
        source = piece.source
        samples = "f32le" if self.fine else "s16le"
        demuxers, format_options = DEMUXERS, list(piece.options)
        if piece.demuxer is not None:
            demuxers, format_options = piece.demuxer, ["-f", piece.demuxer, *piece.options]
        # fmt: off
        return [
            "-loglevel", "repeat+info", "-copyts",
            "-protocol_whitelist", source.protocols, "-format_whitelist", demuxers,
            "-guess_layout_max", "2", "-threads", "1", *format_options, "-i", source.url,
            "-map", f"0:a:{self.track - 1}", "-vn", "-sn", "-dn",
            "-af", piece.filters() + self._filters(),
            # A mix is never louder than full scale, as if it were made of 16-bit samples.
            "-rematrix_maxval", "1",
            # A wake-up of the reader for each frame would cost more than decoding it.
            "-flush_packets", "0", "-c:a", f"pcm_{samples}", "-f", samples, "pipe:1",
        ]
        # fmt: on

    def _filters(self) -> str:
        # ffmpeg 5 cannot choose between two layouts where there is a mark.
        layouts = (
            ":channel_layouts=stereo" if self.marked and self.mix == "pair" else _LAYOUTS[self.mix]
        )
        if not self.fine:
            return f"{CLOCK},aformat=sample_fmts=s16:sample_rates={SAMPLE_RATE}{layouts}"
        # 16-bit sound is converted as such, whatever it is passed on as.
        formats = f"aformat=sample_fmts=s16|flt:sample_rates={SAMPLE_RATE}{layouts}"
        sound = f"{CLOCK},{formats},aresample,aformat=sample_fmts=flt"
        if not self.marked:
            return sound
        mark = f"atrim=end_sample=1,aeval={MARK:.0f}:c=same"
        return (
            f"{sound},asplit[first][sound];[first]{mark}[mark];[mark][sound]concat=v=0:a=1"
            ",asetpts=NAN"
        )


class _OtherPlanError(Exception):
    """Only while a track is decoded is seen that ffmpeg should be told otherwise."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__(str(plan))
        self.plan = plan


class NothingDecodedError(Exception):
    """A track gave no sound at all, but another one may."""

    def __init__(self, message: str, *, is_empty: bool = False) -> None:
        super().__init__(message)
        self.is_empty = is_empty
        """Whether it is a whole track that has none."""

    @property
    def told(self) -> AudioDecodeError:
        """What the client is told, if there is no other track."""
        return AudioDecodeError(str(self))


class Recording(Protocol):
    """What a track's decoding needs of the recording that it is part of."""

    @property
    def decoder(self) -> Decoder:
        """Runs ffmpeg."""
        ...

    @property
    def track(self) -> Track | None:
        """The track that is decoded, once it is known."""
        ...

    def found(self, info: MediaInfo, number: int | None) -> Track:
        """Record what a file is; give the track that is decoded."""

    def needs_floats(self, track: Track) -> bool:
        """Tell whether 16 bits would lose something of a track."""

    def note(self, caveats: Iterable[Caveat], offset: int) -> None:
        """Record caveats whose times count from sample `offset`."""

    def end_early(self, how: str, decoded_s: float) -> None:
        """Record that the file is cut short. Raises `TruncatedAudioError` unless allowed."""


class Decoder(Protocol):
    """What a track's decoding needs of the decoder."""

    @property
    def workers(self) -> int:
        """How many ffmpegs may decode one file side by side."""

    @property
    def executables(self) -> Executables:
        """The ffmpegs of this machine."""

    def pieces(self, source: Input) -> contextlib.AbstractContextManager[tuple[Piece, ...]]:
        """Give the pieces that may be decoded side by side."""

    def running(
        self, options: Sequence[str], *, url: str, fed: Callable[[], Iterator[bytes]] | None
    ) -> contextlib.AbstractContextManager[FfmpegRun]:
        """Run an ffmpeg."""


class TrackDecoding:
    """One track of one stretch of a file while it is decoded."""

    def __init__(self, whole: Recording, source: Input, number: int | None, *, offset: int) -> None:
        self._whole = whole
        self._source = source
        self._number = number
        self._offset = offset
        """Samples of the recording before it."""

    def sound(self) -> Generator[Mono]:
        """Decode to the end, or raise."""
        with self._whole.decoder.pieces(self._source) as pieces:
            yield from self._sound(_Plan(self._number or 1, pieces=pieces))

    def _sound(self, plan: _Plan) -> Generator[Mono]:
        given = 0
        while True:
            try:
                for block in _beyond(given, self._run(plan)):
                    given += len(block)
                    yield block
            except _OtherPlanError as other:
                # A file that changes its format is not plain.
                pieces = () if other.plan.marked else other.plan.pieces
                plan = dataclasses.replace(other.plan, pieces=pieces)
            else:
                return

    def _run(self, plan: _Plan) -> Generator[Mono]:
        """Decode by a plan. Raises `_OtherPlanError` where another one is better."""
        with self._start(plan, plan.pieces[0] if plan.pieces else Piece(self._source)) as run:
            blocks = run.blocks()
            first = next(blocks, b"")
            # What it found is described before the first block: now it is known what to ask.
            better = self._plan(run.info, plan)
            if better != plan:
                raise _OtherPlanError(better)
            output = self._joined(run, itertools.chain([first], blocks), plan)
            try:
                with contextlib.closing(output):
                    yield from self._laid_out(run, output, plan)
            except UnevenError as error:
                logger.info("decoded by one ffmpeg: %s", error)
                raise _OtherPlanError(dataclasses.replace(plan, pieces=())) from error
            except DecoderBrokenError as error:
                self._whole.decoder.executables.note_broken(run.executable, str(error))
                raise _OtherPlanError(plan) from error

    def _start(self, plan: _Plan, piece: Piece) -> contextlib.AbstractContextManager[FfmpegRun]:
        source = piece.source
        return self._whole.decoder.running(
            plan.options(piece), url=source.url, fed=source.chunks if source.is_sent else None
        )

    def _joined(self, run: FfmpegRun, output: Iterable[bytes], plan: _Plan) -> Generator[bytes]:
        """Give what a run writes, and then what those beside it write."""
        if not plan.pieces:
            yield from output
            return
        workers = self._whole.decoder.workers
        together = SideBySide(
            plan.pieces,
            functools.partial(self._start, plan),
            workers=workers,
            sample_bytes=4 if plan.fine else 2,
        )
        yield from together.blocks(run, output)

    def _plan(self, info: MediaInfo | None, plan: _Plan) -> _Plan:
        """Choose the track and how it is passed on."""
        if info is None or not info.tracks:
            return plan
        track = self._whole.found(info, self._number)
        mix: Mix = "surround" if track.is_surround else "loose" if track.is_loose else "pair"
        fine = plan.fine or self._whole.needs_floats(track)
        return dataclasses.replace(plan, track=track.number, mix=mix, fine=fine)

    def _laid_out(self, run: FfmpegRun, blocks: Iterable[bytes], plan: _Plan) -> Generator[Mono]:
        """Give the sound of a run, at its time."""
        timeline = Timeline(run.info, run.said.readings, marked=plan.marked)
        downmix = Downmix()
        notes: list[Caveat] = []
        sound = downmix.mix(self._pieces(run, blocks, timeline, plan, notes))
        if not plan.fine and self._whole.track is not None and self._whole.track.is_fine:
            sound = _unless_quiet(sound, dataclasses.replace(plan, fine=True))
        yield from sound
        self._whole.note([*notes, *downmix.caveats()], self._offset)
        self._check_end(run, timeline)

    def _pieces(
        self,
        run: FfmpegRun,
        blocks: Iterable[bytes],
        timeline: Timeline,
        plan: _Plan,
        notes: list[Caveat],
    ) -> Iterator[Frames | Hole]:
        undecodable = 0
        for frames, at_end in _with_end(_frames(run, blocks, fine=plan.fine)):
            if run.said.graphs > 1 and not plan.marked and plan.mix != "loose":
                # The track has changed its format somewhere in here.
                raise _OtherPlanError(dataclasses.replace(plan, fine=True, marked=True))
            for piece in timeline.lay_out(frames, at_end=at_end):
                if isinstance(piece, Hole) and run.said.undecodable > undecodable:
                    undecodable = run.said.undecodable
                    if piece.samples >= _MIN_LOSS:
                        notes.append(_lost(timeline.position, piece))
                yield piece

    def _check_end(self, run: FfmpegRun, timeline: Timeline) -> None:
        """Raise what the client should know once ffmpeg is done."""
        status = run.check_end()
        decoded_s = timeline.position / SAMPLE_RATE
        if timeline.position == 0:
            logger.info("ffmpeg exited %s: %s", status, run.said.last_line)
            raise self._why_nothing(run)
        if run.said.cut_short or (run.said.ends_corrupt and self._is_corrupt_short(run.info)):
            self._whole.end_early(f"it ends after {decoded_s:.1f} s of sound", decoded_s)
        declared_s = self._declared_s(run.info)
        if declared_s is not None and declared_s - decoded_s > max(
            _TRUNCATION_TOLERANCE_S, 0.01 * declared_s
        ):
            self._whole.end_early(
                f"it declares {declared_s:.1f} s of sound and ends after {decoded_s:.1f} s",
                decoded_s,
            )

    def _is_corrupt_short(self, info: MediaInfo | None) -> bool:
        return info is not None and info.container in _LAST_PACKET_IS_WHOLE

    def _declared_s(self, info: MediaInfo | None) -> float | None:
        """Give the length that the track declares, where that is exact."""
        if (
            info is None
            or info.duration_s is None
            or info.container not in _DECLARED_LENGTH_IS_EXACT
            or info.duration_is_estimated
            or info.has_pictures
        ):
            return None
        ends_whole = _ENDS_WHOLE.get(info.container)
        if ends_whole is not None and ends_whole(self._source.path):
            return None
        return info.duration_s - (info.start_s or 0.0 if info.container == "flac" else 0.0)

    def _why_nothing(self, run: FfmpegRun) -> Exception:
        """Tell why there is no sound, as far as ffmpeg tells."""
        info, track = run.info, self._whole.track
        if run.said.lacks_index or (run.said.cut_short and track is not None):
            missing = "its index, which stands at its end," if info is None else "all of its sound"
            return TruncatedAudioError(
                f"The file is cut short: {missing} is missing. Send it again."
            )
        if info is not None and info.has_other_streams:
            return NoAudioTrackError("The file has no sound track.")
        if info is None or track is None:
            kind = unreadable_kind(self._source.path)
            told = f"is {kind}, which cannot" if kind else "holds no sound that can"
            return NothingDecodedError(f"The file {told} be decoded. {supported()}")
        return _nothing_of(track, run.said)


def _nothing_of(track: Track, said: Said) -> NothingDecodedError:
    """Tell why a track gave no sound."""
    if said.unmixable_channels is not None:
        return NothingDecodedError(
            f"The sound has {said.unmixable_channels} channels ({track.layout}), which cannot be"
            " mixed. Convert the file first, for example to a mono flac."
        )
    if said.lacks_decoder:
        return NothingDecodedError(
            f"The sound is of a kind that cannot be decoded: {track.codec}. {supported()}"
        )
    if said.undecodable or not track.sample_format:
        return NothingDecodedError(
            f"The sound, {track.codec} by the file's header, cannot be decoded: it is damaged,"
            " encrypted or cut short."
        )
    return NothingDecodedError(
        f"The file holds no sound that can be decoded. {supported()}", is_empty=True
    )


def _frames(run: FfmpegRun, blocks: Iterable[bytes], *, fine: bool) -> Iterator[Frames]:
    """Give what ffmpeg writes as samples, shape `(samples, channels)`."""
    kind = np.dtype("<f4" if fine else "<i2")
    frame_bytes, rest = 0, b""
    for data in blocks:
        if not frame_bytes and data:
            written = _WRITTEN.search(run.said.text())
            channels = int(written[1]) * 1000 // (SAMPLE_RATE * 8 * kind.itemsize) if written else 1
            frame_bytes = max(1, channels) * kind.itemsize
        joined = rest + data if rest else data
        whole = len(joined) - len(joined) % (frame_bytes or 1)
        rest = joined[whole:]
        if whole:
            frames = np.frombuffer(joined[:whole], kind)
            yield frames.reshape(-1, frame_bytes // kind.itemsize)


def _with_end(blocks: Iterator[Frames]) -> Iterator[tuple[Frames, bool]]:
    """Tell of each block whether it is the last; none but the last is shorter than 0.1 s."""
    held: Frames | None = None
    for block in blocks:
        if held is not None and len(held) >= SAMPLE_RATE // 10 <= len(block):
            yield held, False
            held = block
        else:
            held = block if held is None else np.concatenate([held, block])
    if held is not None:
        yield held, True


def _beyond(samples: int, sound: Generator[Mono]) -> Iterator[Mono]:
    """Leave out what was given already."""
    with contextlib.closing(sound):
        for block in sound:
            if samples < len(block):
                yield block[samples:]
            samples = max(0, samples - len(block))


def _unless_quiet(sound: Iterator[Mono], plan: _Plan) -> Iterator[Mono]:
    """Give sound that 16 bits are enough for; for quieter sound, raise `_OtherPlanError`."""
    opening, length = [], 0
    for block in sound:
        opening.append(block)
        length += len(block)
        if not is_quiet(block) or length >= _OPENING_SAMPLES:
            break
    if any(block.any() for block in opening) and all(map(is_quiet, opening)):
        raise _OtherPlanError(plan)
    yield from opening
    yield from sound


def _lost(end: int, hole: Hole) -> Caveat:
    """Tell of a hole that the decoder left."""
    start_s, end_s = (end - hole.samples) / SAMPLE_RATE, end / SAMPLE_RATE
    return Caveat("undecodable", f"{end_s - start_s:.1f} s could not be decoded.", start_s, end_s)
