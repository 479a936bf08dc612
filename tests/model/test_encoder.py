"""Shapes of batches, and the encoder's CUDA graphs on a simulated GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO_MODEL, Clip, Clock, decode, demo_options
from fake_gpu import FakeGpu
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model import encoder as encoder_module
from parakeet_api.model.encoder import Encoder, Shapes
from parakeet_api.model.loading import LoadedModel, load_model
from parakeet_api.transcript import SAMPLE_RATE, Pcm

FRAME = 1280
MINUTE = 60 * SAMPLE_RATE
ON_CPU = Shapes(frame_samples=FRAME, on_gpu=False, longest_s=60, graphed_s=0)
ON_GPU = Shapes(frame_samples=FRAME, on_gpu=True, longest_s=60, graphed_s=246)
SHORTAGE = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

samples = st.integers(1, MINUTE)
rows = st.integers(1, 256)


@given(rows, samples)
def test_every_batch_fits_its_shape(count: int, length: int) -> None:
    for shapes in (ON_CPU, ON_GPU):
        padded_rows, width = shapes.padded(count, length)
        assert padded_rows >= count
        assert length <= width <= shapes.longest
        assert width % (4 * FRAME) == 0


@given(rows, samples)
def test_padding_of_large_batches_costs_at_most_a_twentieth(count: int, length: int) -> None:
    if count <= 4 or length < 6.4 * SAMPLE_RATE:
        return
    padded_rows, width = ON_GPU.padded(count, length)

    assert padded_rows <= 1.05 * count
    assert width <= 1.05 * (length + 4 * FRAME)


def test_shapes_are_few() -> None:
    lengths = range(400, MINUTE, 400)

    assert len({ON_GPU.padded(1, length) for length in lengths}) == 18
    assert len({ON_GPU.padded(64, length) for length in lengths}) <= 84
    assert len({ON_GPU.padded(count, MINUTE)[0] for count in range(5, 257)}) <= 90


@pytest.mark.parametrize(
    ("graphed_s", "largest"), [(246, (4, 61.44)), (123, (2, 61.44)), (31, (1, 30.72)), (0, None)]
)
def test_graphs_hold_no_more_audio_than_there_is_memory_for(
    graphed_s: float, largest: tuple[int, float] | None
) -> None:
    shapes = Shapes(frame_samples=FRAME, on_gpu=True, longest_s=60, graphed_s=graphed_s)

    found = max(shapes.graphed, key=lambda shape: shape[0] * shape[1], default=None)

    assert (found and (found[0], found[1] / SAMPLE_RATE)) == largest


def test_on_a_cpu_nothing_is_a_graph_and_no_row_is_added() -> None:
    assert ON_CPU.graphed == []
    assert ON_CPU.padded(3, 1000) == (3, 4 * FRAME)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a warm-up take as long as it does here."""
    monkeypatch.setattr("parakeet_api.model.encoder._WARM_UP_S", 3600.0)


@pytest.fixture
def loaded(gpu: FakeGpu) -> LoadedModel:
    """Return the demo model as on a GPU with few and short graphs."""
    return load_model(DEMO_MODEL, options())


def options(**changes: Any) -> Any:
    return demo_options(
        **({"device": "cuda:0", "longest_s": 5.0, "graphed_s": 11.0, "largest_batch": 4} | changes)
    )


def waves(clips: list[Clip], decoder: FfmpegDecoder, count: int) -> list[Pcm]:
    return [decode(decoder, clip.path) for clip in clips[:count]]


def encoded(encoder: Encoder, batch: list[Pcm]) -> tuple[torch.Tensor, torch.Tensor]:
    output, frames = encoder.encode(encoder.stage(batch))
    return output.clone(), frames.clone()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_graphs_give_the_same_output(
    loaded: LoadedModel, clips: list[Clip], decoder: FfmpegDecoder, count: int
) -> None:
    batch = waves(clips, decoder, count)
    exact = Encoder(loaded.network, device="cpu", longest_s=5.0)

    output, frames = encoded(loaded.encoder, batch)

    expected, expected_frames = encoded(exact, batch)
    assert torch.equal(frames, expected_frames)
    assert output.shape[0] == count
    for row, wanted, length in zip(output, expected, frames.tolist(), strict=True):
        torch.testing.assert_close(row[:, :length], wanted[:, :length], rtol=1e-3, atol=1e-3)


def test_graphs_are_captured_while_loading_and_not_again(
    loaded: LoadedModel, gpu: FakeGpu, clips: list[Clip], decoder: FfmpegDecoder
) -> None:
    captured = list(gpu.captures)
    for wave in waves(clips, decoder, 8):
        encoded(loaded.encoder, [wave])

    *smaller, largest = loaded.encoder.shapes.graphed
    assert captured[1:] == [largest, *smaller], "the others fit into its memory"
    assert gpu.captures == captured


def test_captures_leave_no_workspaces_behind(loaded: LoadedModel, gpu: FakeGpu) -> None:
    """torch would keep them, and with them the graphs' memory, after the model is unloaded.

    Only a fake has shown this; that torch keeps them is seen in its code.
    """
    assert len(gpu.captures) > 1
    assert not gpu.workspaces


def test_the_warm_up_reports_its_progress(gpu: FakeGpu) -> None:
    fractions: list[float] = []

    load_model(DEMO_MODEL, options(on_warm_up=fractions.append))

    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_long_warm_up_is_ended_and_the_rest_is_captured_when_needed(
    loaded: LoadedModel, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parakeet_api.model.encoder._WARM_UP_S", 8.0)
    clock = Clock()
    encoder = Encoder(loaded.network, device="cuda:0", longest_s=5.0, graphed_s=11.0, clock=clock)
    del gpu.captures[:]

    encoder.warm_up(lambda _: setattr(clock, "now", clock.now + 4.1))
    assert len(gpu.captures) == 2
    encoded(encoder, [np.ones(4 * SAMPLE_RATE, np.int16)] * 2)

    assert gpu.captures[2:] == [(2, round(5.12 * SAMPLE_RATE))]


def test_without_memory_for_a_graph_passes_go_on_and_it_comes_later(
    loaded: LoadedModel, gpu: FakeGpu
) -> None:
    clock = Clock()
    encoder = Encoder(loaded.network, device="cuda:0", longest_s=5.0, graphed_s=11.0, clock=clock)
    del gpu.captures[:]
    wave = np.full(SAMPLE_RATE, 100, np.int16)
    gpu.fail_captures = SHORTAGE
    without, _ = encoded(encoder, [wave])
    gpu.fail_captures = None
    encoded(encoder, [wave])
    assert not gpu.captures
    without_graphs = encoder._pool

    clock.now += 31
    with_graph, _ = encoded(encoder, [wave])

    assert len(gpu.captures) == 1
    assert encoder._pool is not without_graphs, "torch refuses a pool that no graph keeps"
    torch.testing.assert_close(with_graph, without, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_captured_is_encoded_without_graphs(
    loaded: LoadedModel, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(loaded.network, device="cuda:0", longest_s=5.0, graphed_s=11.0)
    gpu.fail_captures = torch.AcceleratorError("CUDA error: operation not permitted")

    for _ in range(3):
        assert encoded(encoder, [np.full(SAMPLE_RATE, 100, np.int16)])[0].shape[0] == 1

    assert caplog.text.count("no CUDA graphs of the encoder") == 1


def test_a_capture_that_fails_leaves_torchs_allocator_as_it_was(
    loaded: LoadedModel, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(loaded.network, device="cuda:0", longest_s=5.0, graphed_s=11.0)
    encode = encoder_module.encode

    def refused(*args: Any) -> Any:
        if gpu.capturing:
            raise torch.AcceleratorError("CUDA error: operation not permitted during capture")
        return encode(*args)

    monkeypatch.setattr(encoder_module, "encode", refused)

    assert encoded(encoder, [np.full(SAMPLE_RATE, 100, np.int16)])[0].shape[0] == 1
    assert not encoder._graphs_work
    assert not gpu.allocates_in_graph


def test_a_graph_whose_output_is_wrong_is_not_used(
    loaded: LoadedModel,
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = Encoder(loaded.network, device="cuda:0", longest_s=5.0, graphed_s=11.0)
    wave = np.full(SAMPLE_RATE, 100, np.int16)
    expected = encoded(Encoder(loaded.network, device="cpu", longest_s=5.0), [wave])[0]
    from fake_gpu import _Graph

    monkeypatch.setattr(_Graph, "replay", lambda _: None)
    monkeypatch.setattr(
        "parakeet_api.model.encoder._AGREEMENT", -1.0
    )  # What was captured is as exact here as what ran before it.

    output, frames = encoded(encoder, [wave])

    assert "a graph's output is wrong" in caplog.text
    length = int(frames[0])
    torch.testing.assert_close(output[..., :length], expected[..., :length], rtol=1e-3, atol=1e-3)


def test_a_longer_chunk_than_planned_is_encoded_after_graphs_were_dropped(
    loaded: LoadedModel, gpu: FakeGpu
) -> None:
    """Graphs read the table of positions that a longer chunk replaces."""
    encoded(loaded.encoder, [np.full(12 * SAMPLE_RATE, 100, np.int16)])
    del gpu.captures[:]

    encoded(loaded.encoder, [np.full(SAMPLE_RATE, 100, np.int16)])

    assert len(gpu.captures) == 1


@pytest.mark.parametrize("length", [1, 10, 159, 160, 319, 320, 500])
def test_sounds_shorter_than_two_windows_are_no_error_on_a_gpu(
    loaded: LoadedModel, length: int
) -> None:
    """NeMo refuses them there, and a whole batch with them."""
    short, clip = np.full(length, 100, np.int16), np.full(SAMPLE_RATE, 100, np.int16)

    for batch in ([short], [short, clip], [clip] * 5 + [short]):
        output, frames = encoded(loaded.encoder, batch)
        assert torch.isfinite(output).all()
        assert min(frames.tolist()) >= 1


def test_rows_that_are_padding_are_not_in_the_output(loaded: LoadedModel) -> None:
    batch = [np.full(SAMPLE_RATE, 100, np.int16)] * 3

    assert loaded.encoder.stage(batch).samples.shape[0] == 4
    assert encoded(loaded.encoder, batch)[0].shape[0] == 3
