"""Read plain wav and flac files in this process: a clip is recognised faster than ffmpeg starts.

Only what leaves no question is read here. Whatever is unusual, long or damaged is left to ffmpeg,
which runs under limits and in a process of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from parakeet_api.transcript import SAMPLE_RATE, Pcm

_MOST_FRAMES = 60 * 48_000
"""Longest clip that is read at once, in frames of its own rate: a minute at 48 kHz, 23 MB of
floats. Beyond it ffmpeg's start (25 ms) no longer counts."""
_BLOCK = 30 * SAMPLE_RATE
_MOST_CHANNELS = 2
"""How more are mixed is a question of their places."""
_RATES = range(8_000, 192_001)
_FORMATS = frozenset({"WAV", "WAVEX", "FLAC"})
_ENCODINGS = frozenset({"PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"})


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording that is read without a process."""

    seconds: float
    blocks: Generator[Pcm]


def open_sound(path: Path) -> Sound | None:
    """Open a plain wav or flac file; `None` for anything that ffmpeg should look at.

    Any wav file of 16-bit samples at 16 kHz, mono, is read as a stream; other rates, stereo and
    flac are read whole, if they are short, and converted.
    """
    if not _is_wav_or_flac(path):
        return None
    try:
        with soundfile.SoundFile(path) as file:
            if not _is_plain(file):
                return None
            seconds = file.frames / file.samplerate
            if _needs_no_conversion(file):
                return Sound(seconds, _read(path))
            samples = _converted(file) if file.frames <= _MOST_FRAMES else None
    except soundfile.SoundFileError:
        return None
    return None if samples is None else Sound(seconds, (block for block in (samples,)))


def _is_wav_or_flac(path: Path) -> bool:
    """Look at the first bytes: the library itself would try two dozen formats."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith(b"fLaC") or (head[:4], head[8:]) == (b"RIFF", b"WAVE")


def _is_plain(file: soundfile.SoundFile) -> bool:
    return (
        file.format in _FORMATS
        and file.subtype in _ENCODINGS
        and file.channels <= _MOST_CHANNELS
        and file.samplerate in _RATES
        # 0 where a recorder did not go back to write it.
        and file.frames > 0
    )


def _needs_no_conversion(file: soundfile.SoundFile) -> bool:
    return (file.format, file.subtype, file.channels, file.samplerate) == (
        "WAV",
        "PCM_16",
        1,
        SAMPLE_RATE,
    )


def _read(path: Path) -> Generator[Pcm]:
    with soundfile.SoundFile(path) as file:
        while len(block := file.read(_BLOCK, dtype="int16")):
            yield block


def _converted(file: soundfile.SoundFile) -> Pcm | None:
    """Decode, mix and resample a whole file; `None` if it is not as long as it says."""
    sound = file.read(dtype="float32", always_2d=True)
    if len(sound) != file.frames:
        return None
    mono = sound.mean(axis=1)
    if file.samplerate != SAMPLE_RATE:
        mono = soxr.resample(mono, file.samplerate, SAMPLE_RATE)
    # Floats in a file can be anything.
    finite = np.nan_to_num(mono, nan=0.0, posinf=1.0, neginf=-1.0)
    samples: Pcm = np.clip(np.rint(finite * 32768), -32768, 32767).astype(np.int16)
    return samples
