"""Words from waveforms: the `Recognizer` protocol and its implementation with NVIDIA NeMo.

Does not use NeMo's `transcribe()`, which is not thread-safe, leaves modules in training mode and
pads short clips, but its parts: preprocessor (fp32) -> encoder (half precision where faster) ->
token decoder (fp32).
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from parakeet_api.errors import DeviceLostError, ModelLoadError
from parakeet_api.keywords import KeywordTree
from parakeet_api.model.cuda import (
    CacheTrimmer,
    context_is_lost,
    is_memory_shortage,
    keep_memory,
    limit_device_memory,
    release_cached_memory,
    turn_on,
)
from parakeet_api.model.devices import Gpu, InferencePlan
from parakeet_api.model.encoder import frame_samples
from parakeet_api.model.fusion import FusionModel
from parakeet_api.model.heap import HeapTrimmer
from parakeet_api.model.keyword_boosting import KeywordBoosts
from parakeet_api.model.loading import LoadedModel, ModelInfo, ModelOptions, blank_id, load_model
from parakeet_api.model.prompts import LanguagePrompts
from parakeet_api.model.restore import import_libraries, read_ahead
from parakeet_api.model.scripts import ScriptPenalties, ScriptRules
from parakeet_api.model.token_decoder import Tokens
from parakeet_api.model.vocabulary import Vocabulary
from parakeet_api.settings import Settings
from parakeet_api.speech.keyword_choice import choose
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Token, Word

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

_MAX_TOKEN_FRAMES = 3
"""Encoder frames (240 ms). Maximum duration of a token if the model predicts none. For models that
do, the median duration before a pause of at least half a second is 3."""
_TRIAL_PASSES = 100
"""Passes after a load in which the loss of the GPU is attributed to CUDA graphs."""
_SCORED_TOKENS = 8192
"""Tokens scored at once: 270 MB with a vocabulary of 8,192."""


class OutOfDeviceMemoryError(Exception):
    """The batch needs more of the GPU's memory than is free."""


class Recognizer(Protocol):
    """A loaded model, as used by the rest of the service."""

    info: ModelInfo

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Return each chunk's words, in order, with times in the recording."""
        ...

    def close(self) -> None:
        """Release the model's memory; the recognizer cannot be used afterwards."""
        ...


def load_recognizer(
    checkpoint: Path,
    on_warm_up: Callable[[float], None],
    *,
    settings: Settings,
    gpu: Gpu | None,
    plan: InferencePlan,
) -> Recognizer:
    """Load a checkpoint according to the settings and the plan for the device.

    `on_warm_up` is called with the share of the warm-up that is done. Raises as
    `NemoRecognizer.load` does.
    """
    read_ahead(checkpoint)
    import_libraries()
    if gpu is not None:
        limit_device_memory(gpu.device, settings.gpu_memory_fraction)
    options = ModelOptions.from_settings(settings, gpu=gpu, plan=plan, on_warm_up=on_warm_up)
    return NemoRecognizer.load(checkpoint, options)


class NemoRecognizer:
    """A Parakeet checkpoint ready for inference.

    Safe to call from several threads: nothing in the model changes between calls.
    """

    def __init__(self, loaded: LoadedModel, options: ModelOptions) -> None:
        self.info = loaded.info
        self._options = options
        self._model = loaded.network
        self._encoder = loaded.encoder
        self._decoder = loaded.decoder
        self._heap = HeapTrimmer()
        self._cache = None if self.info.device == "cpu" else _cache_trimmer(options)
        self._passes = 0
        """Completed forward passes."""
        architecture = loaded.architecture
        self._vocabulary = Vocabulary(
            self._model.tokenizer.ids_to_tokens(list(range(blank_id(self._model))))
        )
        self._scripts = ScriptRules(self._vocabulary.texts)
        has_prompt = getattr(self._model, "concat", False)
        self._prompts = LanguagePrompts(self._model) if has_prompt else None
        self._frame_samples = frame_samples(self._model)
        import torch

        self._durations = (
            torch.tensor(list(self._model.cfg.decoding.durations), device=self.info.device)
            if architecture.decoder == "tdt"
            else None
        )

    @classmethod
    def load(cls, path: Path, options: ModelOptions) -> NemoRecognizer:
        """Restore a `.nemo` file for inference.

        Raises `CheckpointError`, naming the file, if it is no complete Parakeet checkpoint;
        `SettingsError` for a precision that the device does not support; `ModelLoadError` if the
        GPU has too little free memory, `DeviceLostError` if its context is lost.
        """
        try:
            return cls(load_model(path, options), options)
        except Exception as error:
            if not is_memory_shortage(error):
                if context_is_lost(options.device):
                    keep_memory(error)
                    _condemn_graphs(options, error)
                    raise DeviceLostError from error
                raise
            shortage = str(error).partition("\n")[0]
        # After the handler: the error referred to what was already loaded, and kept its memory.
        gc.collect()
        release_cached_memory(options.device)
        raise ModelLoadError(f"The GPU has not enough free memory for the model: {shortage}")

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Return each chunk's words, in order, with times in the recording.

        All chunks share one forward pass, with the same result as separate passes up to the
        encoder's rounding (2e-6 in fp32). Digital silence is skipped: 12 hours of it fit into a
        file of half a megabyte. Raises `OutOfDeviceMemoryError`, or `DeviceLostError` if the GPU
        fails for the rest of the process.
        """
        audible = [chunk for chunk in chunks if chunk.samples.any()]
        if not self._decoder.supports_keywords:
            audible = [replace(chunk, keywords=None) for chunk in audible]
        words = iter(self._recognize(audible) if audible else [])
        return [next(words) if chunk.samples.any() else [] for chunk in chunks]

    def _recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        shortage: str | None = None
        try:
            emissions = self._pass(chunks)
        except Exception as error:
            if is_memory_shortage(error):
                shortage = str(error)
            elif context_is_lost(self.info.device):
                keep_memory(self, error)
                if self._passes < _TRIAL_PASSES:
                    _condemn_graphs(self._options, error)
                raise DeviceLostError from error
            else:
                raise
        if shortage is not None:
            # After the handler: the error referred to the tensors of the failed pass.
            release_cached_memory(self.info.device)
            raise OutOfDeviceMemoryError(shortage)
        boosted = iter(emissions[len(chunks) :])
        return [
            self._words(chunk, emission)
            if chunk.keywords is None
            else choose(
                self._words(chunk, emission),
                self._words(chunk, next(boosted)),
                chunk.keywords.phrases,
            )
            for chunk, emission in zip(chunks, emissions, strict=False)
        ]

    def _pass(self, chunks: Sequence[Chunk]) -> list[list[_Emission]]:
        """Run a forward pass; other threads stage the next batch and build words meanwhile.

        Return each chunk's tokens, then the boosted tokens of the chunks with keywords.
        """
        import torch

        staged = self._encoder.stage([chunk.samples for chunk in chunks])
        with turn_on(self.info.device), torch.inference_mode():
            if self._cache is not None:
                self._cache.before_pass()
            encoded, lengths = self._encoder.encode(staged)
            if self._prompts is not None:
                encoded = self._prompts.apply(encoded, [chunk.language for chunk in chunks])
            emissions = self._decoded(encoded, lengths, chunks)
            # So that the memory trimmers can release them.
            del encoded, lengths
            if self._cache is not None:
                self._cache.after_pass()
            self._passes += 1
        if self._cache is None and self._options.keep_cached_mb is not None:
            self._heap.trim_if_grown()
        return emissions

    def close(self) -> None:
        """Drop the model, and release GPU memory cached by torch."""
        if self._cache is not None:
            self._cache.close()
        if context_is_lost(self.info.device):
            keep_memory(self)
            return
        with turn_on(self.info.device):
            self._decoder.forget_graphs()
            self._encoder.forget_graphs()
        del self._decoder, self._encoder, self._model, self._prompts
        # NeMo's modules form reference cycles, which would keep their memory in use.
        gc.collect()
        release_cached_memory(self.info.device)

    def _encode(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Run features and encoder; encoder output is fp32, shape (B, D, T), with lengths (B,)."""
        return self._encoder.encode(self._encoder.stage([chunk.samples for chunk in chunks]))

    def _decoded(
        self, encoded: Tensor, lengths: Tensor, chunks: Sequence[Chunk]
    ) -> list[list[_Emission]]:
        """Decode each row, the rows with keywords a second time, and those in a wrong script again.

        The last costs nothing where the script is right, and greedy decoding gives the same as with
        penalties from the start: a penalty lowers only tokens that were not chosen.
        """
        plain = [_RowDecoding(row) for row in range(len(chunks))]
        boosted = [
            _RowDecoding(row, keywords=chunk.keywords)
            for row, chunk in enumerate(chunks)
            if chunk.keywords is not None
        ]
        # Graphs do not support boosts, so only the boosted rows are decoded without graphs. Without
        # graphs in one call: on a CPU, most of a step's time does not depend on the row count.
        batches = [plain, boosted] if self._decoder.uses_graphs else [plain + boosted]
        emissions = [
            emission
            for batch in batches
            for emission in self._decoded_rows(encoded, lengths, batch)
        ]
        foreign = {
            place: replace(decoding, penalties=penalties)
            for place, decoding in enumerate(plain + boosted)
            if (penalties := self._penalties(chunks[decoding.row])) is not None
            and any(penalties[emission.token_id] for emission in emissions[place])
        }
        again = self._decoded_rows(encoded, lengths, list(foreign.values()))
        for place, emission in zip(foreign, again, strict=True):
            emissions[place] = emission
        return emissions

    def _decoded_rows(
        self, encoded: Tensor, lengths: Tensor, decodings: Sequence[_RowDecoding]
    ) -> list[list[_Emission]]:
        if not decodings:
            return []
        rows = [decoding.row for decoding in decodings]
        if rows != list(range(len(encoded))):
            encoded, lengths = encoded[rows], lengths[rows]
        trees = [decoding.keywords for decoding in decodings]
        penalties = [decoding.penalties for decoding in decodings]
        vocabulary, device = blank_id(self._model), self.info.device
        fusion: list[FusionModel] = []
        if any(tree is not None for tree in trees):
            fusion.append(KeywordBoosts(trees, vocabulary=vocabulary, device=device))
        if any(row is not None for row in penalties):
            fusion.append(ScriptPenalties(penalties, vocabulary=vocabulary, device=device))
        return self._emissions(encoded, self._decoder.decode(encoded, lengths, fusion))

    def _penalties(self, chunk: Chunk) -> NDArray[np.float32] | None:
        """Return the tokens' penalties for a chunk's language; prompts state it otherwise."""
        if self._prompts is not None:
            return None
        return self._scripts.penalties(chunk.language)

    def _emissions(self, encoded: Tensor, tokens: Tokens) -> list[list[_Emission]]:
        """Return each token the model's own probability and duration, row by row.

        The decoder reports neither reliably: its confidences cost time in its inner loop and are
        missing from beams, and its batched torch path overwrites durations of other rows (NeMo
        issue 16097). The joint network runs once more instead, along the path taken: one pass
        for the whole batch, exact to 5e-7, a twentieth of the decoder's time. Where the model has
        no durations, a token lasts until the next one, `_MAX_TOKEN_FRAMES` at most.
        """
        import torch

        counts = tokens.counts
        if not any(counts):
            return [[] for _ in counts]
        device = encoded.device
        sizes = torch.tensor(counts, device=device)
        is_token = torch.arange(max(counts), device=device) < sizes[:, None]
        # Row and position of every token.
        rows, places = is_token.nonzero(as_tuple=True)
        ids = tokens.ids.to(device)
        chosen, frames = ids[rows, places], tokens.frames.to(device)[rows, places]
        durations = torch.zeros_like(frames)
        if tokens.logprobs is not None:
            logprobs = tokens.logprobs.to(device)[rows, places]
        else:
            path = torch.where(is_token, ids, blank_id(self._model))
            logprobs, durations = self._rescored(encoded, path, (rows, places, frames))
        if tokens.durations is not None:
            durations = tokens.durations.to(device)[rows, places]
        elif self._durations is None:
            durations = _time_to_next(frames, is_last=places == sizes[rows] - 1)
        # One copy to the host; float64 holds every one of these numbers exactly.
        columns = torch.stack([c.double() for c in (chosen, frames, durations, logprobs)]).cpu()
        integers = columns[:3].long().tolist()
        emissions = map(_Emission, *integers, columns[3].tolist())
        return [list(itertools.islice(emissions, count)) for count in counts]

    def _rescored(
        self, encoded: Tensor, path: Tensor, where: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probability of tokens, (N,), and their most probable durations, (N,).

        `path` is all rows' tokens, (B, U); `where` each token's row, position and frame, (N,) each.
        """
        import torch

        predicted, _ = self._model.decoder.predict(path, state=None, add_sos=True)
        rows, places, frames = where
        parts = [
            slice(begin, begin + _SCORED_TOKENS) for begin in range(0, len(rows), _SCORED_TOKENS)
        ]
        scored = [
            self._scores(
                encoded[rows[part], :, frames[part]],
                predicted[rows[part], places[part]],
                path[rows[part], places[part]],
            )
            for part in parts
        ]
        logprobs, durations = (torch.cat(column) for column in zip(*scored, strict=True))
        return logprobs, durations

    def _scores(self, encoded: Tensor, predicted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        joint = self._model.joint
        scores = joint.joint_after_projection(
            joint.project_encoder(encoded[:, None]), joint.project_prednet(predicted[:, None])
        )[:, 0, 0]
        vocabulary = blank_id(self._model) + 1
        labels, durations = scores[:, :vocabulary], scores[:, vocabulary:]
        logprobs = labels.gather(1, ids[:, None])[:, 0] - labels.logsumexp(1)
        if self._durations is None:
            return logprobs, ids
        return logprobs, self._durations[durations.argmax(1)]

    def _words(self, chunk: Chunk, emissions: Sequence[_Emission]) -> list[Word]:
        """Group tokens into words at the pieces that begin with a space.

        Language tags are not words: a tag gives the language of the words before it, and the last
        tag also that of the words after it.
        """
        groups: list[list[_Emission]] = []
        languages: list[str | None] = []
        for emission in emissions:
            if emission.token_id in self._vocabulary.marks:
                spoken = self._vocabulary.languages.get(emission.token_id)
                if spoken is not None:
                    languages += [spoken] * (len(groups) - len(languages))
                continue
            if not groups or self._vocabulary.begins_word[emission.token_id]:
                groups.append([])
            groups[-1].append(emission)
        languages += [languages[-1] if languages else None] * (len(groups) - len(languages))
        words = [self._word(chunk, *each) for each in zip(groups, languages, strict=True)]
        return [word for word in words if word.text]

    def _word(self, chunk: Chunk, group: Sequence[_Emission], language: str | None) -> Word:
        texts, is_spoken = self._vocabulary.texts, self._vocabulary.is_spoken
        tokens = tuple(Token(e.token_id, texts[e.token_id], e.logprob) for e in group)
        # Times exclude punctuation, which is often emitted in the pause after a word.
        spoken = [emission for emission in group if is_spoken[emission.token_id]] or group
        start = chunk.start + spoken[0].frame * self._frame_samples
        end = chunk.start + (spoken[-1].frame + spoken[-1].frames) * self._frame_samples
        return Word(
            text="".join(token.text for token in tokens).strip(),
            start=min(start, chunk.end) / SAMPLE_RATE,
            end=min(max(start, end), chunk.end) / SAMPLE_RATE,
            tokens=tokens,
            language=language,
        )


def _time_to_next(frames: Tensor, *, is_last: Tensor) -> Tensor:
    """Return the frames until the next token of a row, `_MAX_TOKEN_FRAMES` at most; shapes (N,)."""
    gaps = frames.roll(-1) - frames
    return gaps.masked_fill(is_last, _MAX_TOKEN_FRAMES).clamp(max=_MAX_TOKEN_FRAMES)


@dataclass(frozen=True, slots=True, eq=False)
class _RowDecoding:
    """How a row of the encoder's output is decoded."""

    row: int
    keywords: KeywordTree | None = None
    """Phrases to boost."""
    penalties: NDArray[np.float32] | None = None
    """Subtracted from each token, (V,)."""


class _Emission(NamedTuple):
    """A token as the decoder emitted it."""

    token_id: int
    frame: int
    """Encoder frame at which it was emitted."""
    frames: int
    """Its duration."""
    logprob: float


def _cache_trimmer(options: ModelOptions) -> CacheTrimmer:
    return CacheTrimmer(
        options.device, keep_mb=options.keep_cached_mb, full_above=options.cleanup_above
    )


def _condemn_graphs(options: ModelOptions, error: Exception) -> None:
    """Store that the GPU was lost soon after capturing graphs: no graphs after the restart."""
    if options.cuda_graphs and options.graph_verdict is not None:
        options.graph_verdict.condemn(str(error).strip().partition("\n")[0])
