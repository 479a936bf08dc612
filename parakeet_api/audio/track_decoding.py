"""Decode one audio track of a file or of a part of it; place ffmpeg's output in time.

The track's properties become known only while ffmpeg decodes it. If they require other options,
ffmpeg is started again, and samples that were already yielded are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from parakeet_api.audio.channels import Channels
from parakeet_api.audio.decode_report import DecodeReport
from parakeet_api.audio.decoding_plan import Mix, Plan
from parakeet_api.audio.downmix import Downmix, Mono
from parakeet_api.audio.ffmpeg import (
    DecoderBrokenError,
    Executables,
    FfmpegRun,
    Input,
    supported,
)
from parakeet_api.audio.ffmpeg_log import FfmpegLog
from parakeet_api.audio.file_endings import (
    flac_ends_with_a_frame,
    flv_ends_with_a_tag,
    gxf_ends_with_its_last_packet,
)
from parakeet_api.audio.levels import is_quiet
from parakeet_api.audio.media_files import unreadable_kind
from parakeet_api.audio.media_info import MediaInfo, Track
from parakeet_api.audio.pieces import ParallelDecoding, Piece, PiecesDifferError
from parakeet_api.audio.timeline import Frames, Gap, Timeline
from parakeet_api.errors import (
    AudioDecodeError,
    NoAudioTrackError,
    TruncatedAudioError,
)
from parakeet_api.transcript import SAMPLE_RATE, Caveat

logger = logging.getLogger(__name__)

_MIN_LOSS = SAMPLE_RATE // 4
"""A shorter loss, such as a few packets where two mp3 files were concatenated, holds no word."""

_TRUNCATION_TOLERANCE_S = 1.0
"""Encoder delay and padding make a complete file up to about 0.1 s shorter than it declares."""

_DECLARED_LENGTH_IS_EXACT = frozenset(
    {"aiff", "ape", "au", "dsf", "flac", "flv", "mp3", "mpc", "mpc8", "tak", "tta", "wv"}
)
"""ffmpeg's demuxers whose duration is the audio's and comes from a frame or sample count, or can
be checked (flac, flv). Not wav: recorders that write to a pipe declare an arbitrary size."""

_COMPLETENESS_CHECKS = {"flac": flac_ends_with_a_frame, "flv": flv_ends_with_a_tag}
"""Checks of a file's end, which take precedence over the declared length: a stream copy keeps the
length of its source, and some writers store that of another recording."""
_PACKET_LENGTH_IS_DECLARED = frozenset(
    {"caf", "flv", "gxf", "mov", "mxf", "nistsphere", "rm", "sox", "tta", "voc", "w64"}
)
"""Containers that declare the length of each packet or of the audio: an incomplete packet means
that the file is truncated. In formats that can end anywhere it does not."""

_OPENING_SAMPLES = 30 * SAMPLE_RATE
"""Audio from which is decided whether 16 bits suffice."""
_MIN_LAST_SAMPLES = SAMPLE_RATE // 10
"""Shortest last block: it holds all that resamplers held back until their end."""

_OUTPUT_BITRATE = re.compile(
    r"^Output #0.*?Audio: pcm_\w+, 16000 Hz, .+?, (\d+) kb/s", re.DOTALL | re.MULTILINE
)
"""ffmpeg's output bit rate, which gives the number of channels: a layout may have any name."""


class _OtherPlanError(Exception):
    """Decoding has shown that ffmpeg must be started again by another plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(str(plan))
        self.plan = plan


class NothingDecodedError(Exception):
    """A track has no audio that can be decoded; another track may."""

    def __init__(self, message: str, *, is_empty: bool = False) -> None:
        super().__init__(message)
        self.is_empty = is_empty
        """Whether the track was decoded without error and holds no audio."""

    @property
    def decode_error(self) -> AudioDecodeError:
        """The error for the client if no other track can be used."""
        return AudioDecodeError(str(self))


class Recording(Protocol):
    """The recording that a track belongs to, as `TrackDecoding` uses it."""

    @property
    def decoder(self) -> Decoder:
        """The decoder, which runs ffmpeg."""
        ...

    @property
    def report(self) -> DecodeReport:
        """Where warnings about the recording are collected."""
        ...

    @property
    def track(self) -> Track | None:
        """The track being decoded, once it is known."""
        ...

    @property
    def channels(self) -> Channels:
        """Whether its channels are mixed or kept apart."""
        ...

    def select_track(self, info: MediaInfo, number: int | None) -> Track:
        """Record the file's description; return the track to decode."""

    def needs_floats(self, track: Track) -> bool:
        """Tell whether 16-bit samples would lose information of a track."""


class Decoder(Protocol):
    """The decoder, as `TrackDecoding` uses it."""

    @property
    def workers(self) -> int:
        """How many ffmpeg processes may decode one file in parallel."""

    @property
    def executables(self) -> Executables:
        """The ffmpeg executables of this machine."""

    def pieces(self, source: Input) -> contextlib.AbstractContextManager[tuple[Piece, ...]]:
        """Plan the pieces to decode in parallel."""

    def running(
        self, options: Sequence[str], *, url: str, stdin_data: Callable[[], Iterator[bytes]] | None
    ) -> contextlib.AbstractContextManager[FfmpegRun]:
        """Run ffmpeg."""


class TrackDecoding:
    """Decode one track of one part of a file."""

    def __init__(
        self, recording: Recording, source: Input, number: int | None, *, offset: int
    ) -> None:
        self._recording = recording
        self._source = source
        self._number = number
        self._offset = offset
        """Samples of the recording before this part."""

    def sound(self) -> Generator[Mono]:
        """Decode to the end, or raise."""
        with self._recording.decoder.pieces(self._source) as pieces:
            yield from self._sound(Plan(self._number or 1, pieces=pieces))

    def _sound(self, plan: Plan) -> Generator[Mono]:
        yielded = 0
        while True:
            try:
                for block in _skip_samples(yielded, self._run(plan)):
                    yielded += len(block)
                    yield block
            except _OtherPlanError as other:
                # Only plain files are cut into pieces; one that changes its format is not plain.
                pieces = () if other.plan.marked else other.plan.pieces
                plan = dataclasses.replace(other.plan, pieces=pieces)
            else:
                return

    def _run(self, plan: Plan) -> Generator[Mono]:
        """Decode by a plan. Raises `_OtherPlanError` if another plan is needed."""
        with self._start(plan, plan.pieces[0] if plan.pieces else Piece(self._source)) as run:
            blocks = run.blocks()
            first = next(blocks, b"")
            # ffmpeg describes its input before the first block: now the plan can be made.
            needed = self._plan(run.info, plan)
            if needed != plan:
                raise _OtherPlanError(needed)
            output = self._joined(run, itertools.chain([first], blocks), plan)
            try:
                with contextlib.closing(output):
                    yield from self._placed(run, output, plan)
            except PiecesDifferError as error:
                logger.info("decoded by one ffmpeg: %s", error)
                raise _OtherPlanError(dataclasses.replace(plan, pieces=())) from error
            except DecoderBrokenError as error:
                self._recording.decoder.executables.note_broken(run.executable, str(error))
                raise _OtherPlanError(plan) from error

    def _start(self, plan: Plan, piece: Piece) -> contextlib.AbstractContextManager[FfmpegRun]:
        source = piece.source
        return self._recording.decoder.running(
            plan.options(piece),
            url=source.url,
            stdin_data=source.chunks if source.is_sent else None,
        )

    def _joined(self, run: FfmpegRun, output: Iterable[bytes], plan: Plan) -> Generator[bytes]:
        """Yield the output of a run, then that of the other pieces."""
        if not plan.pieces:
            yield from output
            return
        workers = self._recording.decoder.workers
        parallel = ParallelDecoding(
            plan.pieces,
            functools.partial(self._start, plan),
            workers=workers,
            sample_bytes=4 if plan.as_float else 2,
        )
        yield from parallel.blocks(run, output)

    def _plan(self, info: MediaInfo | None, plan: Plan) -> Plan:
        """Choose the track, its mix and its sample format."""
        if info is None or not info.tracks:
            return plan
        track = self._recording.select_track(info, self._number)
        is_mixed = track.is_surround and not self._recording.channels.keeps_all
        is_discrete = track.is_surround or track.is_discrete
        mix: Mix = "surround" if is_mixed else "discrete" if is_discrete else "stereo"
        as_float = plan.as_float or self._recording.needs_floats(track)
        return dataclasses.replace(plan, track=track.number, mix=mix, as_float=as_float)

    def _placed(self, run: FfmpegRun, blocks: Iterable[bytes], plan: Plan) -> Generator[Mono]:
        """Place a run's samples in time, and mix them to mono unless channels are kept apart."""
        timeline = Timeline(run.info, run.log.readings, marked=plan.marked)
        downmix = Downmix()
        caveats: list[Caveat] = []
        placed = self._frames_and_gaps(run, blocks, timeline, plan, caveats)
        sound = self._recording.channels.blocks(*_mixed_first(placed, downmix, plan))
        if (
            not plan.as_float
            and self._recording.track is not None
            and self._recording.track.exceeds_16_bits
        ):
            sound = _unless_quiet(sound, dataclasses.replace(plan, as_float=True))
        yield from sound
        self._recording.report.add_caveats([*caveats, *downmix.caveats()], self._offset)
        self._check_end(run, timeline)

    def _frames_and_gaps(
        self,
        run: FfmpegRun,
        blocks: Iterable[bytes],
        timeline: Timeline,
        plan: Plan,
        caveats: list[Caveat],
    ) -> Iterator[Frames | Gap]:
        for frames, at_end in _with_end(_frames(run, blocks, as_float=plan.as_float)):
            if run.log.graphs > 1 and not plan.marked and plan.mix != "discrete":
                # The track's format changes somewhere in this block.
                raise _OtherPlanError(dataclasses.replace(plan, as_float=True, marked=True))
            for part in timeline.place(frames, at_end=at_end):
                # Messages are there before the sound that follows them, on a busy machine long
                # before, so which one belongs to which gap is not known.
                if isinstance(part, Gap) and part.samples >= _MIN_LOSS and run.log.undecodable:
                    caveats.append(_loss_caveat(timeline.position, part))
                yield part

    def _check_end(self, run: FfmpegRun, timeline: Timeline) -> None:
        """Wait for ffmpeg; raise the error, if any, that the client should get."""
        status = run.check_end()
        decoded_s = timeline.position / SAMPLE_RATE
        if timeline.position == 0:
            logger.info("ffmpeg exited %s: %s", status, run.log.last_line)
            raise self._no_output_error(run)
        declared_s = self._declared_s(run.info)
        # Tags may follow the last sample, at which ffmpeg reports an error in some formats.
        is_complete = declared_s is not None and declared_s - decoded_s < _MIN_LOSS / SAMPLE_RATE
        if self._is_cut_short(run) and not is_complete:
            self._recording.report.add_truncation(
                f"it ends after {decoded_s:.1f} s of sound", decoded_s
            )
        if declared_s is not None and _is_short(decoded_s, declared_s):
            self._recording.report.add_truncation(
                f"it declares {declared_s:.1f} s of sound and ends after {decoded_s:.1f} s",
                decoded_s,
            )

        self._report_damaged_end(run, timeline)

    def _report_damaged_end(self, run: FfmpegRun, timeline: Timeline) -> None:
        """Report damage behind which nothing could be decoded: no timestamp leaves a gap there."""
        info = run.info
        if not run.log.undecodable or info is None or info.duration_s is None:
            return
        # The duration is that of the longest track, and may be a guess.
        is_of_track = not info.has_video and len(info.tracks) == 1
        decoded_s = timeline.position / SAMPLE_RATE
        if is_of_track and not info.duration_is_estimated and _is_short(decoded_s, info.duration_s):
            lost = Gap(round((info.duration_s - decoded_s) * SAMPLE_RATE))
            caveat = _loss_caveat(timeline.position + lost.samples, lost)
            self._recording.report.add_caveats([caveat], self._offset)

    def _is_cut_short(self, run: FfmpegRun) -> bool:
        container = run.info.container if run.info else ""
        if container == "gxf" and gxf_ends_with_its_last_packet(self._source.path):
            return False
        return run.log.cut_short or (
            run.log.ends_corrupt and container in _PACKET_LENGTH_IS_DECLARED
        )

    def _declared_s(self, info: MediaInfo | None) -> float | None:
        """Return the duration that the track declares, if it is reliable."""
        if (
            info is None
            or info.duration_s is None
            or info.container not in _DECLARED_LENGTH_IS_EXACT
            or info.duration_is_estimated
        ):
            return None
        is_complete = _COMPLETENESS_CHECKS.get(info.container)
        if info.has_video and is_complete is None:
            return None
        if is_complete is not None and is_complete(self._source.path, self._source.end):
            return None
        return info.duration_s - (info.start_s or 0.0 if info.container == "flac" else 0.0)

    def _no_output_error(self, run: FfmpegRun) -> Exception:
        """Return the error for a run without output, by what ffmpeg reported."""
        info, track = run.info, self._recording.track
        if run.log.lacks_index or (run.log.cut_short and track is not None):
            missing = "its index, which stands at its end," if info is None else "all of its sound"
            return TruncatedAudioError(
                f"The file is cut short: {missing} is missing. Send it again."
            )
        if info is not None and info.has_other_streams:
            return NoAudioTrackError("The file has no sound track.")
        if info is None or track is None:
            kind = unreadable_kind(self._source.path)
            reason = f"is {kind}, which cannot" if kind else "holds no sound that can"
            return NothingDecodedError(f"The file {reason} be decoded. {supported()}")
        return _no_track_output_error(track, run.log)


def _no_track_output_error(track: Track, log: FfmpegLog) -> NothingDecodedError:
    """Return the error for a track without output."""
    if log.unmixable_channels is not None:
        return NothingDecodedError(
            f"The sound has {log.unmixable_channels} channels ({track.layout}), which cannot be"
            " mixed. Convert the file first, for example to a mono flac."
        )
    if log.lacks_decoder:
        return NothingDecodedError(
            f"The sound is of a kind that cannot be decoded: {track.codec}. {supported()}"
        )
    if log.undecodable or not track.sample_format:
        return NothingDecodedError(
            f"The sound, {track.codec} by the file's header, cannot be decoded: it is damaged,"
            " encrypted or cut short."
        )
    return NothingDecodedError(
        f"The file holds no sound that can be decoded. {supported()}", is_empty=True
    )


def _is_short(decoded_s: float, declared_s: float) -> bool:
    """Tell whether more is missing of a duration than encoder delay and padding."""
    return declared_s - decoded_s > max(_TRUNCATION_TOLERANCE_S, 0.01 * declared_s)


def _mixed_first(
    pieces: Iterator[Frames | Gap], downmix: Downmix, plan: Plan
) -> tuple[Iterator[Frames | Gap], Downmix]:
    """Mix the downmix of a surround layout to mono: its channels are none of the recording's."""
    if plan.mix != "surround":
        return pieces, downmix
    return (block[:, np.newaxis] for block in downmix.mix(pieces)), Downmix()


def _frames(run: FfmpegRun, blocks: Iterable[bytes], *, as_float: bool) -> Iterator[Frames]:
    """Convert ffmpeg's output to samples, shape `(samples, channels)`.

    Raises `AudioDecodeError` if the number of channels is not in the log.
    """
    kind = np.dtype("<f4" if as_float else "<i2")
    frame_bytes, rest = 0, b""
    for data in blocks:
        if not frame_bytes and data:
            frame_bytes = _output_channels(run.log, kind.itemsize) * kind.itemsize
        joined = rest + data if rest else data
        whole_bytes = len(joined) - len(joined) % (frame_bytes or 1)
        rest = joined[whole_bytes:]
        if whole_bytes:
            frames = np.frombuffer(joined[:whole_bytes], kind)
            yield frames.reshape(-1, frame_bytes // kind.itemsize)


def _output_channels(log: FfmpegLog, sample_bytes: int) -> int:
    match = _OUTPUT_BITRATE.search(log.text())
    if match is None:
        raise AudioDecodeError(
            "The file's tags or chapters are too long. Convert it first, for example to flac."
        )
    return max(1, int(match[1]) * 1000 // (SAMPLE_RATE * 8 * sample_bytes))


def _with_end(blocks: Iterator[Frames]) -> Iterator[tuple[Frames, bool]]:
    """Pair each block with whether it is the last, which has at least 0.1 s if there is as much."""
    pending: Frames | None = None
    for block in blocks:
        if pending is None:
            pending = block
        elif len(pending) >= _MIN_LAST_SAMPLES <= len(block):
            yield pending, False
            pending = block
        else:
            joined = np.concatenate([pending, block])
            pending = joined[-_MIN_LAST_SAMPLES:]
            if len(joined) > _MIN_LAST_SAMPLES:
                yield joined[:-_MIN_LAST_SAMPLES], False
    if pending is not None:
        yield pending, True


def _skip_samples(samples: int, sound: Generator[Mono]) -> Iterator[Mono]:
    """Skip samples that were already yielded."""
    with contextlib.closing(sound):
        for block in sound:
            if samples < len(block):
                yield block[samples:]
            samples = max(0, samples - len(block))


def _unless_quiet(sound: Iterator[Mono], plan: Plan) -> Iterator[Mono]:
    """Pass audio through; raise `_OtherPlanError` if it is too quiet for 16 bits."""
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


def _loss_caveat(end: int, gap: Gap) -> Caveat:
    """Describe a gap caused by packets that could not be decoded."""
    start_s, end_s = (end - gap.samples) / SAMPLE_RATE, end / SAMPLE_RATE
    return Caveat("undecodable", f"{end_s - start_s:.1f} s could not be decoded.", start_s, end_s)
