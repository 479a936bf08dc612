"""Run ffmpeg in a confined process: samples on stdout, its log on stderr, resource limits set.

Uploads are untrusted. Formats and protocols are on an allow-list, so that a playlist cannot make
ffmpeg read another file or open a connection; CPU time, memory and output are limited.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from parakeet_api.audio.media_info import ClockReading, MediaInfo, parse_media_info
from parakeet_api.errors import (
    AudioDecodeError,
    ServiceUnavailableError,
    SettingsError,
)
from parakeet_api.transcript import SAMPLE_RATE

logger = logging.getLogger(__name__)

SUPPORTED_FORMATS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
"""The list that OpenAI's error messages give; the decoder accepts more than these."""

DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,dv,eac3,flac,flv,gsm,gxf,iff,ircam,loas,matroska,"
    "webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nistsphere,nut,ogg,qcp,rm,"
    "sox,tak,truehd,mlp,tta,voc,w64,wav,wtv,wv"
)
"""Containers that hold their own media; playlists and scripts (concat, hls, dash, sdp) are not."""

_PIPE_BYTES = 1024 * 1024
"""16 s of mono audio; Linux's limit for unprivileged processes. ffmpeg can decode ahead while the
interpreter is busy, and each read, which needs the GIL, returns more: with the default of 64 KiB,
decoding took half of the time of a long file."""
_SENT_BYTES = 64 * 1024
_STALL_S = 60.0
"""A file that yields no output for so long is refused."""
_MEMORY_BYTES = 1024**3
"""Limit of ffmpeg's private memory. Decoding takes 0.1 GB (4K video, 8 channels at 192 kHz)."""
_OPEN_FILES = 32
"""ffmpeg opens the upload, its pipes, and files that its libraries read at startup: 12 at most."""
_HEAD_BYTES = 1024 * 1024
"""ffmpeg describes its input first, with all chapters and tags, such as lyrics. For a broken file
thousands of error messages follow."""
_MAX_LINE = 4096

_TERMINATED = frozenset({-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP})
"""Exit statuses of an ffmpeg that a signal ended before its handler was installed."""
_HANDLED_SIGNAL = b"received signal"
"""ffmpeg's last log line if it handled the signal: its output then looks complete. The exit
status, 255, does not tell: some damaged files cause it as well."""
_CANNOT_RUN = frozenset({126, 127})
"""Exit statuses of a program that the system or the dynamic loader could not start."""
_TAIL_BYTES = 200
"""Enough for ffmpeg's last messages."""
_FILTER_CHECK_S = 30.0
"""ffmpeg takes 0.1 s to filter a tenth of a second."""

_NUMBER = re.compile(rb"(?:\[Eval @ 0x[0-9a-f]+\] )?(-?\d+\.\d+|-?nan|-?inf)")
_CUT_SHORT = re.compile(
    rb": partial file|File ended prematurely"
    rb"|Error during demuxing: (?!End of file)"
    # A nut file's last packet.
    rb"|no index at the end"
)
_NO_INDEX = b"moov atom not found"
_CORRUPT = re.compile(rb"corrupt (?:input packet|decoded frame)")
_UNDECODABLE = re.compile(
    rb"Error while decoding|Error submitting packet to decoder|Decoding error"
)
_NO_MEMORY = b"Cannot allocate memory"
_NO_DECODER = re.compile(rb"no decoder found|Decoder \(codec \w+\) not found|: unknown codec")
_UNMIXABLE = re.compile(rb"Rematrix is needed between (\d+) channels")


@dataclass(slots=True)
class FfmpegLog:
    """Parse ffmpeg's log, line by line, as it arrives."""

    url: bytes = b""
    """The name by which ffmpeg calls its input."""
    readings: deque[ClockReading] = field(default_factory=deque)
    """Timestamps printed by `CLOCK`; the consumer of the samples removes them."""
    graphs: int = 0
    """How often the filter graph was built: more than once if the track's format changes."""
    has_output: bool = False
    """Whether ffmpeg has described its output: from then on it reads packets."""
    cut_short: bool = False
    """Whether ffmpeg reported that the file ends too early or cannot be read further."""
    lacks_index: bool = False
    """Whether the file's index (`moov`), usually at its end, is missing."""
    ends_corrupt: bool = False
    """Whether ffmpeg reported an incomplete packet."""
    undecodable: int = 0
    """Packets that the decoder rejected."""
    lacks_decoder: bool = False
    """Whether ffmpeg knows no decoder for the track's codec."""
    unmixable_channels: int | None = None
    """Number of channels, if ffmpeg cannot mix their layout."""
    tail: bytes = b""
    """The last bytes of the log."""
    head: bytearray = field(default_factory=bytearray)
    """The first bytes of the log."""
    _rest: bytes = b""
    """A line that has not ended yet."""
    _numbers: list[float] = field(default_factory=list)
    """Numbers that `CLOCK` has printed of an incomplete reading."""

    def add(self, data: bytes) -> None:
        """Parse new output. Raises `AudioDecodeError` if ffmpeg ran out of memory."""
        self.head += data[: _HEAD_BYTES - len(self.head)]
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[-_MAX_LINE:]
        for line in lines:
            # Descriptions are indented, and hold the file's own texts: they are no messages.
            if not line.startswith(b"  "):
                self._parse_line(line)

    def text(self) -> str:
        """Return the beginning of the log."""
        return self.head.decode("utf-8", "replace")

    @property
    def last_line(self) -> str:
        """The last line of the log, perhaps without its beginning."""
        return last_line(self.tail.decode("utf-8", "replace"))

    def _parse_line(self, line: bytes) -> None:
        if line.startswith(b"Output #0"):
            self.has_output = True
        elif number := _NUMBER.fullmatch(line):
            self._add_clock_number(float(number[1]))
        elif _NO_MEMORY in line:
            raise AudioDecodeError(
                "The file takes too much memory to decode. Convert the file first, for example to"
                " flac."
            )
        elif _CORRUPT.search(line):
            self.ends_corrupt = True
        elif _UNDECODABLE.search(line):
            self.undecodable += 1
        elif _NO_INDEX in line:
            self.lacks_index = True
        elif _CUT_SHORT.search(line) or self._is_read_error(line):
            self.cut_short = True
        elif _NO_DECODER.search(line):
            self.lacks_decoder = True
        elif unmixable := _UNMIXABLE.search(line):
            self.unmixable_channels = int(unmixable[1])

    def _is_read_error(self, line: bytes) -> bool:
        """Tell whether ffmpeg 5 reports a read error: such a line begins with the input's name."""
        return (
            self.has_output
            and line.startswith(self.url + b": ")
            and not line.endswith(b"End of file")
        )

    def _add_clock_number(self, number: float) -> None:
        """Collect what `CLOCK` prints: the sample rate, then timestamp and position in samples."""
        self._numbers.append(number)
        if len(self._numbers) == 3:  # noqa: PLR2004
            rate, timestamp, position = self._numbers
            self._numbers.clear()
            if rate > 0:
                reading = ClockReading(timestamp / rate, position / rate, round(rate))
                self.readings.append(reading)
                self.graphs += position == 0


CLOCK = (
    "asetpts='if(isnan(PTS),0,if(lte(abs(PTS-ld(0)),SR/10)*gt(N,0),0,"
    "print(SR,32);print(PTS,32);print(N,32);st(0,PTS)));st(0,ld(0)+NB_SAMPLES);N'"
)
"""A filter that passes all audio and prints timestamps: at the first frame of each filter graph,
and where a timestamp differs from the sample count by more than 0.1 s, which exceeds the jitter of
live recorders. Register 0 holds the end of the audio so far."""


@dataclass(frozen=True, slots=True)
class Input:
    """ffmpeg's input: a file by name, a range of one, or bytes on stdin."""

    path: Path
    head: bytes = b""
    ranges: tuple[range | bytes, ...] = ()
    """Byte ranges of the file and bytes that replace some, sent after `head`; empty = the file."""

    @property
    def is_sent(self) -> bool:
        """Whether ffmpeg reads it from stdin, where it cannot seek."""
        return bool(self.head) or len(self.ranges) > 1

    @property
    def url(self) -> str:
        if self.is_sent:
            return "pipe:0"
        file = f"file:{self.path.absolute()}"
        if not self.ranges:
            return file
        (extent,) = self.ranges
        assert isinstance(extent, range)
        return f"subfile,,start,{extent.start},end,{extent.stop},,:{file}"

    @property
    def protocols(self) -> str:
        """The protocols that ffmpeg may use: no network, and no more than needed."""
        return "file,pipe,subfile" if self.url.startswith("subfile") else "file,pipe"

    def chunks(self) -> Iterator[bytes]:
        """Read the bytes to send."""
        yield self.head
        with self.path.open("rb") as file:
            for part in self.ranges:
                if isinstance(part, bytes):
                    yield part
                    continue
                file.seek(part.start)
                left = len(part)
                while left and (data := file.read(min(left, _PIPE_BYTES))):
                    left -= len(data)
                    yield data


class FfmpegRun:
    """A running ffmpeg process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        executable: str,
        *,
        url: str,
        stdin_data: Iterator[bytes],
        cpu_s: int,
    ) -> None:
        self._process = process
        self._started = time.monotonic()
        self._cpu_s = cpu_s
        self._stdin_data = stdin_data
        self._unsent = memoryview(b"")
        self.executable = executable
        """Path of this ffmpeg."""
        self.log = FfmpegLog(url.encode())

    @property
    def info(self) -> MediaInfo | None:
        """The description of its input; complete once the first block or the end has arrived."""
        return parse_media_info(self.log.text())

    def blocks(self) -> Generator[bytes]:
        """Yield its output until the end.

        One loop serves all pipes, so that a file that causes many log messages cannot block ffmpeg
        on a full stderr. Messages written before a block are in `log` when the block is yielded.
        """
        stdout, stderr, stdin = self._process.stdout, self._process.stderr, self._process.stdin
        assert stdout is not None
        assert stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            if stdin is not None:
                os.set_blocking(stdin.fileno(), False)
                selector.register(stdin, selectors.EVENT_WRITE)
            last_progress = time.monotonic()
            while len(selector.get_map()) > (stdin is not None and not stdin.closed):
                ready = {key.fileobj for key, _ in selector.select(timeout=_STALL_S)}
                if stdin in ready:
                    assert stdin is not None
                    self._send(stdin, selector)
                data = _read(stdout, selector) if stdout in ready else b""
                # After stdout: messages that precede this block are in the pipe by now.
                if stderr in {key.fileobj for key, _ in selector.select(timeout=0)}:
                    self.log.add(_read(stderr, selector))
                if data:
                    yield data
                    # Measured after the yield: a slow consumer is not a stalled ffmpeg.
                    last_progress = time.monotonic()
                if time.monotonic() - last_progress > _STALL_S:
                    raise AudioDecodeError(
                        f"No sound could be decoded within {_STALL_S:g} s. {supported()}"
                    )
        self.log.add(b"\n")

    def _send(self, pipe: IO[bytes], selector: selectors.BaseSelector) -> None:
        """Write what the pipe accepts; close it at the end, or once ffmpeg has closed its side."""
        try:
            while not self._unsent and (data := next(self._stdin_data, None)) is not None:
                self._unsent = memoryview(data)
            if self._unsent:
                self._unsent = self._unsent[os.write(pipe.fileno(), self._unsent[:_SENT_BYTES]) :]
                return
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass
        selector.unregister(pipe)
        with contextlib.suppress(OSError):
            pipe.close()

    def kill(self) -> None:
        """Kill the process; readers of its blocks reach their end."""
        self._process.kill()

    def check_end(self) -> int:
        """Wait for ffmpeg to exit; return its exit status.

        Raises `ServiceUnavailableError` if something other than the file stopped it,
        `DecoderBrokenError` if it could not be started, `AudioDecodeError` if it crashed.
        """
        status = self._process.wait(timeout=_STALL_S)
        if status in _CANNOT_RUN and not self.log.text().startswith("Input"):
            raise DecoderBrokenError(self.log.last_line)
        if self._was_stopped_externally(status):
            logger.warning("ffmpeg was stopped from outside, with status %d", status)
            raise ServiceUnavailableError(
                "The decoder was ended before its time, perhaps because memory is short."
                " Try again later."
            )
        if status < 0:
            # It crashed or exceeded its CPU time: its output is not the whole recording.
            logger.warning("ffmpeg was killed by signal %d: %s", -status, self.log.last_line)
            raise AudioDecodeError(f"The file could not be decoded to its end. {supported()}")
        return status

    def _was_stopped_externally(self, status: int) -> bool:
        """Tell whether a signal or the OOM killer ended it, and not the file.

        A file that exceeds the CPU time limit has ffmpeg killed too, but not before all cores
        together can have used that much time.
        """
        if status != -signal.SIGKILL:
            return status in _TERMINATED or _HANDLED_SIGNAL in self.log.tail
        return (time.monotonic() - self._started) * (os.cpu_count() or 1) < self._cpu_s


class DecoderBrokenError(Exception):
    """ffmpeg cannot be started; the message is the reason."""


def _read(pipe: IO[bytes], selector: selectors.BaseSelector) -> bytes:
    data: bytes = pipe.read1(_PIPE_BYTES)  # type: ignore[attr-defined]
    if not data:
        selector.unregister(pipe)
    return data


@contextlib.contextmanager
def running_ffmpeg(
    executable: str,
    options: Sequence[str],
    *,
    url: str,
    stdin_data: Iterator[bytes] | None = None,
    cpu_s: int,
) -> Iterator[FfmpegRun]:
    """Run ffmpeg on the input `url`; the process is killed when the block exits.

    `stdin_data` is written to its stdin if the input is `pipe:0`. Raises `OSError` if it cannot be
    started.
    """
    process = subprocess.Popen(
        [executable, "-hide_banner", "-nostdin", "-nostats", *options],
        stdin=subprocess.DEVNULL if stdin_data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=_PIPE_BYTES,
        # Ctrl-C in a terminal signals the whole process group; requests under way may still finish.
        process_group=0,
    )
    try:
        _limit(process.pid, cpu_s=cpu_s)
        # SCHED_BATCH: its threads do not preempt each other or the model's to pass on a frame.
        if hasattr(os, "sched_setscheduler"):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(process.pid, os.SCHED_BATCH, os.sched_param(0))
        # A user's pipes may take 64 MB in total; beyond that, and on a Mac, this one keeps its
        # default size.
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
        yield FfmpegRun(
            process, executable, url=url, stdin_data=stdin_data or iter(()), cpu_s=cpu_s
        )
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # Closing flushes; what ffmpeg did not read is no longer needed.
                with contextlib.suppress(OSError):
                    pipe.close()


def _limit(pid: int, *, cpu_s: int) -> None:
    """Set resource limits of a process that has just been started.

    From outside: `preexec_fn` can deadlock in a process with threads, and a wrapper would be one
    more program to install. RLIMIT_NPROC is not set, as it counts all processes and threads of
    the user; ffmpeg starts no processes. Only Linux can limit another process: elsewhere, ffmpeg
    runs without limits (docs/install.md).
    """
    if not hasattr(resource, "prlimit"):
        return
    bounds = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_DATA: _MEMORY_BYTES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        # No file may be written, nor a core dump.
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        # The hard limit too: at the soft CPU limit ffmpeg would exit as if it had finished.
        resource.prlimit(pid, kind, (bound, bound))


def supported() -> str:
    """List the supported formats, in OpenAI's wording."""
    return f"Supported formats: {list(SUPPORTED_FORMATS)}"


def last_line(text: str) -> str:
    """Return a log's last line."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no message"


class Executables:
    """The ffmpeg executables of this machine; a missing or broken one is skipped."""

    def __init__(self, preferred: str) -> None:
        self._preferred = preferred
        self._broken: dict[str, float] = {}
        """Executables that could not be started -> their modification time."""

    def usable(self) -> Iterator[str]:
        """Look for executables: the preferred one first, imageio-ffmpeg's last."""
        candidates = [self._preferred, shutil.which("ffmpeg"), _bundled_ffmpeg()]
        for path in dict.fromkeys(filter(None, candidates)):
            if os.access(path, os.X_OK) and self._broken.get(path) != _changed_at(path):
                yield path

    def note_broken(self, path: str, reason: str) -> None:
        """Skip an executable until its file changes."""
        logger.error("%s cannot be started: %s", path, reason)
        self._broken[path] = _changed_at(path)


def _changed_at(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def _bundled_ffmpeg() -> str | None:
    """Return the ffmpeg inside the package imageio-ffmpeg."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def find_ffmpeg() -> str:
    """Return ffmpeg from the PATH, else the one inside the package imageio-ffmpeg.

    Raises `SettingsError` if there is neither.
    """
    executable = shutil.which("ffmpeg") or _bundled_ffmpeg()
    if executable is None:
        raise SettingsError(
            "no ffmpeg: install it (apt-get install ffmpeg) or `pip install imageio-ffmpeg`"
        )
    return executable


def check_filter(executable: str, audio_filter: str) -> None:
    """Run a filter chain over 0.1 s of silence.

    Raises `SettingsError` with ffmpeg's reason if it rejects the chain, or if the chain does not
    end.
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
        raise SettingsError(f"{refusal}: {last_line(outcome.stderr.decode(errors='replace'))}")
