"""The diarizer's steps: equal to NeMo's own pass, for any sizes of `add`, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from fake_gpu import FakeGpu
from model_helpers import Models, files

from benchmarks.sortformer_files import SortformerShape, write_sortformer
from parakeet_api.errors import CheckpointError, DeviceLostError, ServiceUnavailableError
from parakeet_api.model.diarizer import SortformerDiarizer, SortformerStream
from parakeet_api.model.diarizer_checkpoints import DiarizerStore
from parakeet_api.model.pool import ModelPool
from parakeet_api.model.slot import ModelSlot
from parakeet_api.model.sortformer import Sortformer, load_sortformer
from parakeet_api.settings import Settings
from parakeet_api.speech.diarization import Diarizer, FloatArray

TINY = SortformerShape(
    mels=80,
    channels=8,
    layers=1,
    width=32,
    head_layers=1,
    head_width=16,
    cache=24,
    fifo=16,
    chunk=12,
    update=14,
    left=1,
    right=2,
)
EIGHT = dataclasses.replace(TINY, speakers=8, cache=40)
RATE = 16_000


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint as the service runs it."""

    path: Path
    sortformer: Sortformer
    speakers: int

    def stream(self) -> SortformerStream:
        @contextlib.contextmanager
        def lease() -> Iterator[Sortformer]:
            yield self.sortformer

        return SortformerStream(lease, speakers=self.speakers)

    def nemo_forward(self, samples: FloatArray) -> FloatArray:
        """Run NeMo's own pass over a whole recording."""
        model: Any = self.sortformer._model
        with torch.inference_mode():
            probabilities = model(
                audio_signal=torch.from_numpy(samples)[None],
                audio_signal_length=torch.tensor([len(samples)]),
            )
        result: FloatArray = probabilities[0].numpy()
        return result


@pytest.fixture(scope="module", params=["synchronous", "asynchronous", "eight speakers"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    shape = EIGHT if request.param == "eight speakers" else TINY
    path = tmp_path_factory.mktemp("sortformer") / "tiny.nemo"
    write_sortformer(path, shape, is_async=request.param == "asynchronous")
    sortformer = load_sortformer(path, lambda _: None, settings=Settings(), gpu=None)
    return Loaded(path, sortformer, shape.speakers)


def sound(seconds: float, seed: int = 0) -> FloatArray:
    """Return noise whose level changes twice a second."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    levels = np.repeat(10 ** rng.uniform(-4, -0.5, count // 8_000 + 1), 8_000)[:count]
    return (rng.normal(size=count) * levels).astype(np.float32)


def run(stream: SortformerStream, samples: FloatArray, sizes: list[int]) -> FloatArray:
    found: list[FloatArray] = []
    start = 0
    while start < len(samples):
        size = sizes[len(found) % len(sizes)]
        found.append(stream.add(samples[start : start + size]))
        start += size
    return np.concatenate([*found, stream.finish()])


@pytest.mark.parametrize("sizes", [[512], [1, 999, 40_000, 7], [10_000_000]], ids=str)
def test_any_division_of_a_recording_gives_the_probabilities_of_nemos_own_pass(
    loaded: Loaded, sizes: list[int]
) -> None:
    samples = sound(9.173 if sizes != [512] else 20)
    own = loaded.nemo_forward(samples)
    assert own.shape == (-(-(len(samples) // 160) // 8), loaded.speakers)
    found = run(loaded.stream(), samples, sizes)
    assert found.dtype == np.float32
    assert np.ptp(own) > 0.01, "the probabilities would be equal whatever was heard"
    np.testing.assert_allclose(found, own, atol=2e-5)


@pytest.mark.parametrize("count", [0, 1, 159, 160, 161, 1_279, 1_280, 15_360, 15_361, 20_000])
def test_a_short_recording_has_as_many_frames_as_nemo_gives(loaded: Loaded, count: int) -> None:
    samples = sound(2)[:count]
    found = run(loaded.stream(), samples, [700])
    assert found.shape == (-(-(count // 160) // 8), loaded.speakers)
    if len(found):
        np.testing.assert_allclose(found, loaded.nemo_forward(samples), atol=2e-5)


def test_recordings_at_the_same_time_do_not_touch_each_other(loaded: Loaded) -> None:
    first, second = sound(6, seed=1), sound(6, seed=2)
    streams = loaded.stream(), loaded.stream()
    found: tuple[list[FloatArray], list[FloatArray]] = ([], [])
    for start in range(0, 6 * RATE, 5_000):
        for stream, samples, parts in zip(streams, (first, second), found, strict=True):
            parts.append(stream.add(samples[start : start + 5_000]))
    for stream, samples, parts in zip(streams, (first, second), found, strict=True):
        together = np.concatenate([*parts, stream.finish()])
        np.testing.assert_array_equal(together, run(loaded.stream(), samples, [5_000]))


def test_what_a_stream_holds_does_not_grow_with_the_recording(loaded: Loaded) -> None:
    stream = loaded.stream()
    held = []
    for second in range(60):
        stream.add(sound(1, seed=second))
        state = stream._state.tensors if stream._state else None
        tensors = [t for t in vars(state).values() if torch.is_tensor(t)] if state else []
        samples = len(stream._samples) + sum(map(len, stream._added))
        held.append(4 * samples + sum(t.numel() * t.element_size() for t in tensors))
    assert max(held[30:]) <= max(held[:30])
    stream.close()


def test_the_model_may_be_loaded_anew_in_the_middle_of_a_recording(loaded: Loaded) -> None:
    samples = sound(6)
    models = [
        load_sortformer(loaded.path, lambda _: None, settings=Settings(), gpu=None)
        for _ in range(2)
    ]

    @contextlib.contextmanager
    def lease() -> Iterator[Sortformer]:
        models.reverse()
        yield models[0]

    found = run(SortformerStream(lease, speakers=loaded.speakers), samples, [4_000])
    np.testing.assert_array_equal(found, run(loaded.stream(), samples, [4_000]))


def test_a_closed_model_is_gone(tmp_path: Path) -> None:
    import weakref

    path = tmp_path / "tiny.nemo"
    write_sortformer(path, TINY)
    sortformer = load_sortformer(path, lambda _: None, settings=Settings(), gpu=None)
    encoder = weakref.ref(sortformer._model.encoder)
    sortformer.close()
    assert encoder() is None


def test_the_diarizer_is_one_by_the_protocol(loaded: Loaded) -> None:
    store = DiarizerStore(Settings(diarizer_path=loaded.path), bundled=None)
    store.start()

    @contextlib.contextmanager
    def lease() -> Iterator[Sortformer]:
        yield loaded.sortformer

    diarizer: Diarizer = SortformerDiarizer(lease, store=store)
    assert (diarizer.frame_seconds, diarizer.max_speakers) == (0.08, loaded.speakers)
    stream = diarizer.start()
    assert stream.add(sound(1)).shape[1] == loaded.speakers
    assert len(stream.finish()) > 0
    stream.close()


def test_a_recognizer_is_no_diarizer() -> None:
    path = ROOT / "tests" / "grammar-model" / "parakeet-tdt-demo-en.nemo"
    with pytest.raises(CheckpointError, match=r"EncDecRNNTBPEModel.*DIARIZER_PATH"):
        DiarizerStore(Settings(diarizer_path=path), bundled=None).start()


def test_a_recognizer_that_needs_the_memory_gets_it_in_the_middle_of_a_recording(
    loaded: Loaded,
) -> None:
    """The recognizer is a fake, and so is how much memory there is: room for one model."""
    store = DiarizerStore(Settings(diarizer_path=loaded.path), bundled=None)
    store.start()
    speakers = ModelSlot(
        store, partial(load_sortformer, settings=Settings(), gpu=None), idle_timeout_s=0
    )
    models = Models()
    words = ModelSlot(files(), models.load, idle_timeout_s=0)
    pool = ModelPool(
        [speakers, words],
        permits=1,
        has_room=lambda *_: "ready" not in (speakers.state, words.state),
    )
    stream = SortformerStream(partial(pool.lease, speakers), speakers=loaded.speakers)
    samples = sound(4)
    found, states = [], []
    for start in range(0, 4 * RATE, RATE):
        found.append(stream.add(samples[start : start + RATE]))
        states.append(speakers.state)
        with pool.lease(words):
            states.append(speakers.state)
    assert states == 4 * ["ready", "unloaded"]
    found.append(stream.finish())
    np.testing.assert_array_equal(np.concatenate(found), run(loaded.stream(), samples, [RATE]))
    assert models.loads >= 4
    pool.unload(speakers)
    assert speakers.unload_unused() == "not_loaded"


def test_a_model_is_closed_though_another_one_lost_the_gpu(loaded: Loaded, gpu: FakeGpu) -> None:
    sortformer = Sortformer(loaded.sortformer._model, device="cuda:0")
    gpu.lost = True

    sortformer.close()


def test_the_gpus_loss_is_reported(loaded: Loaded) -> None:
    """The failing device is a fake."""
    reported: list[bool] = []

    @contextlib.contextmanager
    def lease() -> Iterator[Sortformer]:
        raise DeviceLostError
        yield loaded.sortformer

    stream = SortformerStream(
        lease, speakers=loaded.speakers, on_device_lost=lambda: reported.append(True)
    )
    with pytest.raises(DeviceLostError):
        stream.add(sound(1))
    assert reported == [True]


def test_a_step_without_memory_is_tried_again_from_the_same_state(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortage is a fake: there is no GPU."""
    samples = sound(3)
    stream = loaded.stream()
    expected = run(loaded.stream(), samples, [RATE])
    step, calls = loaded.sortformer._step, []

    def fail_every_other_time(*arguments: Any) -> FloatArray:
        calls.append(arguments)
        if len(calls) % 2:
            raise RuntimeError("CUDA out of memory")
        return step(*arguments)

    monkeypatch.setattr(loaded.sortformer, "_step", fail_every_other_time)
    np.testing.assert_array_equal(run(stream, samples, [RATE]), expected)


def test_a_step_that_never_has_memory_is_a_503(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortage is a fake: there is no GPU."""

    def fail(*_: Any) -> FloatArray:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(loaded.sortformer, "_step", fail)
    with pytest.raises(ServiceUnavailableError, match="not enough free memory"):
        loaded.stream().add(sound(3))
