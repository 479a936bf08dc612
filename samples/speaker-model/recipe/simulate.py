"""Simulate conversations of one to four people from the mel spectrograms of single recordings.

Powers of several voices add up, so mixing needs no waveform; rooms, microphones, noise and
telephone lines are factors and filters of the bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mel import BANDS, FLOOR, RATE, log_mel
from scipy.signal import lfilter

SUBSAMPLING = 8
"""Mel frames of 10 ms in one frame of the model."""
SPEAKERS = 4
SPEEDS = (1.0, 0.88, 1.13)
"""A recording at another speed counts as another speaker: pitch and formants change with it."""


def hertz_of_bands() -> np.ndarray:
    import librosa

    return librosa.mel_frequencies(n_mels=BANDS + 2, fmin=0, fmax=RATE / 2)[1:-1]


HERTZ = hertz_of_bands()


def warp(speed: float) -> np.ndarray:
    """Return the matrix that moves powers of bands to where they are at another speed."""
    places = np.interp(HERTZ / speed, HERTZ, np.arange(BANDS))
    low = np.floor(places).astype(int)
    share = places - low
    matrix = np.zeros((BANDS, BANDS), np.float32)
    matrix[low, np.arange(BANDS)] = 1 - share
    matrix[np.minimum(low + 1, BANDS - 1), np.arange(BANDS)] += share
    return matrix


WARPS = [warp(speed) for speed in SPEEDS]


class Voices:
    """The shards that `prepare.py` has written so far, by speaker."""

    def __init__(self, folder: Path, speakers: list[str]) -> None:
        self.folder = folder
        self.number = {name: number for number, name in enumerate(speakers)}
        self.recordings: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.of_source: dict[str, list[str]] = {}
        self.read: set[str] = set()
        noise = np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32)
        self.noise = np.exp(log_mel(torch.from_numpy(noise)).numpy())
        self.noise /= self.noise.mean(axis=0)

    def refresh(self) -> int:
        """Read new shards; return how many there are."""
        for path in sorted(self.folder.glob("???.npz")):
            if path.name in self.read:
                continue
            self.read.add(path.name)
            shard = np.load(path)
            mel, spans = shard["mel"], shard["spans"]
            for row, speaker, source in zip(
                shard["rows"].tolist(), shard["speakers"], shard["sources"], strict=True
            ):
                offset, length, first, last = row
                if last > first:
                    own = self.recordings.setdefault(str(speaker), [])
                    own.append((mel[offset : offset + length], spans[first:last]))
                    names = self.of_source.setdefault(str(source), [])
                    if str(speaker) not in names:
                        names.append(str(speaker))
        return len(self.read)

    def pick(self, rng: np.random.Generator, count: int) -> list[tuple[str, int]]:
        """Return people and speeds; mostly of one source, so that the channel tells nothing."""
        sources = [names for names in self.of_source.values() if len(names) >= count]
        if sources and rng.random() < 0.75:
            weights = np.array([len(names) for names in sources], float)
            pool = sources[rng.choice(len(sources), p=weights / weights.sum())]
        else:
            pool = list(self.recordings)
        people = rng.choice(len(pool), min(count, len(pool)), replace=False)
        return [(pool[person], int(rng.integers(len(SPEEDS)))) for person in people]

    def turn(self, rng: np.random.Generator, who: tuple[str, int], frames: int):
        """Return powers and speech of a turn of at most `frames`."""
        name, variant = who
        own = self.recordings[name]
        mel, spans = own[rng.integers(len(own))]
        speed = SPEEDS[variant]
        need = int(frames * speed)
        start = int(spans[rng.integers(len(spans)), 0])
        if rng.random() < 0.5:
            start += int(rng.random() * max(0, int(spans[-1, 1]) - start - need))
        end = min(len(mel), start + need, int(spans[-1, 1]) + 10)
        chosen = start + (np.arange(int(max(1, end - start) / speed)) * speed).astype(int)
        chosen = np.minimum(chosen, len(mel) - 1)
        power = np.exp(mel[chosen].astype(np.float32))
        if variant:
            power = power @ WARPS[variant]
        speech = np.zeros(len(mel), bool)
        for span_start, span_end in spans:
            speech[span_start:span_end] = True
        return power, speech[chosen]


@dataclass(frozen=True)
class Manner:
    """How people take turns in one conversation; times in mel frames."""

    median_turn: float
    overlap: float
    """Share of the turns that start before the last one ends."""
    pause: float


def manner(rng: np.random.Generator, *, longest: float) -> Manner:
    medians = [median for median in (80, 120, 200, 300, 450) if median <= longest]
    return Manner(
        median_turn=float(rng.choice(medians)),
        overlap=float(rng.choice([0.0, 0.1, 0.25, 0.4])),
        pause=float(rng.choice([10, 30, 60, 120])),
    )


def take_turns(rng, how: Manner, people: int, length: int, place) -> None:
    """Place turn after turn; `place(person, start, frames)` returns the turn's length."""
    position = int(rng.exponential(how.pause))
    shares = rng.dirichlet(np.full(people, 3.0)) + 0.15
    person = int(rng.integers(people))
    while position < length:
        size = int(np.clip(how.median_turn * np.exp(rng.normal(0, 0.7)), 40, 1_200))
        end = position + place(person, position, size)
        if people > 1 and rng.random() < 0.12 and end - position > 200:
            other = int((person + 1 + rng.integers(people - 1)) % people)
            place(other, position + int(rng.random() * (end - position)), int(rng.uniform(30, 90)))
        if people > 1 and rng.random() < how.overlap:
            gap = -min(rng.uniform(20, 250), 0.7 * (end - position))
        else:
            gap = rng.exponential(how.pause)
            if rng.random() < 0.05:
                gap += rng.uniform(100, 400)
        position = max(position + 10, end + int(gap))
        if people > 1 and rng.random() < 0.9:
            others = shares * (np.arange(people) != person)
            person = int(rng.choice(people, p=others / others.sum()))


def curve(rng: np.random.Generator, decibels: float) -> np.ndarray:
    """Return factors of the bands' powers that vary smoothly."""
    points = rng.uniform(-decibels, decibels, 6)
    return (10 ** (np.interp(np.linspace(0, 1, BANDS), np.linspace(0, 1, 6), points) / 10)).astype(
        np.float32
    )


def conversation(rng: np.random.Generator, voices: Voices, frames: int, people: int, longest: float):
    """Simulate a conversation of `frames` model frames.

    Returns log mel (float32 [8 * frames, BANDS]), speech (bool [frames, SPEAKERS], in the order in
    which people begin to speak) and their classes in that order (-1 = nobody).
    """
    length = frames * SUBSAMPLING
    chosen = voices.pick(rng, people)
    people = len(chosen)
    coloured = rng.random() < 0.5
    factors = [
        10 ** (rng.normal(0, 3) / 10) * (curve(rng, 6) if coloured else np.float32(1))
        for _ in chosen
    ]
    mix = np.zeros((length, BANDS), np.float32)
    speech = np.zeros((people, length), bool)

    def place(person: int, start: int, size: int) -> int:
        power, active = voices.turn(rng, chosen[person], size)
        level = power[active].mean() if active.any() else power.mean()
        end = min(length, start + len(power))
        if end > start:
            mix[start:end] += power[: end - start] * (factors[person] / max(level, 1e-8))
            speech[person, start:end] |= active[: end - start]
        return len(power)

    take_turns(rng, manner(rng, longest=longest), people, length, place)
    if rng.random() < 0.4:
        decay = 10 ** (-6 / rng.uniform(12, 50))
        tail = lfilter([rng.uniform(0.02, 0.3) * (1 - decay)], [1, -decay], mix, axis=0)
        mix += tail.astype(np.float32)
    begin = rng.integers(max(1, len(voices.noise) - length))
    noise = np.resize(voices.noise[begin:], (length, BANDS))
    mix += noise * curve(rng, 10) * 10 ** (-rng.uniform(8, 50) / 10)
    if rng.random() < 0.15:
        mix[:, (HERTZ < 300) | (HERTZ > 3_400)] *= 1e-5
    mix *= 10 ** (rng.uniform(-25, 10) / 10) * LEVEL
    return np.log(mix + FLOOR), *in_order_of_arrival(
        speech, [voices.number[name] * len(SPEEDS) + variant for name, variant in chosen]
    )


LEVEL = 0.3
"""Mean power of a band in speech whose peak is at -6 dB."""


def in_order_of_arrival(speech: np.ndarray, classes: list[int]):
    """Return frames of speech and classes, sorted by who speaks first."""
    frames = speech.reshape(len(speech), -1, SUBSAMPLING).mean(axis=2) > 0.5
    first = np.where(frames.any(axis=1), frames.argmax(axis=1), frames.shape[1])
    order = [person for person in np.argsort(first, kind="stable") if frames[person].any()]
    sorted_frames = np.zeros((frames.shape[1], SPEAKERS), bool)
    sorted_frames[:, : len(order)] = frames[order].T
    sorted_classes = np.full(SPEAKERS, -1)
    sorted_classes[: len(order)] = [classes[person] for person in order]
    return sorted_frames, sorted_classes
