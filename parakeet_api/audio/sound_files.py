"""Read plain wav and flac files without ffmpeg, whose start takes longer than recognising a clip.

Unusual, long or damaged files are left to ffmpeg, which runs in a process of its own, under
resource limits.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from parakeet_api.audio.channels import Channels
from parakeet_api.audio.downmix import Downmix, Mono
from parakeet_api.audio.levels import level_of, round_to_pcm, to_pcm
from parakeet_api.transcript import SAMPLE_RATE, Caveat, Pcm

_MAX_FRAMES = 60 * 48_000
"""Longest file that is read whole, in frames at its own rate: a minute at 48 kHz, 23 MB of floats.
For longer files ffmpeg's start (25 ms) no longer matters."""
_BLOCK = 30 * SAMPLE_RATE
_MAX_CHANNELS = 2
"""The downmix of more depends on their layout, which ffmpeg knows."""
_RATES = range(8_000, 192_001)
_FORMATS = frozenset({"WAV", "WAVEX", "FLAC"})
_ENCODINGS = frozenset({"PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"})
_OVER_16_BITS = frozenset({"PCM_24", "PCM_32", "FLOAT"})
"""Encodings of more than 16 bits."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording that is read without ffmpeg."""

    seconds: float
    """Duration by its header."""
    blocks: Generator[Pcm]
    caveats: tuple[Caveat, ...] = ()


def open_sound(path: Path, channels: Channels) -> Sound | None:
    """Open a plain wav or flac file; `None` for a file that ffmpeg should decode.

    A wav file of 16-bit samples at 16 kHz, mono, is read as a stream whatever its length. Other
    files are read whole and converted if they are short. A flac file with more than it declares,
    apart from what libsndfile reads in advance, is left to ffmpeg, which decodes all of it.
    """
    if not _is_wav_or_flac(path):
        return None
    try:
        with path.open("rb") as raw, soundfile.SoundFile(raw) as file:
            if not _is_plain(file):
                return None
            seconds = file.frames / file.samplerate
            if _needs_no_conversion(file):
                return Sound(seconds, _read(path))
            if file.frames > _MAX_FRAMES:
                return None
            sound = _converted(file, seconds, channels)
            return None if file.format == "FLAC" and raw.read(1) else sound
    except soundfile.SoundFileError:
        return None


def _is_wav_or_flac(path: Path) -> bool:
    """Check the magic number: libsndfile itself would try two dozen formats."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith(b"fLaC") or (head[:4], head[8:]) == (b"RIFF", b"WAVE")


def _is_plain(file: soundfile.SoundFile) -> bool:
    return (
        file.format in _FORMATS
        and file.subtype in _ENCODINGS
        and file.channels <= _MAX_CHANNELS
        and file.samplerate in _RATES
        # 0 if the recorder did not go back to write it.
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


def _converted(file: soundfile.SoundFile, seconds: float, channels: Channels) -> Sound | None:
    """Decode, mix and resample a whole file; `None` if it is not as long as its header says."""
    frames = file.read(dtype="float32", always_2d=True)
    if len(frames) != file.frames:
        return None
    downmix = Downmix(file.samplerate)
    sound: Mono = np.concatenate(list(channels.blocks([frames], downmix, rate=file.samplerate)))
    if file.samplerate != SAMPLE_RATE:
        sound = soxr.resample(sound, file.samplerate, SAMPLE_RATE)
    if file.subtype in _OVER_16_BITS:
        pcm = to_pcm([sound], max_level=lambda: 1.0, measure=lambda: level_of([sound]))
    else:
        pcm = iter([round_to_pcm(sound)])
    samples = np.concatenate(list(pcm))
    return Sound(seconds, (block for block in (samples,)), tuple(downmix.caveats()))
