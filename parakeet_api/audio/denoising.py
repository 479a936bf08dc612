"""Run the operator's filter (`DENOISE_FILTER`) over decoded audio, in an ffmpeg of its own."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from parakeet_api.audio.ffmpeg import DecoderBrokenError, Executables, FfmpegRun
from parakeet_api.errors import ServiceUnavailableError
from parakeet_api.transcript import SAMPLE_RATE, Pcm

logger = logging.getLogger(__name__)

_FRAME_SAMPLES = 2 * SAMPLE_RATE
"""Frame size after the filter. Since version 7, ffmpeg runs filters in threads of their own, and
waking one for every 24 ms of an mp3 costs more than decoding it."""


class Runner(Protocol):
    """The decoder, as this module uses it."""

    @property
    def executables(self) -> Executables:
        """The ffmpeg executables of this machine."""

    def running(
        self, options: Sequence[str], *, url: str, stdin_data: Callable[[], Iterator[bytes]] | None
    ) -> AbstractContextManager[FfmpegRun]:
        """Run ffmpeg."""


def denoised(pcm: Iterable[Pcm], audio_filter: str, runner: Runner) -> Generator[Pcm]:
    """Yield the filter's output, in blocks of as many channels as those of `pcm`.

    Raises `ServiceUnavailableError` if the filter fails.
    """
    blocks = iter(pcm)
    first = next(blocks, np.zeros(0, np.int16))
    apart = first.shape[1:]
    frame_bytes = 2 * math.prod(apart)
    sent = (block.tobytes() for block in itertools.chain([first], blocks))
    options = _options(audio_filter, channels=math.prod(apart))
    with runner.running(options, url="pipe:0", stdin_data=lambda: sent) as run:
        rest = b""
        for data in run.blocks():
            joined = rest + data
            whole_bytes = len(joined) - len(joined) % frame_bytes
            rest = joined[whole_bytes:]
            yield np.frombuffer(joined[:whole_bytes], dtype="<i2").reshape(-1, *apart)
        _check_end(run, runner)


def _options(audio_filter: str, *, channels: int) -> list[str]:
    chain = f"{audio_filter},asetnsamples=n={_FRAME_SAMPLES}:p=0"
    raw = ("-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", str(channels))
    options = ["-loglevel", "repeat+info", "-protocol_whitelist", "file,pipe", "-threads", "1"]
    return [*options, *raw, "-i", "pipe:0", "-af", chain, *raw, "pipe:1"]


def _check_end(run: FfmpegRun, runner: Runner) -> None:
    """Wait for ffmpeg; audio that it did not filter would be lost."""
    try:
        status = run.check_end()
    except DecoderBrokenError as error:
        runner.executables.note_broken(run.executable, str(error))
        status = 1
    if status:
        logger.error("DENOISE_FILTER failed: %s", run.log.last_line)
        raise ServiceUnavailableError(
            "The server's audio filter (DENOISE_FILTER) failed on this recording. Tell the"
            " operator."
        )
