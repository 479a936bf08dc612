"""NeMo's own code for CUDA graphs, run on a CPU in its mode without capturing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DEMO_MODEL, Clip, decode, demo_options, whole

from parakeet_api import nemo_model
from parakeet_api.audio import FfmpegDecoder
from parakeet_api.nemo_model import LoadedModel, frames_of, load_model
from parakeet_api.recognizer import NemoRecognizer
from parakeet_api.token_decoder import GraphShape, TokenDecoder
from parakeet_api.transcript import Chunk

LARGEST = GraphShape(rows=4, frames=130, width=128)

GraphedDecoder = Callable[[GraphShape], TokenDecoder]


@pytest.fixture
def computer(recognizer: NemoRecognizer) -> Any:
    """Give NeMo's class that decodes TDT in batches, with graphs or without."""
    return type(recognizer._decoder.nemo.decoding.decoding_computer)


@pytest.fixture
def captures(computer: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let every decoder take the path of CUDA graphs; lists the (rows, frames) of each capture."""
    captured: list[tuple[int, int]] = []
    real = computer._graph_reinitialize

    def call(self: Any, x: Any, out_len: Any, **_: Any) -> Any:
        if self.cuda_graphs_mode is None:
            return self.torch_impl(encoder_output=x, encoder_output_length=out_len)
        return self.cuda_graphs_impl(encoder_output=x, encoder_output_length=out_len)

    def counted(self: Any, encoded: Any) -> None:
        captured.append(tuple(encoded.shape[:2]))
        real(self, encoded)

    monkeypatch.setattr(computer, "__call__", call)
    monkeypatch.setattr(computer, "_graph_reinitialize", counted)
    return captured


@pytest.fixture
def graphed(captures: list[tuple[int, int]]) -> GraphedDecoder:
    """Make a decoder over the demo model that decodes as on a card, without capturing."""
    loaded = load_model(DEMO_MODEL, demo_options())

    def graphed(shape: GraphShape) -> TokenDecoder:
        loaded.decoder.nemo.decoding.decoding_computer.force_cuda_graphs_mode("no_graphs")
        return TokenDecoder(loaded.decoder.nemo, device="cpu", graphs=shape)

    return graphed


def batch(rows: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    encoded = torch.randn(rows, LARGEST.width, frames, generator=generator)
    return encoded, torch.full((rows,), frames)


ALTERNATING = [(4, 20), (1, 130), (4, 20), (1, 130), (2, 60)]


def test_graphs_are_captured_once_and_for_the_largest_batch(
    graphed: GraphedDecoder, captures: list[tuple[int, int]]
) -> None:
    decoder = graphed(LARGEST)

    for rows, frames in ALTERNATING:
        assert len(decoder.decode(*batch(rows, frames))) == rows

    assert captures == [(LARGEST.rows, LARGEST.frames)]


def test_nemo_alone_would_capture_again_and_again(
    graphed: GraphedDecoder, captures: list[tuple[int, int]]
) -> None:
    """Why the largest batch is captured first: NeMo forgets how many rows it had."""
    decoder = graphed(GraphShape(rows=1, frames=1, width=LARGEST.width))

    # NeMo never sizes its buffers below 375 frames.
    for rows, frames in [(4, 20), (1, 400), (4, 20), (1, 400)]:
        decoder.decode(*batch(rows, frames))

    assert captures[1:] == [(4, 20), (1, 400), (4, 20), (1, 400)]


def test_graphs_give_the_same_words(
    graphed: GraphedDecoder,
    recognizer: NemoRecognizer,
    clips: list[Clip],
    decoder: FfmpegDecoder,
) -> None:
    chunks = [whole(decode(decoder, clip.path)) for clip in clips[:4]]
    loaded = LoadedModel(recognizer._model, graphed(LARGEST), recognizer.info)

    assert NemoRecognizer(loaded, demo_options()).recognize(chunks) == recognizer.recognize(chunks)


def test_forgotten_graphs_are_captured_for_the_largest_batch_again(
    graphed: GraphedDecoder, captures: list[tuple[int, int]]
) -> None:
    decoder = graphed(LARGEST)
    decoder.capture()

    decoder.forget_graphs()
    assert decoder.nemo.decoding.decoding_computer.state is None, "its memory is given back"
    decoder.decode(*batch(1, 10))

    assert captures == [(LARGEST.rows, LARGEST.frames)] * 2


def test_loading_another_model_forgets_the_graphs_first(
    graphed: GraphedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = graphed(LARGEST)
    decoder.capture()
    states: list[object] = []
    real = nemo_model._restore

    def restore(path: Any) -> Any:
        states.append(decoder.nemo.decoding.decoding_computer.state)
        return real(path)

    monkeypatch.setattr(nemo_model, "_restore", restore)
    load_model(DEMO_MODEL, demo_options())

    assert states == [None]


def test_without_graphs_decoding_goes_on_and_one_warning_tells(
    graphed: GraphedDecoder,
    computer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(self: Any, _: Any) -> None:
        raise RuntimeError("CUDA failure! 35\nand a trace")

    decoder = graphed(LARGEST)
    monkeypatch.setattr(computer, "_graph_reinitialize", fail)

    for rows, frames in ALTERNATING:
        assert len(decoder.decode(*batch(rows, frames))) == rows

    warnings = [r.getMessage() for r in caplog.records if "no CUDA graphs" in r.message]
    assert len(warnings) == 1
    assert warnings[0].endswith("CUDA failure! 35")


def test_a_failed_batch_leaves_no_half_made_state(
    graphed: GraphedDecoder,
    captures: list[tuple[int, int]],
    computer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Any, *_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    decoder = graphed(LARGEST)
    decoder.capture()
    with monkeypatch.context() as patch:
        patch.setattr(computer, "_before_outer_loop", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            decoder.decode(*batch(2, 20))

    assert decoder.nemo.decoding.decoding_computer.state is None
    assert len(decoder.decode(*batch(2, 20))) == 2
    assert captures == [(LARGEST.rows, LARGEST.frames)] * 2


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
@pytest.mark.parametrize(
    ("device", "switch", "allowed"),
    [("cuda:0", True, True), ("cuda:0", False, False), ("cpu", True, False)],
)
def test_the_switch_turns_graphs_off_on_a_card(  # noqa: PLR0917 - a row of the table each
    recognizer: NemoRecognizer,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    device: str,
    switch: bool,
    allowed: bool,
) -> None:
    captured: list[TokenDecoder] = []

    def capture(self: TokenDecoder) -> None:
        captured.append(self)

    monkeypatch.setattr(TokenDecoder, "capture", capture)
    options = demo_options(
        device=device, strategy=strategy, cuda_graphs=switch, largest_batch=8, longest_s=60.0
    )

    decoder = nemo_model._build_decoder(recognizer._model, options)

    assert decoder.nemo.decoding.decoding_computer.allow_cuda_graphs is allowed
    shape = GraphShape(rows=8, frames=frames_of(recognizer._model, 60.0), width=128)
    assert decoder._graphs == (shape if allowed else None)
    assert captured == [decoder]


def test_no_chunk_of_the_plan_has_more_frames_than_the_graphs(recognizer: NemoRecognizer) -> None:
    for seconds in (0.1, 7.77, 30.0, 60.0):
        samples = torch.ones(round(seconds * 16_000), dtype=torch.int16).numpy()
        with torch.inference_mode():
            encoded, _ = recognizer._encode([Chunk(0, 0, samples, 0, len(samples))])

        assert encoded.shape[2] <= frames_of(recognizer._model, seconds)
