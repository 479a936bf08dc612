"""Decode one long recording on several cores: in pieces, each by its own ffmpeg process.

    file -> pieces -> several ffmpegs -> the same samples as from one ffmpeg, in order

Only plain mp3 and wav files are cut, where the mapping from bytes to samples is known. Pieces
overlap by more than the state of a decoder and a resampler, and the samples of an overlap must be
equal. If they differ, or anything is unusual, one ffmpeg decodes the file.
"""

from __future__ import annotations

import math
import mmap
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from parakeet_api.audio.ffmpeg import DecoderBrokenError, FfmpegRun, Input
from parakeet_api.audio.ffmpeg_log import FfmpegLog
from parakeet_api.audio.mapped_files import mapped
from parakeet_api.audio.mp3_frames import (
    STRIDE,
    FrameBytes,
    parse_header,
    read_encoder_info,
    scan_frames,
    tags_end,
)
from parakeet_api.audio.wav_files import read_wav
from parakeet_api.errors import AudioDecodeError
from parakeet_api.transcript import SAMPLE_RATE

_MIN_RECORDING_S = 300
"""Shorter recordings are not cut: one ffmpeg decodes five minutes in 0.4 s."""
_MAX_PIECE_S = 900
"""Starting ffmpeg costs as much as decoding 12 s if it is linked statically, and a minute if it is
Debian's. 15 minutes of decoded stereo take 58 MB, as floats twice that."""
_MIN_PIECE_S = 120
_OVERLAP = SAMPLE_RATE // 4
"""Samples at each joint that must be equal in both pieces."""
_WARM_UP_S = 0.02
"""Audio before a piece that initialises the resampler: its filter is 2 ms long at 16 kHz."""
_WARM_UP_FRAMES = 32
"""Frames before that which initialise the mp3 decoder. A frame's bit reservoir reaches back up to
511 bytes, which is 24 frames at the lowest bit rate, and a frame overlaps with the previous one."""
_LENGTH_TOLERANCE = 32
"""Samples by which the last piece may differ from the expected length: the tail of a filter."""
_BLOCK_BYTES = 1024 * 1024

_ID3V1_BYTES = 128
_PCM = {16: "s16le", 24: "s24le"}
_EXTENSIBLE = 0xFFFE
_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


class PiecesDifferError(Exception):
    """The pieces may differ from the output of one ffmpeg."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one ffmpeg decodes, and which of its samples are used; by default the whole source."""

    source: Input
    demuxer: str | None = None
    """The format, if ffmpeg cannot detect it in these bytes."""
    options: tuple[str, ...] = ()
    """Options of that demuxer."""
    trim: tuple[int, int | None] = (0, None)
    """Start and end of the samples to keep, at the recording's own rate."""
    skipped: int = 0
    """Samples to drop at the start, at `SAMPLE_RATE`."""
    samples: int = 0
    """Samples after those that belong to this piece; the rest overlaps the next piece."""
    is_last: bool = True
    channels: int = 1

    def filters(self) -> str:
        """Return ffmpeg's trim filter; empty if nothing is trimmed."""
        start, end = self.trim
        if (start, end) == (0, None):
            return ""
        return f"atrim=start_sample={start}{'' if end is None else f':end_sample={end}'},"


@dataclass(frozen=True)
class _Plain(ABC):
    """A recording with a known mapping from bytes to samples, which are counted at its own rate."""

    path: Path
    rate: int
    channels: int
    samples: int

    @abstractmethod
    def section(self, start: int, end: int) -> Piece:
        """Return the piece that decodes to these samples; `end` may exceed the recording's."""


def plan_pieces(path: Path, *, workers: int) -> tuple[Piece, ...]:
    """Cut a long, plain recording into pieces that tile it; none if one ffmpeg is better."""
    if workers < 2:  # noqa: PLR2004
        return ()
    with mapped(path) as data:
        plain = _plain_wav(path, data) or _plain_mp3(path, data)
    if plain is None or plain.samples < _MIN_RECORDING_S * plain.rate:
        return ()
    return tuple(_cut(plain, workers))


def _cut(plain: _Plain, workers: int) -> Iterator[Piece]:
    """Yield the pieces in order."""
    # Every `step` input samples, an output sample has exactly the time of an input sample.
    step = plain.rate // math.gcd(plain.rate, SAMPLE_RATE)
    warm_up = _whole_steps(_WARM_UP_S * plain.rate, step)
    tail = _whole_steps(_OVERLAP / SAMPLE_RATE * plain.rate, step) + warm_up
    starts = _piece_starts(plain, workers, step)
    for start, end in zip(starts, [*starts[1:], plain.samples], strict=True):
        is_last = end == plain.samples
        # The first piece reads the file by name, as one ffmpeg would, so that its log describes it.
        is_first = start == 0
        before = 0 if is_first else warm_up
        piece = (
            Piece(Input(plain.path), trim=(0, end + tail))
            if is_first
            else plain.section(start - before, end + tail)
        )
        yield replace(
            piece,
            skipped=_converted(before, plain.rate),
            samples=_converted(end - start, plain.rate),
            is_last=is_last,
            channels=plain.channels,
        )


def _piece_starts(plain: _Plain, workers: int, step: int) -> list[int]:
    """Choose the starts of pieces, so that all workers are busy until the end."""
    seconds = plain.samples / plain.rate
    rounds = math.ceil(seconds / _MAX_PIECE_S / workers)
    count = min(rounds * workers, int(seconds / _MIN_PIECE_S))
    return [plain.samples * number // count // step * step for number in range(count)]


def _whole_steps(samples: float, step: int) -> int:
    return math.ceil(samples / step) * step


def _converted(samples: int, rate: int) -> int:
    """Convert a number of samples to `SAMPLE_RATE`."""
    return samples * SAMPLE_RATE // rate


@dataclass(frozen=True)
class _PlainWav(_Plain):
    first_byte: int
    bits: int

    def section(self, start: int, end: int) -> Piece:
        frame_bytes = self.channels * self.bits // 8
        extent = range(
            self.first_byte + start * frame_bytes,
            self.first_byte + min(end, self.samples) * frame_bytes,
        )
        options = ("-ar", str(self.rate), "-ac", str(self.channels))
        return Piece(Input(self.path, ranges=(extent,)), _PCM[self.bits], options)


def _plain_wav(path: Path, data: mmap.mmap) -> _PlainWav | None:
    """Parse a wav file of 16 or 24 bits with a correct header; `None` for any other."""
    wav = read_wav(data, 0)
    if wav is None:
        return None
    kind, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", wav.fmt)
    is_pcm = kind == 1 or (kind == _EXTENSIBLE and wav.fmt[24:40] == _PCM_GUID)
    if not (is_pcm and bits in _PCM and channels in (1, 2) and frame_bytes == channels * bits // 8):
        return None
    is_whole = 0 < wav.declared <= len(data) - wav.start and wav.declared % frame_bytes == 0
    if not is_whole or rate < SAMPLE_RATE // 2:
        return None
    return _PlainWav(path, rate, channels, wav.declared // frame_bytes, wav.start, bits)


@dataclass(frozen=True)
class _PlainMp3(_Plain):
    offsets: tuple[int, ...]
    """Byte offsets of every `STRIDE`th frame, and of the end of the last one."""
    frame_samples: int
    delay: int
    """Decoded samples before the recording's first."""

    def section(self, start: int, end: int) -> Piece:
        first, last = start + self.delay, min(end, self.samples) + self.delay
        first_offset = max(0, first // self.frame_samples - _WARM_UP_FRAMES) // STRIDE
        # One frame more than needed: the decoder outputs a frame after parsing the next.
        last_offset = last // self.frame_samples // STRIDE + 2
        extent = range(
            self.offsets[first_offset], self.offsets[min(last_offset, len(self.offsets) - 1)]
        )
        origin = first_offset * STRIDE * self.frame_samples
        source = Input(self.path, ranges=(extent,))
        return Piece(source, "mp3", trim=(first - origin, last - origin))


def _plain_mp3(path: Path, data: mmap.mmap) -> _PlainMp3 | None:
    """Parse an mp3 file that consists of uniform frames only; `None` for any other."""
    start = tags_end(data)
    header = parse_header(data[start : start + 4])
    if header is None:
        return None
    lengths = FrameBytes(header)
    first = data[start : start + lengths[data[start : start + 4]]]
    encoder_info = read_encoder_info(first)
    if encoder_info is None:
        return None
    start += len(first) if encoder_info.frames is not None else 0
    offsets, frames, end = scan_frames(data, start, lengths)
    if not _is_end(data, end) or encoder_info.frames not in (None, frames):
        return None
    samples = frames * header.samples - encoder_info.delay - encoder_info.padding
    offsets += (end,)
    return _PlainMp3(
        path, header.rate, header.channels, samples, offsets, header.samples, encoder_info.delay
    )


def _is_end(data: mmap.mmap, at: int) -> bool:
    """Tell whether nothing but an ID3v1 tag follows."""
    return at == len(data) or (at == len(data) - _ID3V1_BYTES and data[at : at + 3] == b"TAG")


class ParallelDecoding:
    """Decode the pieces of a recording in parallel, one per worker at a time."""

    def __init__(
        self,
        pieces: tuple[Piece, ...],
        start: Callable[[Piece], AbstractContextManager[FfmpegRun]],
        *,
        workers: int,
        sample_bytes: int,
    ) -> None:
        self._first, *self._others = pieces
        self._start = start
        self._workers = workers
        self._frame_bytes = self._first.channels * sample_bytes
        self._running: set[FfmpegRun] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def blocks(self, first: FfmpegRun, output: Iterable[bytes]) -> Generator[bytes]:
        """Yield what one ffmpeg would; `first` decodes the first piece to `output`.

        Closing the generator kills all other ffmpegs. Raises `PiecesDifferError` if one ffmpeg
        should decode the recording instead, and `ServiceUnavailableError` as a single ffmpeg does.
        """
        pool = ThreadPoolExecutor(self._workers, "decoder")
        others = deque(self._others)
        ahead: deque[Future[bytearray]] = deque()

        def submit(most: int) -> None:
            while others and len(ahead) < most:
                ahead.append(pool.submit(self._decode, others.popleft()))

        try:
            submit(self._workers - 1)
            tail = yield from self._first_piece(first, output)
            for piece in self._others:
                submit(self._workers)
                decoded = ahead[0].result()
                tail = yield from self._next_piece(piece, decoded, tail)
                ahead.popleft()
        finally:
            self._close()
            pool.shutdown(cancel_futures=True)

    def _first_piece(
        self, run: FfmpegRun, output: Iterable[bytes]
    ) -> Generator[bytes, None, bytes]:
        """Yield the first piece as it is decoded; return its overlap with the second."""
        left = self._first.samples * self._frame_bytes
        tail = bytearray()
        for data in output:
            if left:
                yield data[:left]
            tail += data[left:]
            left = max(0, left - len(data))
        self._check(self._first, run.log, len(tail) // self._frame_bytes)
        # Timestamps printed at this piece's end do not concern the recording.
        run.log.readings.clear()
        return bytes(tail)

    def _next_piece(
        self, piece: Piece, decoded: bytearray, tail: bytes
    ) -> Generator[bytes, None, bytes]:
        """Yield a piece if it begins with `tail`, the previous overlap; return its own overlap."""
        with memoryview(decoded) as view:
            start = piece.skipped * self._frame_bytes
            overlap = _OVERLAP * self._frame_bytes
            if view[start : start + overlap] != tail[:overlap]:
                raise PiecesDifferError("two decoders do not agree")
            end = len(view) if piece.is_last else start + piece.samples * self._frame_bytes
            for at in range(start, end, _BLOCK_BYTES):
                yield bytes(view[at : min(end, at + _BLOCK_BYTES)])
            return bytes(view[end:])

    def _decode(self, piece: Piece) -> bytearray:
        decoded = bytearray()
        try:
            with self._start(piece) as run, self._registered(run):
                for data in run.blocks():
                    decoded += data
                run.check_end()
        except (AudioDecodeError, DecoderBrokenError) as error:
            # One ffmpeg decodes the file then, for its error message.
            raise PiecesDifferError(str(error)) from error
        surplus = len(decoded) // self._frame_bytes - piece.skipped - piece.samples
        self._check(piece, run.log, surplus)
        return decoded

    def _check(self, piece: Piece, log: FfmpegLog, surplus: int) -> None:
        """Raise `PiecesDifferError` if ffmpeg reported an error or a piece has a wrong length."""
        has_length = abs(surplus) <= _LENGTH_TOLERANCE if piece.is_last else surplus >= _OVERLAP
        has_errors = log.cut_short or log.ends_corrupt or log.undecodable or log.graphs != 1
        if has_errors or not has_length or _has_timestamp_jump(piece, log):
            raise PiecesDifferError(
                f"a piece of {piece.source.path.name} has errors or a wrong length"
            )

    @contextmanager
    def _registered(self, run: FfmpegRun) -> Iterator[None]:
        """Register a run, so that `_close` can kill it."""
        with self._lock:
            self._running.add(run)
            if self._is_closed:
                run.kill()
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(run)

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            for run in self._running:
                run.kill()


def _has_timestamp_jump(piece: Piece, log: FfmpegLog) -> bool:
    """Tell whether timestamps jump within a piece; ffmpeg 5 reports a jump at a piece's end."""
    end_s = (piece.skipped + piece.samples) / SAMPLE_RATE
    return any(0 < reading.offset_s < end_s for reading in log.readings)
