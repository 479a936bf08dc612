"""Run ffmpeg, contained: samples on one pipe, all that it says on the other, bounds around it.

The upload is hostile: the formats and protocols that ffmpeg may open are listed, so that a
playlist cannot make it read another file or call out, and its time, memory and output are bounded.
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
"""Named in error messages, as OpenAI names them; more than these are understood."""

DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,dv,eac3,flac,flv,gsm,gxf,iff,ircam,loas,matroska,"
    "webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nistsphere,nut,ogg,qcp,rm,"
    "sox,tak,truehd,mlp,tta,voc,w64,wav,wtv,wv"
)
"""Containers that hold their own media. Playlists and scripts (concat, hls, dash, sdp) stay out."""

_PIPE_BYTES = 1024 * 1024
"""16 s of mono sound, the most that Linux gives anyone. ffmpeg can decode ahead while the
interpreter is busy, and a read, for which this thread must get hold of the interpreter, takes much
at once: with the usual 64 KiB, decoding took half of a long file's time."""
_SENT_BYTES = 64 * 1024
_STALL_S = 60.0
"""A file that keeps ffmpeg silent for so long is not media that can be used."""
_MEMORY_BYTES = 1024**3
"""Memory of its own that ffmpeg may have. Decoding takes 0.1 GB (4K video, 8 channels at 192
kHz)."""
_OPEN_FILES = 32
"""ffmpeg opens the upload, its pipes, and what its libraries look up at the start: 12 at most."""
_HEAD_BYTES = 64 * 1024
"""ffmpeg describes its input first, in half a line to three lines a stream; a broken file then
floods with complaints."""
_MAX_LINE = 4096

_ASKED_TO_END = frozenset({-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP})
"""Statuses of an ffmpeg that did not handle the signal yet, or never does."""
_ENDED_WELL = b"received signal"
"""The last words of one that did: what it had decoded until then looks like all there is. Its
status alone, 255, some damaged files have as well."""
_CANNOT_RUN = frozenset({126, 127})
"""Statuses of a program that the system or its loader could not start."""
_LAST_WORDS = 200
"""Bytes."""
_FILTER_CHECK_S = 30.0
"""ffmpeg takes 0.1 s to filter a tenth of a second."""

_NUMBER = re.compile(rb"(?:\[Eval @ 0x[0-9a-f]+\] )?(-?\d+\.\d+|-?nan|-?inf)")
_CUT_SHORT = re.compile(
    rb": partial file|File ended prematurely"
    rb"|Error during demuxing: (?!End of file)"
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
class Said:
    """What ffmpeg says, line by line, as it comes."""

    url: bytes = b""
    """How its input is called."""
    readings: deque[ClockReading] = field(default_factory=deque)
    """Of the timestamps; whoever consumes samples takes them out."""
    graphs: int = 0
    """How often the track's filters were built: more than once where its format changes."""
    cut_short: bool = False
    """Whether it says that the file ends too early, or cannot be read on."""
    lacks_index: bool = False
    """Whether what should stand at the file's end, and says where its sound is, is missing."""
    ends_corrupt: bool = False
    """Whether it met a packet that is not whole."""
    undecodable: int = 0
    """Packets that the decoder refused."""
    lacks_decoder: bool = False
    unmixable_channels: int | None = None
    last_words: bytes = b""
    head: bytearray = field(default_factory=bytearray)
    _rest: bytes = b""
    _numbers: list[float] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """Take what came. Raises `AudioDecodeError` where it goes on without all of the sound."""
        self.head += data[: _HEAD_BYTES - len(self.head)]
        self.last_words = (self.last_words + data)[-_LAST_WORDS:]
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[-_MAX_LINE:]
        for line in lines:
            self._take(line)

    def text(self) -> str:
        """Give the beginning."""
        return self.head.decode("utf-8", "replace")

    @property
    def last_line(self) -> str:
        return last_line(self.last_words.decode("utf-8", "replace"))

    def _take(self, line: bytes) -> None:
        if number := _NUMBER.fullmatch(line):
            self._take_number(float(number[1]))
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
        """Tell whether ffmpeg 5 could not read on: it begins with the input's name then."""
        begun = b"Output #0" in self.head
        return begun and line.startswith(self.url + b": ") and not line.endswith(b"End of file")

    def _take_number(self, number: float) -> None:
        """Gather what `CLOCK` prints: a rate, a timestamp and a position, in samples."""
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
"""A filter that lets all sound through and tells where its timestamps are: at the first frame of
each filter graph, and where they leave the sound's own clock by more than 0.1 s, the jitter of live
recorders. Register 0 holds where the sound so far ends."""


@dataclass(frozen=True, slots=True)
class Input:
    """What ffmpeg reads: a file by its name, a stretch of one, or bytes that are sent to it."""

    path: Path
    head: bytes = b""
    ranges: tuple[range, ...] = ()
    """Of the file's bytes, behind `head`; empty = the file itself."""

    @property
    def is_sent(self) -> bool:
        """Whether ffmpeg reads it from a pipe, in which it cannot seek."""
        return bool(self.head) or len(self.ranges) > 1

    @property
    def url(self) -> str:
        if self.is_sent:
            return "pipe:0"
        file = f"file:{self.path.absolute()}"
        if not self.ranges:
            return file
        return f"subfile,,start,{self.ranges[0].start},end,{self.ranges[0].stop},,:{file}"

    @property
    def protocols(self) -> str:
        """List what ffmpeg may open: nothing outside this machine, and no more than is needed."""
        return "file,pipe,subfile" if self.url.startswith("subfile") else "file,pipe"

    def chunks(self) -> Iterator[bytes]:
        """Read what is to be sent."""
        yield self.head
        with self.path.open("rb") as file:
            for part in self.ranges:
                file.seek(part.start)
                left = len(part)
                while left and (data := file.read(min(left, _PIPE_BYTES))):
                    left -= len(data)
                    yield data


class FfmpegRun:
    """A running ffmpeg."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        executable: str,
        *,
        url: str,
        fed: Iterator[bytes],
        cpu_s: int,
    ) -> None:
        self._process = process
        self._started = time.monotonic()
        self._cpu_s = cpu_s
        self._fed = fed
        self._unsent = memoryview(b"")
        self.executable = executable
        """Which ffmpeg it is."""
        self.said = Said(url.encode())

    @property
    def info(self) -> MediaInfo | None:
        """What it found; complete once there is a block, or the end."""
        return parse_media_info(self.said.text())

    def blocks(self) -> Generator[bytes]:
        """Yield its output until the end.

        All pipes are served by one loop: a file that makes ffmpeg complain at length can then not
        block it on a full pipe. What it said before it wrote a block is in `said` when the block
        is given.
        """
        output, log, to_send = self._process.stdout, self._process.stderr, self._process.stdin
        assert output is not None
        assert log is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(log, selectors.EVENT_READ)
            if to_send is not None:
                os.set_blocking(to_send.fileno(), False)
                selector.register(to_send, selectors.EVENT_WRITE)
            last_progress = time.monotonic()
            while len(selector.get_map()) > (to_send is not None and not to_send.closed):
                ready = {key.fileobj for key, _ in selector.select(timeout=_STALL_S)}
                if to_send in ready:
                    assert to_send is not None
                    self._send(to_send, selector)
                data = _read(output, selector) if output in ready else b""
                # After the output: all that was said before it is in the pipe by now.
                if log in {key.fileobj for key, _ in selector.select(timeout=0)}:
                    self.said.add(_read(log, selector))
                if data:
                    yield data
                    # Taken after the yield: a slow consumer is not a stalled ffmpeg.
                    last_progress = time.monotonic()
                if time.monotonic() - last_progress > _STALL_S:
                    raise AudioDecodeError(
                        f"No sound could be decoded within {_STALL_S:g} s. {supported()}"
                    )
        self.said.add(b"\n")

    def _send(self, pipe: IO[bytes], selector: selectors.BaseSelector) -> None:
        """Send what the pipe takes; close it at the end, or where nobody reads any more."""
        try:
            while not self._unsent and (data := next(self._fed, None)) is not None:
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
        """End it at once; whoever reads its blocks is at their end."""
        self._process.kill()

    def check_end(self) -> int:
        """Wait for its end; give its status.

        Raises `ServiceUnavailableError` where it was ended by anything but the file,
        `DecoderBrokenError` where it could not be started, `AudioDecodeError` where it crashed.
        """
        status = self._process.wait(timeout=_STALL_S)
        if status in _CANNOT_RUN and not self.said.text().startswith("Input"):
            raise DecoderBrokenError(self.said.last_line)
        if self._was_ended_from_outside(status):
            logger.warning("ffmpeg was ended from outside, with status %d", status)
            raise ServiceUnavailableError(
                "The decoder was ended before its time, perhaps because memory is short."
                " Try again later."
            )
        if status < 0:
            # It crashed, or took too much time: what came before is not the whole recording.
            logger.warning("ffmpeg was ended by signal %d: %s", -status, self.said.last_line)
            raise AudioDecodeError(f"The file could not be decoded to its end. {supported()}")
        return status

    def _was_ended_from_outside(self, status: int) -> bool:
        """Tell whether someone's signal or the system's lack of memory ended it, not the file.

        A file that takes too much time has it killed too, but no earlier than all cores together
        can have spent so much.
        """
        if status != -signal.SIGKILL:
            return status in _ASKED_TO_END or _ENDED_WELL in self.said.last_words
        return (time.monotonic() - self._started) * (os.cpu_count() or 1) < self._cpu_s


class DecoderBrokenError(Exception):
    """An ffmpeg that cannot be started; the message says why."""


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
    fed: Iterator[bytes] | None = None,
    cpu_s: int,
) -> Iterator[FfmpegRun]:
    """Run ffmpeg on an input that is called `url`; whatever happens in the block, it is gone after.

    `fed` is what it is sent, where the input is `pipe:0`. Raises `OSError` where it cannot be
    started.
    """
    process = subprocess.Popen(
        [executable, "-hide_banner", "-nostdin", "-nostats", *options],
        stdin=subprocess.DEVNULL if fed is None else subprocess.PIPE,
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
        yield FfmpegRun(process, executable, url=url, fed=fed or iter(()), cpu_s=cpu_s)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # What it did not take is of no use any more.
                with contextlib.suppress(OSError):
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


def supported() -> str:
    """Say which formats are understood, as OpenAI does."""
    return f"Supported formats: {list(SUPPORTED_FORMATS)}"


def last_line(text: str) -> str:
    """Give a log's last line."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


class Executables:
    """The ffmpegs of this machine: one that is gone or broken gives way to the next."""

    def __init__(self, preferred: str) -> None:
        self._preferred = preferred
        self._broken: dict[str, float] = {}
        """Programs that could not be started, and when they were last changed."""

    def usable(self) -> Iterator[str]:
        """Look for them anew, the preferred one first, imageio-ffmpeg's last."""
        found = [self._preferred, shutil.which("ffmpeg"), _bundled_ffmpeg()]
        for path in dict.fromkeys(filter(None, found)):
            if os.access(path, os.X_OK) and self._broken.get(path) != _changed_at(path):
                yield path

    def note_broken(self, path: str, reason: str) -> None:
        """Leave one out until it is changed."""
        logger.error("%s cannot be started: %s", path, reason)
        self._broken[path] = _changed_at(path)


def _changed_at(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def _bundled_ffmpeg() -> str | None:
    """Give the one inside the package imageio-ffmpeg."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def find_ffmpeg() -> str:
    """Take ffmpeg from the PATH, else the one inside the package imageio-ffmpeg.

    Raises `SettingsError` where there is neither.
    """
    found = shutil.which("ffmpeg") or _bundled_ffmpeg()
    if found is None:
        raise SettingsError(
            "no ffmpeg: install it (apt-get install ffmpeg) or `pip install imageio-ffmpeg`"
        )
    return found


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
        raise SettingsError(f"{refusal}: {last_line(outcome.stderr.decode(errors='replace'))}")
