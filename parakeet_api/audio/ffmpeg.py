"""Run ffmpeg in a confined process: samples on stdout, its log on stderr, resource limits set.

Uploads are untrusted. Formats and protocols are on an allow-list, so that a playlist cannot make
ffmpeg read another file or open a connection; CPU time, memory and output are limited.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from parakeet_api.audio.ffmpeg_log import FfmpegLog, last_line
from parakeet_api.audio.media_info import MediaInfo, parse_media_info
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
_TERMINATED = frozenset({-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP})
"""Exit statuses of an ffmpeg that a signal ended before its handler was installed."""
_HANDLED_SIGNAL = b"received signal"
"""ffmpeg's last log line if it handled the signal: its output then looks complete. The exit
status, 255, does not tell: some damaged files cause it as well."""
_CANNOT_RUN = frozenset({126, 127})
"""Exit statuses of a program that the system or the dynamic loader could not start."""
_FILTER_CHECK_S = 30.0
"""ffmpeg takes 0.1 s to filter a tenth of a second."""


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
    def end(self) -> int:
        """Offset in the file at which the input ends."""
        last = self.ranges[-1] if self.ranges else None
        return last.stop if isinstance(last, range) else self.path.stat().st_size

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
