"""Decode one long recording on several cores: pieces of it, each by an ffmpeg of its own.

    file -> pieces -> several ffmpegs -> the samples that one ffmpeg gives, in their order

Only plain mp3 and wav files are cut, where it is known which bytes make which samples. Pieces
overlap by more than a decoder and a resampler remember, and what two of them say of the same moment
must be equal: else, and whenever anything is unusual, one ffmpeg decodes the file.
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

from parakeet_api.audio.ffmpeg import DecoderBrokenError, FfmpegRun, Input, Said
from parakeet_api.audio.media_files import id3_end, mp3_side_info_end, read_wav
from parakeet_api.errors import AudioDecodeError
from parakeet_api.transcript import SAMPLE_RATE

_MIN_RECORDING_S = 300
"""Recordings that are cut: an ffmpeg takes 0.4 s for five minutes."""
_MAX_PIECE_S = 900
"""Starting an ffmpeg costs as much as decoding 12 s if it is linked statically, and a minute if it
is Debian's. Decoded, 15 minutes of stereo are 58 MB, as floats twice that."""
_MIN_PIECE_S = 120
_CHECKED = SAMPLE_RATE // 4
"""Samples at each joint that two ffmpegs must agree on."""
_WARM_UP_S = 0.02
"""What the resampler is given before a piece: its filter is 2 ms long at 16 kHz."""
_WARM_UP_FRAMES = 32
"""What the mp3 decoder is given before that. A frame takes bits from up to 511 bytes before it,
which are 24 frames at the lowest bit rate, and overlaps with the frame before."""
_STRIDE = 16
"""Of how many mp3 frames one is noted where it is."""
_MAX_FRAMES = 5_000_000
"""30 hours."""
_SPREAD = 32
"""Samples that the last piece may be longer or shorter than expected: the end of a filter."""
_BLOCK_BYTES = 1024 * 1024

_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
"""Bit rates of layer III, of MPEG-1 and of MPEG-2; 0 where a header does not tell it."""
_MPEG_1, _MPEG_2, _MPEG_2_5 = 3, 2, 0
_MP3_RATES = {
    _MPEG_1: (44_100, 48_000, 32_000, 0),
    _MPEG_2: (22_050, 24_000, 16_000, 0),
    _MPEG_2_5: (11_025, 12_000, 8_000, 0),
}
_MP3_MONO = 3
_DECODER_DELAY = 529
"""Samples by which an mp3 decoder is late, beside what the encoder is."""
_NOTING = (b"LAME", b"Lavf", b"Lavc")
"""Encoders whose notes of delay and padding ffmpeg believes."""
_ID3_BYTES = 10
"""Of a tag's head."""
_ID3V1_BYTES = 128
_PCM = {16: "s16le", 24: "s24le"}
_EXTENSIBLE = 0xFFFE
_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


class UnevenError(Exception):
    """The pieces may not be what one ffmpeg would give."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one ffmpeg decodes, and what is taken of it; with a source alone, everything."""

    source: Input
    demuxer: str | None = None
    """The format, where the bytes need not tell it."""
    options: tuple[str, ...] = ()
    """What that format has to be told."""
    trim: tuple[int, int | None] = (0, None)
    """Which samples of those that the bytes make, at the recording's own rate."""
    skipped: int = 0
    """Samples to leave out at the start, at `SAMPLE_RATE`."""
    samples: int = 0
    """How many are the recording's then; what follows is the next piece's."""
    is_last: bool = True
    channels: int = 1

    def filters(self) -> str:
        """Write the filter that trims; empty where nothing is to be."""
        start, end = self.trim
        if (start, end) == (0, None):
            return ""
        return f"atrim=start_sample={start}{'' if end is None else f':end_sample={end}'},"


@dataclass(frozen=True)
class _Plain(ABC):
    """A recording of which it is known which bytes make which samples, at its own rate."""

    path: Path
    rate: int
    channels: int
    samples: int

    @abstractmethod
    def stretch(self, start: int, end: int) -> Piece:
        """Give what makes these samples; an end beyond the recording's is its end."""


def plan_pieces(path: Path, *, workers: int) -> tuple[Piece, ...]:
    """Cut a long and plain recording into pieces that tile it; none where one ffmpeg is better."""
    if workers < 2 or not path.stat().st_size:  # noqa: PLR2004
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        plain = _plain_wav(path, data) or _plain_mp3(path, data)
    if plain is None or plain.samples < _MIN_RECORDING_S * plain.rate:
        return ()
    return tuple(_cut(plain, workers))


def _cut(plain: _Plain, workers: int) -> Iterator[Piece]:
    # After so many samples, one of the result is again at the very moment of one of them.
    step = plain.rate // math.gcd(plain.rate, SAMPLE_RATE)
    warm_up = _whole_steps(_WARM_UP_S * plain.rate, step)
    tail = _whole_steps(_CHECKED / SAMPLE_RATE * plain.rate, step) + warm_up
    starts = _starts(plain, workers, step)
    for start, end in zip(starts, [*starts[1:], plain.samples], strict=True):
        is_last = end == plain.samples
        # The first reads the file by its name, as one ffmpeg would, and describes it.
        is_first = start == 0
        before = 0 if is_first else warm_up
        piece = (
            Piece(Input(plain.path), trim=(0, end + tail))
            if is_first
            else plain.stretch(start - before, end + tail)
        )
        yield replace(
            piece,
            skipped=_converted(before, plain.rate),
            samples=_converted(end - start, plain.rate),
            is_last=is_last,
            channels=plain.channels,
        )


def _starts(plain: _Plain, workers: int, step: int) -> list[int]:
    """Choose where pieces start: as many as keep all workers busy until the end."""
    seconds = plain.samples / plain.rate
    rounds = math.ceil(seconds / _MAX_PIECE_S / workers)
    count = min(rounds * workers, int(seconds / _MIN_PIECE_S))
    return [plain.samples * number // count // step * step for number in range(count)]


def _whole_steps(samples: float, step: int) -> int:
    return math.ceil(samples / step) * step


def _converted(samples: int, rate: int) -> int:
    """Tell how many samples at `SAMPLE_RATE` these become."""
    return samples * SAMPLE_RATE // rate


@dataclass(frozen=True)
class _PlainWav(_Plain):
    first_byte: int
    bits: int

    def stretch(self, start: int, end: int) -> Piece:
        frame_bytes = self.channels * self.bits // 8
        extent = range(
            self.first_byte + start * frame_bytes,
            self.first_byte + min(end, self.samples) * frame_bytes,
        )
        options = ("-ar", str(self.rate), "-ac", str(self.channels))
        return Piece(Input(self.path, ranges=(extent,)), _PCM[self.bits], options)


def _plain_wav(path: Path, data: mmap.mmap) -> _PlainWav | None:
    """Read a wav file of 16 or 24 bits whose header is true; `None` for any other."""
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
    marks: tuple[int, ...]
    """Where each `_STRIDE`th frame begins, and where the last one ends."""
    frame_samples: int
    delay: int
    """Samples before the recording's first."""

    def stretch(self, start: int, end: int) -> Piece:
        first, last = start + self.delay, min(end, self.samples) + self.delay
        mark = max(0, first // self.frame_samples - _WARM_UP_FRAMES) // _STRIDE
        # One frame more than is needed: a decoder gives a frame once it has seen the next.
        after = last // self.frame_samples // _STRIDE + 2
        extent = range(self.marks[mark], self.marks[min(after, len(self.marks) - 1)])
        origin = mark * _STRIDE * self.frame_samples
        source = Input(self.path, ranges=(extent,))
        return Piece(source, "mp3", trim=(first - origin, last - origin))


@dataclass(frozen=True, slots=True)
class _Header:
    """What all frames of a plain mp3 file have in common."""

    version: int
    rate: int
    channels: int

    @property
    def samples(self) -> int:
        """Samples of a frame."""
        return 1152 if self.version == _MPEG_1 else 576


def _plain_mp3(path: Path, data: mmap.mmap) -> _PlainMp3 | None:
    """Read an mp3 file of like frames from the first byte to the last; `None` for any other."""
    has_tag = data[:3] == b"ID3" and len(data) >= _ID3_BYTES
    start = id3_end(data, 0) if has_tag else 0
    header = _header(data[start : start + 4])
    if header is None:
        return None
    lengths = _FrameBytes(header)
    first = data[start : start + lengths[data[start : start + 4]]]
    notes = _read_notes(first)
    if notes is None:
        return None
    start += len(first) if notes.frames is not None else 0
    marks, frames, end = _walk(data, start, lengths)
    if not _is_end(data, end) or notes.frames not in (None, frames):
        return None
    samples = frames * header.samples - notes.delay - notes.padding
    marks += (end,)
    return _PlainMp3(
        path, header.rate, header.channels, samples, marks, header.samples, notes.delay
    )


def _is_end(data: mmap.mmap, at: int) -> bool:
    """Tell whether nothing but an ID3v1 tag stands here."""
    return at == len(data) or (at == len(data) - _ID3V1_BYTES and data[at : at + 3] == b"TAG")


def _header(head: bytes) -> _Header | None:
    """Read the header of a frame of layer III (ISO 11172-3, 2.4.1.3)."""
    if len(head) < 4 or mp3_side_info_end(head) is None:  # noqa: PLR2004
        return None
    version = head[1] >> 3 & 3
    rate = _MP3_RATES[version][head[2] >> 2 & 3]
    return _Header(version, rate, 1 if head[3] >> 6 == _MP3_MONO else 2) if rate else None


class _FrameBytes(dict[bytes, int]):
    """How long a frame is by its first four bytes; 0 for one that is not as the file's first."""

    def __init__(self, header: _Header) -> None:
        super().__init__()
        self._header = header

    def __missing__(self, head: bytes) -> int:
        self[head] = length = self._length(head) if _header(head) == self._header else 0
        return length

    def _length(self, head: bytes) -> int:
        is_mpeg_1 = self._header.version == _MPEG_1
        kbits = _KBITS[is_mpeg_1][head[2] >> 4]
        padding = head[2] >> 1 & 1
        return kbits and (144 if is_mpeg_1 else 72) * kbits * 1000 // self._header.rate + padding


def _walk(data: mmap.mmap, at: int, lengths: _FrameBytes) -> tuple[tuple[int, ...], int, int]:
    """Go from frame to frame; give where each `_STRIDE`th is, how many there are, and their end."""
    marks, frames = [], 0
    while frames < _MAX_FRAMES and (length := lengths[data[at : at + 4]]):
        if not frames % _STRIDE:
            marks.append(at)
        at += length
        frames += 1
    return tuple(marks), frames, at


@dataclass(frozen=True, slots=True)
class _Notes:
    """What an encoder notes in a first frame that holds no sound."""

    frames: int | None = None
    """How many follow; `None` where there is no such frame."""
    delay: int = 0
    """Samples that are not the recording's, at the start."""
    padding: int = 0
    """And at the end."""


def _read_notes(frame: bytes) -> _Notes | None:
    """Read a Xing or Info header, as ffmpeg does; `None` where it leaves a question."""
    at = mp3_side_info_end(frame[:4])
    if at is None or frame[36:40] == b"VBRI":
        return None
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        return _Notes()
    flags = int.from_bytes(frame[at + 4 : at + 8])
    encoder = at + 8 + sum(length for bit, length in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    if not flags & 1 or len(frame) < encoder + 24:
        return None
    frames = int.from_bytes(frame[at + 8 : at + 12])
    if frame[encoder : encoder + 4] not in _NOTING:
        return _Notes(frames)
    delays = int.from_bytes(frame[encoder + 21 : encoder + 24])
    padding = max(0, (delays & 0xFFF) - _DECODER_DELAY)
    return _Notes(frames, (delays >> 12) + _DECODER_DELAY, padding)


class SideBySide:
    """Pieces of a recording while they are decoded, as many at a time as there are workers."""

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
        """Yield what one ffmpeg would; `first` decodes the first piece, and gives `output`.

        Closing it ends all others. Raises `UnevenError` where one ffmpeg should decode the
        recording, and `ServiceUnavailableError` as one ffmpeg does.
        """
        pool = ThreadPoolExecutor(self._workers, "decoder")
        others = deque(self._others)
        ahead: deque[Future[bytearray]] = deque()

        def look_ahead(most: int) -> None:
            while others and len(ahead) < most:
                ahead.append(pool.submit(self._decode, others.popleft()))

        try:
            look_ahead(self._workers - 1)
            tail = yield from self._of_first(first, output)
            for piece in self._others:
                look_ahead(self._workers)
                decoded = ahead[0].result()
                tail = yield from self._of_other(piece, decoded, tail)
                ahead.popleft()
        finally:
            self._close()
            pool.shutdown(cancel_futures=True)

    def _of_first(self, run: FfmpegRun, output: Iterable[bytes]) -> Generator[bytes, None, bytes]:
        """Yield the first piece as it comes; give what it says of the second's beginning."""
        left = self._first.samples * self._frame_bytes
        tail = bytearray()
        for data in output:
            if left:
                yield data[:left]
            tail += data[left:]
            left = max(0, left - len(data))
        self._check(self._first, run.said, len(tail) // self._frame_bytes)
        # What was said of its own end is not the recording's.
        run.said.readings.clear()
        return bytes(tail)

    def _of_other(
        self, piece: Piece, decoded: bytearray, tail: bytes
    ) -> Generator[bytes, None, bytes]:
        """Yield a piece that begins as the one before ended; give what it says of the next."""
        with memoryview(decoded) as view:
            start = piece.skipped * self._frame_bytes
            checked = _CHECKED * self._frame_bytes
            if view[start : start + checked] != tail[:checked]:
                raise UnevenError("two decoders do not agree")
            end = len(view) if piece.is_last else start + piece.samples * self._frame_bytes
            for at in range(start, end, _BLOCK_BYTES):
                yield bytes(view[at : min(end, at + _BLOCK_BYTES)])
            return bytes(view[end:])

    def _decode(self, piece: Piece) -> bytearray:
        decoded = bytearray()
        try:
            with self._start(piece) as run, self._listed(run):
                for data in run.blocks():
                    decoded += data
                run.check_end()
        except (AudioDecodeError, DecoderBrokenError) as error:
            # One ffmpeg says it better.
            raise UnevenError(str(error)) from error
        beyond = len(decoded) // self._frame_bytes - piece.skipped - piece.samples
        self._check(piece, run.said, beyond)
        return decoded

    def _check(self, piece: Piece, said: Said, beyond: int) -> None:
        """Raise `UnevenError` unless a piece is as long as it should be, and nothing was said."""
        is_as_long = abs(beyond) <= _SPREAD if piece.is_last else beyond >= _CHECKED
        is_odd = said.cut_short or said.ends_corrupt or said.undecodable or said.graphs != 1
        if is_odd or not is_as_long or _leaves_the_clock(piece, said):
            raise UnevenError(f"a piece of {piece.source.path.name} is odd")

    @contextmanager
    def _listed(self, run: FfmpegRun) -> Iterator[None]:
        """Keep a run where it can be ended."""
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


def _leaves_the_clock(piece: Piece, said: Said) -> bool:
    """Tell whether timestamps leave the samples' own clock; ffmpeg 5 says so of a piece's end."""
    end_s = (piece.skipped + piece.samples) / SAMPLE_RATE
    return any(0 < reading.offset_s < end_s for reading in said.readings)
