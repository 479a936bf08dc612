"""Recordings of several people, made of the clips."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import PATIENCE_S, Clip, decode, encode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.transcript import SAMPLE_RATE

PAUSE_S = 1.0
SIDE_BY_SIDE = "[0]apad[a];[1]apad[b];[a][b]join=inputs=2:channel_layout=stereo"


def make_talk(clips: Sequence[Clip], decoder: FfmpegDecoder, folder: Path) -> Path:
    """Make a talk of clips, one after the other."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.int16)
    parts = [part for clip in clips for part in (decode(decoder, clip.path), pause)]
    (folder / "talk.raw").write_bytes(np.concatenate(parts).tobytes())
    raw = ("-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1")
    return encode(folder / "talk.raw", folder / "talk.flac", before=raw)


def turns_of(clips: Sequence[Clip], speakers: Sequence[int]) -> list[tuple[float, float, int]]:
    """Return `(start, end, speaker)` of each clip of a talk."""
    ends = np.cumsum([clip.duration_s + PAUSE_S for clip in clips]).tolist()
    return list(zip([0.0, *ends[:-1]], ends, speakers, strict=True))


def make_call(sides: Sequence[Path], target: Path, *options: str) -> Path:
    """Make a recording with one side of a call a channel, both talking from its start."""
    inputs = [part for side in sides for part in ("-i", str(side))]
    command = [find_ffmpeg(), "-v", "error", "-y", *inputs, "-filter_complex", SIDE_BY_SIDE]
    subprocess.run([*command, *options, str(target)], check=True, timeout=PATIENCE_S)
    return target
