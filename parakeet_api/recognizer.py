"""Words from waveforms: the `Recognizer` protocol and its adapter to NVIDIA NeMo.

The model is driven below `transcribe()`, which is not thread-safe,
leaves modules in training mode and pads short clips: preprocessor (fp32) -> encoder (half
precision where it pays) -> token decoder (fp32).
"""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from parakeet_api.errors import DeviceLostError, ModelLoadError
from parakeet_api.heap import HeapTrimmer
from parakeet_api.nemo_model import (
    LoadedModel,
    ModelInfo,
    ModelOptions,
    blank_id,
    context_is_lost,
    encode,
    extend_positions,
    frame_samples,
    is_memory_shortage,
    load_model,
    padded_width,
)
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Token, Word

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

WORD_START = "\u2581"
"""SentencePiece's mark of a space before a piece."""


class OutOfDeviceMemoryError(Exception):
    """The batch needs more of the card's memory than is free."""


class Recognizer(Protocol):
    """What the rest of the service asks of a model."""

    info: ModelInfo

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Give each chunk's words, in order, with times in the recording."""
        ...

    def close(self) -> None:
        """Give the model's memory back; the recognizer is of no use afterwards."""
        ...


class NemoRecognizer:
    """A Parakeet-TDT checkpoint, ready for inference.

    Safe to call from several threads: nothing in the model changes between calls.
    """

    def __init__(self, loaded: LoadedModel, options: ModelOptions) -> None:
        self.info = loaded.info
        self._options = options
        self._model = loaded.network
        self._decoder = loaded.decoder
        self._heap = HeapTrimmer()
        self._lost = False
        """Whether the card refuses further work."""
        pieces = self._model.tokenizer.ids_to_tokens(list(range(blank_id(self._model))))
        # A text each, shared by all its tokens: ten hours have 200,000.
        self._texts: list[str] = [piece.replace(WORD_START, " ") for piece in pieces]
        self._frame_samples = frame_samples(self._model)
        self._positions_lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, options: ModelOptions) -> NemoRecognizer:
        """Restore a `.nemo` file for inference.

        Raises `CheckpointError`, naming the file, if it is not a complete Parakeet-TDT checkpoint;
        `SettingsError` for a precision that the device does not have; `ModelLoadError` if the card
        has not enough free memory, `DeviceLostError` if it refuses all work.
        """
        try:
            return cls(load_model(path, options), options)
        except Exception as error:
            if not is_memory_shortage(error):
                if context_is_lost(options.device):
                    raise DeviceLostError from error
                raise
            shortage = str(error).partition("\n")[0]
        # Only now: the error held what was loaded already, and so the memory.
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        raise ModelLoadError(f"The card has not enough free memory for the model: {shortage}")

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Give each chunk's words, in order, with times in the recording.

        One forward pass for all: the result is the same as one by one, up to the encoder's
        rounding (2e-6 in fp32). Digital silence has no words, and costs no pass: 12 hours of it
        are a file of half a megabyte. Raises `OutOfDeviceMemoryError`, or `DeviceLostError` if the
        card refuses all further work of this process.
        """
        audible = [chunk for chunk in chunks if chunk.samples.any()]
        words = iter(self._recognize(audible) if audible else [])
        return [next(words) if chunk.samples.any() else [] for chunk in chunks]

    def _recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        import torch

        shortage: str | None = None
        try:
            self._make_room()
            with torch.inference_mode():
                encoded, lengths = self._encode(chunks)
                emissions = self._emissions(encoded, self._decoder.decode(encoded, lengths))
            self._give_back()
        except Exception as error:
            if is_memory_shortage(error):
                shortage = str(error)
            elif context_is_lost(self.info.device):
                self._lost = True
                raise DeviceLostError from error
            else:
                raise
        if shortage is not None:
            # Only now: the error held the failed pass, its tensors and so the memory.
            torch.cuda.empty_cache()
            raise OutOfDeviceMemoryError(shortage)
        return [
            self._words(chunk, emission) for chunk, emission in zip(chunks, emissions, strict=True)
        ]

    def close(self) -> None:
        """Drop the model; what torch cached of the card's memory goes back to it."""
        import torch

        if not self._lost:
            self._decoder.forget_graphs()
        del self._decoder, self._model
        # NeMo's modules refer to each other in cycles: without it their memory is still in use.
        gc.collect()
        if torch.cuda.is_available() and not self._lost:
            torch.cuda.empty_cache()

    def _make_room(self) -> None:
        """Before a batch: give unused memory back if the card is nearly full, whoever fills it."""
        import torch

        if self.info.device != "cpu":
            free, total = torch.cuda.mem_get_info(self.info.device)
            if 1 - free / total > self._options.cleanup_above:
                torch.cuda.empty_cache()

    def _give_back(self) -> None:
        """After a batch: give memory back that is kept but not used, beyond a limit.

        On a card torch keeps it, on a CPU the C library.
        """
        import torch

        device, limit_mb = self.info.device, self._options.keep_cached_mb
        if limit_mb is None:
            return
        if device == "cpu":
            self._heap.trim_if_grown()
        else:
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if unused > limit_mb * 1e6:
                torch.cuda.empty_cache()

    def _encode(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Run features and encoder; encoder output is fp32, shape (B, D, T), with lengths (B,)."""
        import torch

        lengths = [len(chunk.samples) for chunk in chunks]
        width = padded_width(self._model, max(lengths))
        waveforms = torch.zeros(
            (len(chunks), width), pin_memory=self.info.device != "cpu", dtype=torch.float32
        )
        for row, chunk in zip(waveforms.numpy(), chunks, strict=True):
            np.divide(chunk.samples, 32768.0, out=row[: len(chunk.samples)], dtype=np.float32)
        self._size_positions(width)
        return encode(self._model, waveforms, lengths)

    def _emissions(self, encoded: Tensor, hypotheses: Sequence[Any]) -> list[list[_Emission]]:
        """Read each hypothesis' tokens, with the model's own probability and duration for each.

        The decoder reports neither reliably: its confidences cost time in its inner loop and are
        missing from beams, and its batched torch path overwrites durations of other rows (NeMo
        issue 16097). The joint network is asked once more instead, along the path taken: one pass
        for the whole batch, exact to 5e-7, a twentieth of the decoder's time.
        """
        import torch

        model = self._model
        paths = [_Path(_integers(h.y_sequence), _integers(h.timestamp)) for h in hypotheses]
        sizes = [len(path.tokens) for path in paths]
        if not any(sizes):
            return [[] for _ in paths]
        device = encoded.device
        tokens = torch.full((len(paths), max(sizes)), blank_id(model), device=device)
        for row, path in zip(tokens, paths, strict=True):
            row[: len(path.tokens)] = torch.tensor(path.tokens, device=device)
        predicted, _ = model.decoder.predict(tokens, state=None, add_sos=True)
        # Every token of every path, one after the other: its row, its place there, its frame.
        rows = torch.tensor([r for r, size in enumerate(sizes) for _ in range(size)], device=device)
        places = torch.tensor([place for size in sizes for place in range(size)], device=device)
        frames = torch.tensor([frame for path in paths for frame in path.frames], device=device)
        scores = model.joint.joint_after_projection(
            model.joint.project_encoder(encoded[rows, :, frames].unsqueeze(1)),
            model.joint.project_prednet(predicted[rows, places].unsqueeze(1)),
        )[:, 0, 0]
        vocabulary = blank_id(model) + 1
        chosen = tokens[rows, places]
        logprobs = scores[:, :vocabulary].log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        durations = self._durations(scores[:, vocabulary:].argmax(-1), hypotheses)
        columns = (chosen.tolist(), frames.tolist(), durations, logprobs.tolist())
        emissions = iter([_Emission(*values) for values in zip(*columns, strict=True)])
        return [list(itertools.islice(emissions, size)) for size in sizes]

    def _durations(self, most_probable: Tensor, hypotheses: Sequence[Any]) -> list[int]:
        """Give each token's frames: greedy takes the most probable, a beam remembers its own."""
        if self.info.decoding == "greedy":
            table = self._model.cfg.decoding.durations
            return [int(table[index]) for index in most_probable.tolist()]
        return [frames for h in hypotheses for frames in _integers(h.token_duration)]

    def _words(self, chunk: Chunk, emissions: Sequence[_Emission]) -> list[Word]:
        """Group tokens into words at the pieces that begin with a space."""
        groups: list[list[_Emission]] = []
        for emission in emissions:
            if not groups or self._texts[emission.token_id].startswith(" "):
                groups.append([])
            groups[-1].append(emission)
        return [word for group in groups if (word := self._word(chunk, group)).text]

    def _word(self, chunk: Chunk, group: Sequence[_Emission]) -> Word:
        tokens = tuple(Token(e.token_id, self._texts[e.token_id], e.logprob) for e in group)
        # Punctuation is emitted whenever the model is sure of it, often in the pause after.
        spoken = [
            emission
            for emission, token in zip(group, tokens, strict=True)
            if any(character.isalnum() for character in token.text)
        ] or group
        start = chunk.start + spoken[0].frame * self._frame_samples
        end = chunk.start + (spoken[-1].frame + spoken[-1].frames) * self._frame_samples
        return Word(
            text="".join(token.text for token in tokens).strip(),
            start=min(start, chunk.end) / SAMPLE_RATE,
            end=min(max(start, end), chunk.end) / SAMPLE_RATE,
            tokens=tokens,
        )

    def _size_positions(self, samples: int) -> None:
        """Extend the encoder's position table under a lock: NeMo's own way races."""
        frames = samples // self._frame_samples + 2
        with self._positions_lock:
            extend_positions(self._model.encoder, frames)


@dataclass(frozen=True, slots=True)
class _Path:
    """What a hypothesis emitted, and at which encoder frames."""

    tokens: list[int]
    frames: list[int]


@dataclass(frozen=True, slots=True)
class _Emission:
    """A token as the decoder emitted it."""

    token_id: int
    frame: int
    """Encoder frame at which it was emitted."""
    frames: int
    """Its duration."""
    logprob: float


def _integers(values: Any) -> list[int]:
    """Read a hypothesis' field: a tensor, an array or, when empty, a list."""
    return [int(value) for value in values]
