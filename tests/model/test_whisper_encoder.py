"""The small English model's encoder: its output, devices and precisions."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ENGLISH_MODEL, PEOPLE, demo_options, whole
from fake_gpu import FakeGpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import CheckpointError
from parakeet_api.model.checkpoints import check_checkpoint
from parakeet_api.model.encoder import Encoder, encode
from parakeet_api.model.loading import LoadedModel, load_model
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.model.restore import import_libraries
from parakeet_api.transcript import SAMPLE_RATE, Pcm

EXPECTED = np.load(Path(__file__).with_name("whisper-encoder.npz"))
"""The output of the class that the model was trained with: two rows, every 16th channel.

`short` is `nest.flac`, `long` all of samples/people one after the other, 69 s: two whole windows
and a part of one. Both were encoded as one padded batch, in fp32 by one thread, with NeMo 3.0.0's
`restore_from` and the training program's own `WhisperConformer` in place of this package's.
"""
SENTENCE = "It is not cultivated in England being principally confined to the east."


@pytest.fixture(scope="module")
def people(decoder: FfmpegDecoder) -> dict[str, Pcm]:
    """The recordings of people, by file name, in the order of their list."""
    entries = json.loads(PEOPLE.with_suffix(".json").read_text(encoding="utf-8"))
    return {
        entry["file"]: np.concatenate([*decoder.stream(PEOPLE / entry["file"])])
        for entry in entries
    }


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ENGLISH_MODEL, demo_options())


def padded(rows: list[Pcm]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack waveforms into a batch; return it with their lengths."""
    batch = np.zeros((len(rows), max(map(len, rows))), np.int16)
    for row, samples in zip(batch, rows, strict=True):
        row[: len(samples)] = samples
    return torch.from_numpy(batch), torch.tensor([len(samples) for samples in rows])


def text_of(recognizer: NemoRecognizer, samples: Pcm) -> str:
    (words,) = recognizer.recognize([whole(samples)])
    return " ".join(word.text for word in words)


def test_it_computes_what_the_model_was_trained_with(
    loaded: LoadedModel, people: dict[str, Pcm]
) -> None:
    rows = [people["nest.flac"], np.concatenate([*people.values()])]

    with torch.inference_mode():
        encoded, lengths = encode(loaded.network, *padded(rows))

    for row, length, name in zip(encoded, lengths.tolist(), ("short", "long"), strict=True):
        expected = torch.from_numpy(EXPECTED[name])
        assert length == expected.shape[1]
        torch.testing.assert_close(row[::16, :length], expected, rtol=0, atol=1e-4)


def test_padding_and_other_rows_change_nothing(loaded: LoadedModel, people: dict[str, Pcm]) -> None:
    encoder = Encoder(loaded.network, device="cpu", longest_s=60)
    batch = [*people.values(), np.concatenate([*people.values()])[: 45 * SAMPLE_RATE]]

    together, lengths = encoder.encode(encoder.stage(batch))

    for samples, row, length in zip(batch, together, lengths.tolist(), strict=True):
        (alone,), _ = encoder.encode(encoder.stage([samples]))
        torch.testing.assert_close(row[:, :length], alone[:, :length], rtol=0, atol=1e-4)


def test_what_exceeds_a_window_is_not_padded_to_another(loaded: LoadedModel) -> None:
    """A chunk of 30 s is padded to 30.08 s, which must not take twice as long."""
    shapes: list[tuple[int, ...]] = []
    layer = loaded.network.encoder.pre_encode.blocks[0]
    hook = layer.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape[:2]))
    encoder = Encoder(loaded.network, device="cpu", longest_s=60)
    noise = np.random.default_rng(0).integers(-900, 900, 30 * SAMPLE_RATE).astype(np.int16)

    encoder.encode(encoder.stage([noise, noise]))
    hook.remove()

    assert [tuple(shape) for shape in shapes] == [(2, 1500), (2, 5)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_a_clear_sentence_is_recognized_in_every_precision(
    precision: str, people: dict[str, Pcm]
) -> None:
    recognizer = NemoRecognizer.load(ENGLISH_MODEL, demo_options(precision=precision))

    assert recognizer.info.precision == precision
    assert text_of(recognizer, people["england.flac"]) == SENTENCE


def test_the_level_of_a_recording_changes_nothing(loaded: LoadedModel) -> None:
    front_end = loaded.network.encoder.pre_encode
    features = torch.randn(1, 400, 80, generator=torch.Generator().manual_seed(0)) - 5
    lengths = torch.tensor([400])

    with torch.inference_mode():
        loud, _ = front_end(features, lengths)
        quiet, _ = front_end(features - 4, lengths)

    torch.testing.assert_close(quiet, loud, rtol=0, atol=1e-4)


def test_beams_work(people: dict[str, Pcm]) -> None:
    recognizer = NemoRecognizer.load(ENGLISH_MODEL, demo_options(strategy="beam", beam_size=2))

    assert text_of(recognizer, people["england.flac"]).startswith("It is not cultivated in England")


def test_words_have_times_and_probabilities(loaded: LoadedModel, people: dict[str, Pcm]) -> None:
    samples = people["england.flac"]
    (words,) = NemoRecognizer(loaded, demo_options()).recognize([whole(samples)])

    assert all(0 <= w.start <= w.end <= len(samples) / SAMPLE_RATE for w in words)
    assert [w.start for w in words] == sorted(w.start for w in words)
    assert all(w.logprob is not None and w.logprob <= 0 for w in words)


def test_a_gpus_graphs_give_the_same_output(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, people: dict[str, Pcm]
) -> None:
    monkeypatch.setattr("parakeet_api.model.encoder._WARM_UP_S", 3600.0)
    options = demo_options(device="cuda:0", longest_s=5, graphed_s=11, largest_batch=4)
    on_gpu = load_model(ENGLISH_MODEL, options)
    batch = [people["nest.flac"], people["cold-place.flac"]]
    captures = [shape for shape in gpu.captures if shape in on_gpu.encoder.shapes.graphed]

    output, frames = on_gpu.encoder.encode(on_gpu.encoder.stage(batch))
    output = output.clone()

    exact = Encoder(on_gpu.network, device="cpu", longest_s=5)
    expected, expected_frames = exact.encode(exact.stage(batch))
    assert sorted(captures) == sorted(on_gpu.encoder.shapes.graphed)
    assert torch.equal(frames, expected_frames)
    for row, wanted, length in zip(output, expected, frames.tolist(), strict=True):
        # The encoder is in fp16 there.
        torch.testing.assert_close(row[:, :length], wanted[:, :length], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("rows", "seconds"), [(1, 10), (4, 20), (1, 60)])
def test_a_pass_needs_no_more_memory_than_the_plan_allows_it(rows: int, seconds: int) -> None:
    """The plan is made before a model is chosen, for one of 0.6 B parameters."""
    half = load_model(ENGLISH_MODEL, demo_options(precision="bf16"))
    noise = torch.randint(-900, 900, (rows, seconds * SAMPLE_RATE), dtype=torch.int16)
    lengths = torch.full((rows,), seconds * SAMPLE_RATE)

    with torch.inference_mode(), Memory() as memory:
        encode(half.network, noise, lengths)

    assert memory.peak_mb > 1
    assert memory.peak_mb <= check_checkpoint(ENGLISH_MODEL).activations_mb(rows, seconds)


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Add up the memory of all tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes = 0
        self._seen: set[int] = set()
        self.peak_mb = 0.0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_of(leaf) for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if is_tensor(leaf) and id_of(leaf) not in given | self._seen:
                self._count(leaf.untyped_storage(), id_of(leaf))
        return made

    def _count(self, storage: Any, name: int) -> None:
        size = storage.nbytes()
        self._seen.add(name)
        self._bytes += size
        self.peak_mb = max(self.peak_mb, self._bytes / 1e6)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._seen.discard(name)
        self._bytes -= size


def is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def id_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def test_nothing_of_it_is_left_after_unloading(people: dict[str, Pcm]) -> None:
    recognizer = NemoRecognizer.load(ENGLISH_MODEL, demo_options())
    recognizer.recognize([whole(people["nest.flac"])])
    front_end = weakref.ref(recognizer._model.encoder.pre_encode)

    recognizer.close()

    gc.collect()
    assert front_end() is None


def test_nemos_list_of_allowed_classes_stays_as_it_is() -> None:
    import_libraries()
    from nemo.core.classes import common

    before = [*common.ALLOWED_TARGET_PREFIXES]

    load_model(ENGLISH_MODEL, demo_options())

    assert before == common.ALLOWED_TARGET_PREFIXES


def test_no_other_class_of_that_name_is_loaded(tmp_path: Path) -> None:
    changed = tmp_path / "changed.nemo"
    with tarfile.open(ENGLISH_MODEL) as source, tarfile.open(changed, "w") as target:
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            data = content.read().replace(b"whisper_conformer.WhisperConformer", b"os.system")
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))

    with pytest.raises(CheckpointError, match=r"changed\.nemo cannot be loaded"):
        load_model(changed, demo_options())
