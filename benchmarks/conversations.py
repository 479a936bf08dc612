"""Simulated conversations with a known answer, from separate recordings of people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.speech.diarization import FloatArray
from parakeet_api.transcript import SAMPLE_RATE, Pcm

Rng = np.random.Generator
Spans = list[tuple[int, int]]

_STEP = 480
"""30 ms."""
_MAX_PAUSE = SAMPLE_RATE // 2
"""A shorter pause within a turn counts as speech, as in the usual reference transcripts."""
_MIN_SPEECH = 3 * _STEP
_QUIETEST = 1e-3
"""Of the power of a recording's loud parts: -30 dB."""
_FADE = 160
_LEVEL = 0.05
"""Root mean square of speech: -26 dBFS."""


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """A recording of one person, and where in it there is speech."""

    samples: FloatArray
    speech: Spans


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of one person's speech, in seconds."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """A recording of several people and who speaks when."""

    samples: FloatArray
    turns: list[Turn]


def read_takes(folder: Path) -> dict[str, list[Take]]:
    """Decode the recordings that `recordings.json` or `../FOLDER.json` lists, by speaker."""
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
    own = folder / "recordings.json"
    manifest = own if own.is_file() else folder.with_suffix(".json")
    takes: dict[str, list[Take]] = {}
    for row in json.loads(manifest.read_text(encoding="utf-8")):
        samples: Pcm = np.concatenate(list(decoder.stream(folder / row["file"])))
        speech = find_speech(samples)
        if speech:
            scaled = (samples / 32_768).astype(np.float32)
            takes.setdefault(str(row["speaker"]), []).append(Take(scaled, speech))
    return takes


def find_speech(samples: Pcm) -> Spans:
    """Return what is at most 30 dB below a clean recording's loud parts, short pauses included."""
    power = (samples[: len(samples) // _STEP * _STEP].reshape(-1, _STEP).astype(float) ** 2).mean(1)
    if not power.any():
        return []
    active = power > np.percentile(power, 95) * _QUIETEST
    edges = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1))) * _STEP
    spans: Spans = []
    for start, end in edges.reshape(-1, 2).tolist():
        if spans and start - spans[-1][1] <= _MAX_PAUSE:
            spans[-1] = spans[-1][0], end
        elif end - start >= _MIN_SPEECH:
            spans.append((start, end))
    return spans


def simulate(
    rng: Rng, takes: dict[str, list[Take]], *, people: int, seconds: float
) -> Conversation:
    """Simulate people who take turns, interject, and speak over the end of each other's turns."""
    names = [str(name) for name in rng.choice(sorted(takes), people, replace=False)]
    length = round(seconds * SAMPLE_RATE)
    mix = np.zeros(length, np.float32)
    spoken: dict[str, Spans] = {name: [] for name in names}

    def say(name: str, start: int, wanted: int) -> int:
        take = takes[name][rng.integers(len(takes[name]))]
        sound, speech = _part(rng, take, wanted)
        sound = sound[: length - start]
        mix[start : start + len(sound)] += sound
        spoken[name] += [
            (start + a, min(start + b, length)) for a, b in speech if start + a < length
        ]
        return start + len(sound)

    position, last = 0, ""
    while position < length - SAMPLE_RATE:
        name = str(rng.choice([n for n in names if n != last]))
        wanted = round(SAMPLE_RATE * float(np.clip(3 * np.exp(rng.normal(0, 0.7)), 0.6, 15)))
        end = say(name, position, wanted)
        if rng.random() < 0.1 and end - position > 2 * SAMPLE_RATE:
            other = str(rng.choice([n for n in names if n != name]))
            say(other, position + (end - position) // 2, SAMPLE_RATE // 2)
        gap = rng.exponential(0.4) if rng.random() > 0.15 else -rng.uniform(0.2, 1.0)
        position = max(position + SAMPLE_RATE // 5, end + round(gap * SAMPLE_RATE))
        last = name
    mix += _room_noise(rng, length)
    turns = [
        Turn(a / SAMPLE_RATE, b / SAMPLE_RATE, name)
        for name, spans in spoken.items()
        for a, b in _merged(spans)
    ]
    return Conversation(np.clip(mix, -1, 1), sorted(turns, key=lambda turn: turn.start))


def _part(rng: Rng, take: Take, wanted: int) -> tuple[FloatArray, Spans]:
    """Return a part of a recording that begins with speech, at the usual level, and its speech."""
    begin = take.speech[rng.integers(len(take.speech))][0]
    end = min(begin + wanted, take.speech[-1][1])
    sound = take.samples[begin:end].copy()
    speech = [(max(a, begin) - begin, min(b, end) - begin) for a, b in take.speech if b > begin]
    speech = [(a, b) for a, b in speech if b > a]
    sound *= _LEVEL * 10 ** (rng.normal(0, 2) / 20) / max(float(np.sqrt(np.mean(sound**2))), 1e-5)
    ramp = np.linspace(0, 1, min(_FADE, len(sound)), dtype=np.float32)
    sound[: len(ramp)] *= ramp
    sound[len(sound) - len(ramp) :] *= ramp[::-1]
    return sound, speech


def _room_noise(rng: Rng, length: int) -> NDArray[np.float32]:
    """Return a low noise, 25 to 40 dB below speech."""
    noise = rng.normal(size=min(length, 10 * SAMPLE_RATE)).astype(np.float32)
    return np.resize(noise * _LEVEL * 10 ** (-rng.uniform(25, 40) / 20), length)


def _merged(spans: Spans) -> Spans:
    merged: Spans = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= _MAX_PAUSE:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
