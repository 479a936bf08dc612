"""Decode any recording or video to 16 kHz mono PCM, as a stream: at most one ffmpeg process each.

The upload is hostile: the formats and protocols that ffmpeg may open are listed, so that a
playlist cannot make it read another file or call out, and its time, memory and output are bounded.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parakeet_api.errors import (
    AudioDecodeError,
    AudioTooLongError,
    NoAudioTrackError,
    ServiceUnavailableError,
    SettingsError,
    TruncatedAudioError,
)
from parakeet_api.sound_files import open_sound
from parakeet_api.transcript import SAMPLE_RATE, Pcm

logger = logging.getLogger(__name__)

SUPPORTED_FORMATS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
"""Named in error messages, as OpenAI names them; more than these are understood."""

_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,loas,matroska,webm,mov,mp4,m4a,3gp,"
    "3g2,mj2,mp3,mpeg,mpegts,mpegvideo,mxf,ogg,rm,tta,voc,w64,wav,wv"
)
"""Containers that hold their own media. Playlists and scripts (concat, hls, dash, sdp) stay out."""

FILE_EXTENSIONS = (  # noqa: SIM905 - 54 strings in quotes would be 54 lines
    "3g2 3gp aac ac3 aif aiff amr ape asf au avi caf dts eac3 f4v flac flv m2ts m4a m4b m4v mj2 mka"
    " mkv mov mp2 mp3 mp4 mpeg mpg mpga mts mxf oga ogg ogv opus qcp ra rm rmvb snd spx ts tta vob"
    " voc w64 wav webm wma wmv wv"
).split()
"""What such files are usually called. For file dialogs: the decoder itself looks at the content."""

_ARCHIVES = {
    "zip": (0, b"PK\x03\x04"),
    "gzip": (0, b"\x1f\x8b"),
    "7z": (0, b"7z\xbc\xaf"),
    "rar": (0, b"Rar!"),
    "tar": (257, b"ustar"),
}
"""Where and how archives tell what they are. ffmpeg would take one for an mp3 with junk around it,
and several recordings for one."""

_PIPE_BYTES = 1024 * 1024
"""33 s of audio, the most that Linux gives anyone. ffmpeg can decode ahead while the interpreter is
busy, and a read, for which this thread must get hold of the interpreter, takes a chunk at once:
with the usual 64 KiB, decoding took half of a long file's time."""
_FRAME_SAMPLES = 2 * SAMPLE_RATE
"""What ffmpeg hands from its filters to its output at a time. Since its version 7 they are threads
of their own, and waking one for each 24 ms of an mp3 cost more than decoding it: an hour took 5.1 s
on a core, and takes 2.8 s with this and `SCHED_BATCH`."""
_STALL_S = 60.0
"""A file that keeps ffmpeg silent for so long is not media that can be used."""
_MEMORY_BYTES = 1024**3
"""Memory of its own that ffmpeg may have. Decoding takes 0.1 GB (4K video, 8 channels at 192 kHz),
a hole of `_LONGEST_HOLE_S` 0.4 GB: it is filled at once."""
_LONGEST_HOLE_S = 2 * 3600
"""Timestamps of 40 KB can claim ten hours of nothing, for which ffmpeg would take 3.2 GB. Honest
holes are a muted microphone, or a film whose sound starts late."""
_OPEN_FILES = 32
"""ffmpeg opens the upload, its pipes, and what its libraries look up at the start: 12 at most."""
_STDERR_HEAD = 16 * 1024
"""ffmpeg describes its input in the first lines; a broken file then floods with complaints."""
_TRUNCATION_TOLERANCE_S = 1.0
"""Encoder delay and padding make an honest file up to some 0.1 s shorter than it declares."""

_ASKED_TO_END = frozenset({-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP})
"""Statuses of an ffmpeg that did not handle the signal yet, or never does."""
_ENDED_WELL = b"received signal"
"""The last words of one that did: what it had decoded until then looks like all there is. Its
status alone, 255, some damaged files have as well."""
_LAST_WORDS = 200
"""Bytes."""

_DECLARED_LENGTH_IS_EXACT = frozenset({"mp3", "flac", "mov"})
"""ffmpeg's demuxers whose duration comes from a frame or sample count. Not wav: recorders that
write to a pipe leave a made-up size in its header. A length estimated from the bit rate does not
count either."""
_FILTER_CHECK_S = 30.0
"""ffmpeg takes 0.1 s to filter a tenth of a second."""

# Before holes are filled, not after: a second of silence then takes 2 bytes a sample.
_TO_PCM = f"aformat=sample_fmts=s16:sample_rates={SAMPLE_RATE}:channel_layouts=mono"

_REFUSE_HOLES = (
    "asetpts='if(isnan(PTS),NAN,"
    f"if(gt(PTS-ld(0),{_LONGEST_HOLE_S * SAMPLE_RATE}),print(PTS,16)+NAN,"
    "st(0,PTS+NB_SAMPLES)-NB_SAMPLES))'"
)
"""Keeps the timestamps; register 0 holds where the sound so far ends. One beyond the longest hole
is printed, as an error that `_GIVEN_UP` finds, and then dropped, so that nothing is filled."""
_GIVEN_UP = {
    re.compile(rb"^\[Eval @ ", re.MULTILINE): (
        f"The file's timestamps leave a hole of more than {_LONGEST_HOLE_S // 3600} hours."
    ),
    re.compile(rb"Cannot allocate memory"): "The file takes too much memory to decode.",
}
"""Complaints of ffmpeg's, after which it goes on with less than the whole sound; what we say."""


class AudioStream(Iterator[Pcm]):
    """A recording while it is decoded: an iterator of PCM blocks; closing it ends the decoder."""

    def __init__(self, blocks: Generator[Pcm], expected_s: Callable[[], float | None]) -> None:
        self._blocks = blocks
        self._expected_s = expected_s
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
        return self._expected_s()

    def close(self) -> None:
        """Stop decoding."""
        self._blocks.close()


@dataclass(frozen=True, slots=True)
class FfmpegDecoder:
    """Turn files into PCM blocks."""

    executable: str
    max_seconds: float
    """Longest recording that is decoded; one more sample is an `AudioTooLongError`."""
    audio_filter: str | None = None
    """An ffmpeg filter chain to run before recognition."""

    def stream(self, path: Path, *, raw_pcm: bool = False) -> AudioStream:
        """Decode the first sound track to int16 blocks, shape `(samples,)`, at 16 kHz, mono.

        The track's own timestamps are kept: sound that starts late or has holes is filled with
        silence, so that subtitles fit the picture. A `raw_pcm` file is such samples already,
        little-endian, without a header.

        The stream raises `AudioDecodeError` or one of its kinds, and `ServiceUnavailableError`
        where the decoder was ended by anything but the file.
        """
        if raw_pcm:
            length_s = path.stat().st_size // 2 / SAMPLE_RATE
            return AudioStream(self._bounded(_read_pcm(path)), lambda: length_s)
        if self.audio_filter is None and (sound := open_sound(path)) is not None:
            return AudioStream(self._bounded(sound.blocks), lambda: sound.seconds)
        said = bytearray()
        return AudioStream(
            self._bounded(_decode(self._command(path), path, said, cpu_s=self._cpu_s())),
            lambda: _expected_seconds(said.decode("utf-8", "replace")),
        )

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

    def _cpu_s(self) -> int:
        """Give ffmpeg's time on a core: the slowest codecs decode ten times as fast as this."""
        return 60 + math.ceil(self.max_seconds / 4)

    def _command(self, path: Path) -> list[str]:
        filters = [_TO_PCM, _REFUSE_HOLES, "aresample=async=1:first_pts=0"]
        if self.audio_filter:
            filters.append(self.audio_filter)
        filters.append(f"asetnsamples=n={_FRAME_SAMPLES}:p=0")
        # fmt: off
        return [
            self.executable, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "info",
            "-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS,
            "-threads", "1", "-i", f"file:{path.absolute()}",
            "-map", "0:a:0", "-vn", "-sn", "-dn", "-af", ",".join(filters),
            "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "pipe:1",
        ]
        # fmt: on


class _Ffmpeg:
    """A running ffmpeg: its PCM on one pipe, what it says of the input on the other."""

    def __init__(self, process: subprocess.Popen[bytes], said: bytearray, *, cpu_s: int) -> None:
        self._process = process
        self._started = time.monotonic()
        self._cpu_s = cpu_s
        self._said = said
        """The beginning of what it says, as it comes."""
        self._last_said = b""

    def blocks(self) -> Generator[Pcm]:
        """Yield PCM until the process closes its output.

        Both pipes are read by one loop: a file that makes ffmpeg complain at length can then not
        block it on a full pipe.
        """
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            selector.register(self._process.stderr, selectors.EVENT_READ)
            last_progress = time.monotonic()
            while selector.get_map():
                events = selector.select(timeout=_STALL_S)
                for key, _ in events:
                    data = key.fileobj.read1(_PIPE_BYTES)  # type: ignore[union-attr]
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._process.stderr:
                        self._said += data[: _STDERR_HEAD - len(self._said)]
                        self._last_said = (self._last_said + data)[-_LAST_WORDS:]
                        _check_complaints(data)
                    else:
                        data = rest + data
                        whole = len(data) - len(data) % 2
                        rest = data[whole:]
                        if whole:
                            yield np.frombuffer(data[:whole], dtype="<i2")
                        # Taken after the yield: a slow consumer is not a stalled ffmpeg.
                        last_progress = time.monotonic()
                if time.monotonic() - last_progress > _STALL_S:
                    raise AudioDecodeError(
                        f"No sound could be decoded within {_STALL_S:g} s. {_supported()}"
                    )

    def check_outcome(self, decoded_samples: int) -> None:
        """Raise what the client should know once ffmpeg is done."""
        status = self._process.wait(timeout=_STALL_S)
        said = self._said.decode("utf-8", "replace")
        if self._was_ended_from_outside(status):
            logger.warning("ffmpeg was ended from outside, with status %d", status)
            raise ServiceUnavailableError(
                "The decoder was ended before its time, perhaps because memory is short."
                " Try again later."
            )
        if status < 0:
            # It crashed, or took too much time: what came before is not the whole recording.
            logger.warning("ffmpeg was ended by signal %d: %s", -status, _last_line(said))
            raise AudioDecodeError(f"The file could not be decoded to its end. {_supported()}")
        if decoded_samples == 0:
            logger.info("ffmpeg exited %s: %s", status, _last_line(said))
            if "Stream #" in said and ": Audio:" not in said:
                raise NoAudioTrackError("The file has no sound track.")
            raise AudioDecodeError(f"The file holds no sound that can be decoded. {_supported()}")
        declared_s = _declared_seconds(said)
        decoded_s = decoded_samples / SAMPLE_RATE
        if declared_s is not None and declared_s - decoded_s > max(
            _TRUNCATION_TOLERANCE_S, 0.01 * declared_s
        ):
            raise TruncatedAudioError(
                f"The file is cut short: it declares {declared_s:.1f} s of sound and ends after"
                f" {decoded_s:.1f} s. Send it again; if it is all there is, convert it first, for"
                " example to flac."
            )

    def _was_ended_from_outside(self, status: int) -> bool:
        """Tell whether someone's signal or the system's lack of memory ended it, not the file.

        A file that takes too much time has it killed too, but no earlier than all cores together
        can have spent so much.
        """
        if status != -signal.SIGKILL:
            return status in _ASKED_TO_END or _ENDED_WELL in self._last_said
        return (time.monotonic() - self._started) * (os.cpu_count() or 1) < self._cpu_s


def _decode(command: list[str], path: Path, said: bytearray, *, cpu_s: int) -> Generator[Pcm]:
    """Run ffmpeg; what it says of its input goes to `said`."""
    _refuse_archive(path)
    decoded = 0
    with _running(command, said, cpu_s=cpu_s) as ffmpeg:
        for block in ffmpeg.blocks():
            decoded += len(block)
            yield block
        ffmpeg.check_outcome(decoded)


def _read_pcm(path: Path) -> Generator[Pcm]:
    with path.open("rb") as file:
        # Half a sample at the end is not sound.
        while len(data := file.read(_PIPE_BYTES)) > 1:
            yield np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")


@contextlib.contextmanager
def _running(command: list[str], said: bytearray, *, cpu_s: int) -> Iterator[_Ffmpeg]:
    """Run ffmpeg; whatever happens in the block, it is gone afterwards."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=_PIPE_BYTES,
        # Ctrl-C in a terminal is sent to all processes of a group; requests may still end.
        process_group=0,
    )
    try:
        _limit(process.pid, cpu_s=cpu_s)
        # Its threads then need not interrupt each other, nor the model's, to pass a frame on.
        if hasattr(os, "sched_setscheduler"):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(process.pid, os.SCHED_BATCH, os.sched_param(0))
        # A user's pipes may have 64 MB together; past that this one stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
        yield _Ffmpeg(process, said, cpu_s=cpu_s)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _limit(pid: int, *, cpu_s: int) -> None:
    """Bound a process that has just been started.

    From outside: `preexec_fn` can hang a process with threads, and a wrapper would be one more
    program to have. Processes stay unbounded, as that bound counts all of a user's, threads too;
    ffmpeg starts none by itself.
    """
    bounds = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_DATA: _MEMORY_BYTES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        # Not one byte to a file, a core dump included.
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        # The hard bound as well: at the soft one of time, ffmpeg would end as if all were well.
        resource.prlimit(pid, kind, (bound, bound))


def _check_complaints(said: bytes) -> None:
    """Raise `AudioDecodeError` where ffmpeg goes on, but with less than the whole sound."""
    for complaint, told in _GIVEN_UP.items():
        if complaint.search(said):
            raise AudioDecodeError(f"{told} Convert the file first, for example to flac.")


def _refuse_archive(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    for kind, (offset, magic) in _ARCHIVES.items():
        if head.startswith(magic, offset):
            raise AudioDecodeError(
                f"The file is a {kind} archive. Unpack it and send each recording on its own."
            )


def _declared_seconds(said: str) -> float | None:
    """Read the length that the container declares, where that is exact and of the sound alone."""
    container = re.search(r"^Input #0, ([^ ,]+)", said, re.MULTILINE)
    length_s = _expected_seconds(said)
    pictures = re.search(r"Stream #0.*: Video: (?!.*\(attached pic\))", said)
    if (
        container is None
        or length_s is None
        or pictures is not None
        or container[1] not in _DECLARED_LENGTH_IS_EXACT
        or "Estimating duration from bitrate" in said
    ):
        return None
    return length_s


def _expected_seconds(said: str) -> float | None:
    """Read the length that the container declares, or that ffmpeg estimates from its size."""
    length = re.search(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", said, re.MULTILINE)
    if length is None:
        return None
    hours, minutes, seconds = length.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _supported() -> str:
    return f"Supported formats: {list(SUPPORTED_FORMATS)}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def find_ffmpeg() -> str:
    """Take ffmpeg from the PATH, else the one inside the package imageio-ffmpeg.

    Raises `SettingsError` where there is neither.
    """
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise SettingsError(
            "no ffmpeg: install it (apt-get install ffmpeg) or `pip install imageio-ffmpeg`"
        ) from error


def check_filter(executable: str, audio_filter: str) -> None:
    """Run a filter chain over a moment of silence.

    Raises `SettingsError` with ffmpeg's reason where it does not know or like the chain, and for
    one that goes on for ever.
    """
    # fmt: off
    command = [
        executable, "-hide_banner", "-nostdin", "-loglevel", "error", "-f", "lavfi",
        "-i", f"anullsrc=r={SAMPLE_RATE}:cl=mono:d=0.1", "-af", audio_filter, "-f", "null", "-",
    ]
    # fmt: on
    refusal = f"DENOISE_FILTER={audio_filter!r} is not a filter that ffmpeg accepts"
    try:
        outcome = subprocess.run(command, capture_output=True, check=False, timeout=_FILTER_CHECK_S)
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"{refusal}: it does not end") from error
    if outcome.returncode != 0:
        raise SettingsError(f"{refusal}: {_last_line(outcome.stderr.decode(errors='replace'))}")
