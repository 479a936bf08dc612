"""The token decoder's CUDA graphs, with NeMo's own code for them on a simulated GPU."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from conftest import DEMO_MODEL, Clip, Clock, decode, demo_options, whole
from fake_gpu import FakeGpu

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model import loading
from parakeet_api.model.loading import load_model
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.model.token_decoder import GraphShape, TokenDecoder, Tokens

LARGEST = GraphShape(rows=4, frames=130, width=128)
SHORTAGE = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def graphed(
    recognizer: NemoRecognizer, shape: GraphShape = LARGEST, clock: Clock | None = None
) -> TokenDecoder:
    """Make a decoder over the demo model that decodes as on a GPU."""
    options = demo_options(device="cuda:0")
    decoder = loading._build_decoder(recognizer._model, options, graphs=shape)
    return TokenDecoder(decoder.nemo, device="cuda:0", graphs=shape, clock=clock or Clock())


def batch(rows: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    encoded = torch.randn(rows, LARGEST.width, frames, generator=generator)
    return encoded, torch.full((rows,), frames)


def rows(tokens: Tokens) -> list[list[int]]:
    return [ids[:count] for ids, count in zip(tokens.ids.tolist(), tokens.counts, strict=True)]


ALTERNATING = [(4, 20), (1, 130), (4, 20), (1, 130), (2, 60)]


def test_graphs_are_captured_once_and_for_the_largest_batch(
    recognizer: NemoRecognizer, gpu: FakeGpu
) -> None:
    decoder = graphed(recognizer)

    for count, frames in ALTERNATING:
        assert len(decoder.decode(*batch(count, frames)).counts) == count

    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)]
    assert decoder.uses_graphs


@pytest.mark.parametrize(("count", "frames"), [(5, 20), (2, 140)])
def test_a_larger_batch_than_planned_is_decoded_without_graphs(
    recognizer: NemoRecognizer, gpu: FakeGpu, count: int, frames: int
) -> None:
    """NeMo would capture again, outside the pool. Only a fake has shown this."""
    decoder = graphed(recognizer)
    exact = graphed(recognizer)
    exact._graphs = None

    assert rows(decoder.decode(*batch(count, frames))) == rows(exact.decode(*batch(count, frames)))
    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)]
    assert decoder.uses_graphs


def test_nemo_alone_would_capture_again_and_again(recognizer: NemoRecognizer, gpu: FakeGpu) -> None:
    """The reason to capture the largest batch first: NeMo does not keep its row count."""
    decoder = graphed(recognizer, GraphShape(rows=1, frames=1, width=LARGEST.width))
    decoder.capture()
    computer = decoder.nemo.decoding.decoding_computer

    for count, frames in ALTERNATING[:4]:
        encoded, lengths = batch(count, frames)
        with torch.inference_mode():
            computer(x=encoded.transpose(1, 2), out_len=lengths)

    assert gpu.captures[1:] == ALTERNATING[:4]


def test_graphs_give_the_same_words(
    recognizer: NemoRecognizer, gpu: FakeGpu, clips: list[Clip], decoder: FfmpegDecoder
) -> None:
    chunks = [whole(decode(decoder, clip.path)) for clip in clips[:4]]
    expected = recognizer.recognize(chunks)
    options = demo_options(device="cuda:0", largest_batch=4, longest_s=10)

    on_gpu = NemoRecognizer.load(DEMO_MODEL, options)

    assert on_gpu._decoder.uses_graphs
    for one, other in zip(on_gpu.recognize(chunks), expected, strict=True):
        assert [w.text for w in one] == [w.text for w in other]
        assert [w.start for w in one] == pytest.approx([w.start for w in other])
        assert [w.end for w in one] == pytest.approx([w.end for w in other])
        assert [w.logprob for w in one] == pytest.approx([w.logprob for w in other], abs=1e-3)


def test_dropped_graphs_are_captured_again_for_the_largest_batch(
    recognizer: NemoRecognizer, gpu: FakeGpu
) -> None:
    decoder = graphed(recognizer)
    decoder.capture()

    decoder.forget_graphs()
    assert decoder.nemo.decoding.decoding_computer.state is None, "its memory is given back"
    decoder.decode(*batch(1, 10))

    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)] * 2


def test_graphs_outlive_what_gives_unused_memory_back(
    recognizer: NemoRecognizer, gpu: FakeGpu
) -> None:
    decoder = graphed(recognizer)
    before = rows(decoder.decode(*batch(3, 100)))

    torch.cuda.empty_cache()

    assert rows(decoder.decode(*batch(3, 100))) == before
    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)]


def test_graphs_without_a_pool_of_their_own_would_lose_the_gpu(
    recognizer: NemoRecognizer, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As measured: NeMo's loops write into memory that torch considers free."""
    monkeypatch.setattr(TokenDecoder, "_own_pool", lambda _: contextlib.nullcontext())
    decoder = graphed(recognizer)

    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        decoder.decode(*batch(1, 10))
    assert gpu.lost


def test_graphs_of_one_model_stay_while_another_is_loaded(
    recognizer: NemoRecognizer, gpu: FakeGpu
) -> None:
    decoder = graphed(recognizer)
    decoder.capture()

    load_model(DEMO_MODEL, demo_options())

    assert decoder.uses_graphs
    assert decoder.decode(*batch(1, 10)).counts


def test_without_graphs_decoding_continues_with_one_warning(
    recognizer: NemoRecognizer, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = graphed(recognizer)
    gpu.fail_captures = RuntimeError("CUDA failure! 35\nand a trace")

    for count, frames in ALTERNATING:
        assert len(decoder.decode(*batch(count, frames)).counts) == count

    warnings = [r.getMessage() for r in caplog.records if "no CUDA graphs" in r.message]
    assert len(warnings) == 1
    assert warnings[0].endswith("CUDA failure! 35")


def test_graphs_that_give_other_tokens_are_not_used(
    recognizer: NemoRecognizer,
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exact = graphed(recognizer)
    exact._graphs = None
    expected = rows(exact.decode(*batch(3, 100)))
    decoder = graphed(recognizer)
    computer: Any = type(decoder.nemo.decoding.decoding_computer)
    real = computer.cuda_graphs_impl

    def garbled(*args: Any, **kwargs: Any) -> Any:
        hypotheses, state = real(*args, **kwargs)
        hypotheses.transcript += 1
        return hypotheses, state

    monkeypatch.setattr(computer, "cuda_graphs_impl", garbled)

    assert rows(decoder.decode(*batch(3, 100))) == expected
    assert not decoder.uses_graphs
    assert "they give other tokens in 4 of 8 rows" in caplog.text


def test_graphs_come_back_after_a_passing_shortage(
    recognizer: NemoRecognizer, gpu: FakeGpu
) -> None:
    clock = Clock()
    decoder = graphed(recognizer, clock=clock)
    gpu.fail_captures = SHORTAGE
    without = rows(decoder.decode(*batch(2, 60)))
    gpu.fail_captures = None

    decoder.decode(*batch(2, 60))
    assert not gpu.captures, "not tried with every batch"
    clock.now += 31
    with_graphs = rows(decoder.decode(*batch(2, 60)))

    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)]
    assert with_graphs == without


def test_graphs_have_their_loops_again_after_a_passing_shortage(
    recognizer: NemoRecognizer, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error in the loops NeMo captures without them, now and later."""
    clock = Clock()
    decoder = graphed(recognizer, clock=clock)
    computer: Any = decoder.nemo.decoding.decoding_computer
    modes = computer.CudaGraphsMode

    def fail(it: Any, _: object) -> None:
        it.cuda_graphs_mode = modes.NO_WHILE_LOOPS
        raise SHORTAGE

    with monkeypatch.context() as patch:
        patch.setattr(type(computer), "_graph_reinitialize", fail)
        decoder.decode(*batch(2, 60))
    clock.now += 31
    decoder.decode(*batch(2, 60))

    assert computer.cuda_graphs_mode is modes.NO_GRAPHS, "the simulated GPU's best"
    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)]


def test_a_failed_batch_leaves_no_half_made_state(
    recognizer: NemoRecognizer, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = graphed(recognizer)
    decoder.capture()
    computer = type(decoder.nemo.decoding.decoding_computer)

    def fail(*_: Any, **__: Any) -> None:
        raise SHORTAGE

    with monkeypatch.context() as patch:
        patch.setattr(computer, "_before_outer_loop", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            decoder.decode(*batch(2, 20))

    assert decoder.nemo.decoding.decoding_computer.state is None
    assert len(decoder.decode(*batch(2, 20)).counts) == 2
    assert gpu.captures == [(LARGEST.rows, LARGEST.frames)] * 2


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
@pytest.mark.parametrize("allowed", [True, False])
def test_nemo_gets_the_setting_for_graphs(
    recognizer: NemoRecognizer, strategy: str, allowed: bool
) -> None:
    options = demo_options(device="cuda:0", strategy=strategy)

    decoder = loading._build_decoder(
        recognizer._model, options, graphs=LARGEST if allowed else None
    )

    assert decoder.nemo.decoding.decoding_computer.allow_cuda_graphs is allowed


@pytest.mark.parametrize(
    ("device", "switch", "used"),
    [("cuda:0", True, True), ("cuda:0", False, False), ("cpu", True, False)],
)
def test_the_switch_turns_all_graphs_off(
    gpu: FakeGpu, device: str, switch: bool, used: bool
) -> None:
    options = demo_options(
        device=device, cuda_graphs=switch, largest_batch=2, longest_s=5.0, graphed_s=10.0
    )

    loaded = load_model(DEMO_MODEL, options)

    assert loaded.decoder.uses_graphs is used
    assert bool(gpu.captures) is used
    assert loaded.decoder.decode(*batch(1, 10)).counts


def test_a_beam_gives_its_tokens_and_their_durations(
    clips: list[Clip], decoder: FfmpegDecoder
) -> None:
    loaded = load_model(DEMO_MODEL, demo_options(strategy="beam"))
    chunks = [decode(decoder, clip.path) for clip in clips[:3]]
    tokens = loaded.decoder.decode(*loaded.encoder.encode(loaded.encoder.stage(chunks)))

    assert tokens.durations is not None
    assert tokens.durations.shape == tokens.ids.shape == tokens.frames.shape
    assert len(tokens.counts) == 3
    assert max(tokens.counts) == tokens.ids.shape[1]
    assert min(tokens.counts) > 0
