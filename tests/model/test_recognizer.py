from __future__ import annotations

import fcntl
import gc
import tempfile
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from conftest import DEMO_MODEL, Clip, decode, demo_options, whole
from fake_gpu import FakeGpu

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import CheckpointError, DeviceLostError, ModelLoadError, SettingsError
from parakeet_api.model.cuda import GraphVerdict
from parakeet_api.model.encoder import encode
from parakeet_api.model.heap import HeapTrimmer
from parakeet_api.model.loading import load_model
from parakeet_api.model.recognizer import NemoRecognizer, OutOfDeviceMemoryError
from parakeet_api.model.restore import _UNPACKED, _locked
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Pcm, Word, join_words

NOISE = whole(np.random.default_rng(1).integers(-900, 900, SAMPLE_RATE).astype(np.int16))


@pytest.fixture(scope="module")
def waveforms(clips: list[Clip], decoder: FfmpegDecoder) -> list[Pcm]:
    return [decode(decoder, clip.path) for clip in clips]


def state_of(recognizer: NemoRecognizer) -> dict[str, Any]:
    model = recognizer._model
    modes = {name: module.training for name, module in model.named_modules()}
    return modes | {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if torch.is_tensor(value) else value == after[name]
        assert same, name


def without_logprobs(words: list[Word]) -> list[tuple[str, float, float, list[int]]]:
    return [(w.text, w.start, w.end, [t.id for t in w.tokens]) for w in words]


def word_error_rate(recognizer: NemoRecognizer, clips: list[Clip], waveforms: list[Pcm]) -> float:
    words = [recognizer.recognize([whole(samples)])[0] for samples in waveforms]
    return float(jiwer.wer([clip.text for clip in clips], [join_words(w) for w in words]))


def test_clips_are_recognised_as_well_as_by_nemo_itself(
    recognizer: NemoRecognizer, clips: list[Clip], waveforms: list[Pcm]
) -> None:
    """0.63 % is the error rate of NeMo's own decoding of these clips in one pass."""
    assert word_error_rate(recognizer, clips, waveforms) == pytest.approx(0.0063, abs=0.001)


def test_a_batch_gives_the_same_words_and_times_as_one_by_one(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    chunks = [whole(samples) for samples in waveforms[:16]]

    together = recognizer.recognize(chunks)
    alone = [recognizer.recognize([chunk])[0] for chunk in chunks]

    for one, other in zip(together, alone, strict=True):
        assert without_logprobs(one) == without_logprobs(other)
        assert [w.logprob for w in one] == pytest.approx([w.logprob for w in other], abs=1e-4)


def test_a_waveform_padded_to_the_grid_is_encoded_alike(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    widths = set()
    for samples in waveforms:
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
        with torch.inference_mode():
            exact, frames = encode(recognizer._model, waveform, torch.tensor([len(samples)]))
            padded, padded_frames = recognizer._encode([whole(samples)])
        assert torch.equal(frames, padded_frames)
        count = int(frames)
        assert torch.allclose(padded[:, :, :count], exact[:, :, :count], atol=1e-4)
        widths.add(padded.shape[2])

    assert len(widths) < len({len(samples) // FRAME for samples in waveforms})


def test_words_and_their_tokens_say_the_same(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    for words in recognizer.recognize([whole(samples) for samples in waveforms[:8]]):
        ids = [token.id for word in words for token in word.tokens]
        assert join_words(words) == recognizer._model.tokenizer.ids_to_text(ids)
        for word in words:
            assert "".join(token.text for token in word.tokens).strip() == word.text


def nemo_decoding(model: Any, **config: Any) -> Any:
    """Make NeMo's greedy decoding as its users do."""
    import copy

    from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
    from omegaconf import open_dict

    changed = copy.deepcopy(model.cfg.decoding)
    with open_dict(changed):
        changed.update(config)
    return RNNTBPEDecoding(
        decoding_cfg=changed, decoder=model.decoder, joint=model.joint, tokenizer=model.tokenizer
    )


def test_log_probabilities_are_those_that_the_decoder_computes(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    """NeMo's own token confidence, inverted: c = (pV - 1) / (V - 1)."""
    from omegaconf import OmegaConf

    model = recognizer._model
    method = {"name": "max_prob", "alpha": 1.0}
    decoding = nemo_decoding(
        model,
        confidence_cfg=OmegaConf.create(
            {"preserve_token_confidence": True, "exclude_blank": True, "method_cfg": method}
        ),
    )
    chunk = whole(waveforms[6])
    with torch.inference_mode():
        encoded, lengths = recognizer._encode([chunk])
        hypothesis = decoding.decoding(encoder_output=encoded, encoded_lengths=lengths)[0][0]
    size = model.decoder.blank_idx + 1
    confidences = np.array([float(c) for c in hypothesis.non_blank_frame_confidence])
    expected = np.log((confidences * (size - 1) + 1) / size)

    words = recognizer.recognize([chunk])[0]

    given = [token.logprob for word in words for token in word.tokens]
    assert given == pytest.approx(expected.tolist(), abs=1e-5)


def test_durations_are_those_of_unbatched_decoding(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    """NeMo's batched torch path overwrites them for other rows of the batch (its issue 16097)."""
    chunks = [whole(samples) for samples in waveforms[:12]]
    ours = recognizer.recognize(chunks)
    decoding = nemo_decoding(recognizer._model, tdt_include_token_duration=True)
    for chunk, words in zip(chunks, ours, strict=True):
        with torch.inference_mode():
            encoded, lengths = recognizer._encode([chunk])
            alone = decoding.decoding(encoder_output=encoded, encoded_lengths=lengths)[0][0]
        ends = (alone.timestamp + alone.token_duration) * FRAME / SAMPLE_RATE
        lasts = np.cumsum([len(word.tokens) for word in words]) - 1
        for word, last in zip(words, lasts, strict=True):
            if word.text[-1].isalnum():
                assert word.end == pytest.approx(
                    min(float(ends[last]), len(chunk.samples) / SAMPLE_RATE)
                )


def test_times_are_those_of_the_recording_not_of_the_chunk(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    samples = waveforms[0]
    later = Chunk(3, 10 * FRAME, samples, 10 * FRAME, 10 * FRAME + len(samples))

    at_start = recognizer.recognize([whole(samples)])[0]
    moved = recognizer.recognize([later])[0]

    assert [w.start for w in moved] == pytest.approx([w.start + 0.8 for w in at_start])
    assert [w.end for w in moved] == pytest.approx([w.end + 0.8 for w in at_start])


def test_word_times_lie_in_the_chunk_and_in_order(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    for samples in waveforms:
        words = recognizer.recognize([whole(samples)])[0]
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= len(samples) / SAMPLE_RATE


@pytest.mark.parametrize("samples", [1, 10, 159, 160, 257, 1279, 1280, 1600])
def test_the_shortest_sounds_are_no_error(recognizer: NemoRecognizer, samples: int) -> None:
    # Not zeros: those cost no pass.
    sound, clip = np.full(samples, 3, np.int16), np.full(3 * SAMPLE_RATE, 3, np.int16)

    assert len(recognizer.recognize([whole(sound)])) == 1
    assert len(recognizer.recognize([whole(sound), whole(clip)])) == 2


def test_digital_silence_costs_no_pass(
    recognizer: NemoRecognizer, waveforms: list[Pcm], monkeypatch: pytest.MonkeyPatch
) -> None:
    silence, speech = whole(np.zeros(3 * SAMPLE_RATE, np.int16)), whole(waveforms[0])
    words = recognizer.recognize([speech])[0]
    between = recognizer.recognize([silence, speech, silence])
    monkeypatch.setattr(recognizer, "_recognize", None)

    assert between == [[], words, []]
    assert recognizer.recognize([silence, silence]) == [[], []]


def test_a_thousand_calls_change_nothing_in_the_model(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    chunk = Chunk(0, 0, waveforms[0][:SAMPLE_RATE], 0, SAMPLE_RATE)
    first = recognizer.recognize([chunk])
    before = state_of(recognizer)

    for _ in range(1000):
        last = recognizer.recognize([chunk])

    assert last == first
    assert_same_state(before, state_of(recognizer))


def test_threads_do_not_disturb_each_other(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    chunks = [whole(samples) for samples in waveforms[:30]]
    alone = [recognizer.recognize([chunk]) for chunk in chunks]

    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda chunk: recognizer.recognize([chunk]), chunks))

    assert together == alone


def test_a_chunk_longer_than_planned_is_recognised_all_the_same(
    waveforms: list[Pcm], recognizer: NemoRecognizer
) -> None:
    small = NemoRecognizer.load(DEMO_MODEL, demo_options(longest_s=1.0))
    chunk = whole(waveforms[10])

    assert small.recognize([chunk]) == recognizer.recognize([chunk])


def test_the_beam_gives_words_with_times_and_probabilities(
    clips: list[Clip], waveforms: list[Pcm]
) -> None:
    beam = NemoRecognizer.load(DEMO_MODEL, demo_options(strategy="beam", beam_size=4))
    assert type(beam._decoder.nemo.decoding).__name__.startswith("BeamBatched")

    texts = []
    for samples in waveforms[:20]:
        words = beam.recognize([whole(samples)])[0]
        texts.append(join_words(words))
        assert all(0 <= w.start <= w.end <= len(samples) / SAMPLE_RATE for w in words)
        assert all(w.logprob is not None and w.logprob <= 0 for w in words)
    assert jiwer.wer([clip.text for clip in clips[:20]], texts) < 0.02


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_reduced_precision_recognises_as_well(
    precision: str, clips: list[Clip], waveforms: list[Pcm]
) -> None:
    reduced = NemoRecognizer.load(DEMO_MODEL, demo_options(precision=precision))

    assert reduced.info.precision == precision
    assert word_error_rate(reduced, clips[:30], waveforms[:30]) < 0.02


def test_precision_auto_stays_exact_for_a_small_model_on_a_cpu(recognizer: NemoRecognizer) -> None:
    automatic = NemoRecognizer.load(DEMO_MODEL, demo_options(precision="auto"))

    assert automatic.info.precision == "fp32"


def test_precision_auto_falls_back_when_the_self_test_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from parakeet_api.model import precision as module

    monkeypatch.setattr(module, "_candidates", lambda *_: ("fp16", "bf16"))
    monkeypatch.setattr(module, "_cast_encoder", overflowing_fp16)

    loaded = NemoRecognizer.load(DEMO_MODEL, demo_options(precision="auto"))

    assert loaded.info.precision == "bf16"
    assert "fp16 failed its self-test" in caplog.text


def overflowing_fp16(model: Any, precision: str, *, device: str) -> None:
    """Cast as the service does, but let fp16 overflow, as it can on weights trained in bf16."""
    model.encoder.to(torch.bfloat16)
    if precision == "fp16":
        next(model.encoder.parameters()).data.fill_(float("inf"))


def test_precision_auto_ends_with_full_precision_and_the_weights_as_they_were(
    recognizer: NemoRecognizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU with bf16, on which neither half precision computes anything of use."""
    from parakeet_api.model import precision as module

    def broken(model: Any, precision: str, *, device: str) -> None:
        model.encoder.to(torch.bfloat16)
        next(model.encoder.parameters()).data.fill_(
            float("inf") if precision == "fp16" else float("nan")
        )

    real = module._candidates
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(module, "_candidates", lambda model, _: real(model, device="cuda:0"))
    monkeypatch.setattr(module, "_cast_encoder", broken)

    loaded = NemoRecognizer.load(DEMO_MODEL, demo_options(precision="auto"))

    assert loaded.info.precision == "fp32"
    assert "fp16 failed its self-test: encoder error inf" in caplog.text
    assert "bf16 failed its self-test: encoder error inf" in caplog.text
    weights = loaded._model.encoder.state_dict()
    for name, tensor in recognizer._model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(("bf16", "candidates"), [(True, ("fp16", "bf16")), (False, ("fp16",))])
def test_a_gpu_is_tried_with_the_half_precisions_that_it_has(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, candidates: tuple[str, ...]
) -> None:
    from parakeet_api.model.precision import _candidates

    def is_bf16_supported(*, including_emulation: bool = True) -> bool:
        # Every GPU emulates it.
        return including_emulation or bf16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    assert _candidates(None, "cuda:0") == candidates


@pytest.mark.parametrize(
    ("flags", "candidates"),
    [
        ("fpu avx2 avx512f avx512_bf16 avx512_vnni", ("bf16",)),
        ("fpu avx2 amx_bf16 amx_int8", ("bf16",)),
        ("fpu avx2 avx512f avx512_vnni", ("int8",)),
        ("fpu avx2", ("int8",)),
        ("fpu sse4_2 avx2_but_not_really", ()),
    ],
)
def test_a_large_model_on_a_cpu_is_tried_with_what_the_cpu_is_fast_at(
    monkeypatch: pytest.MonkeyPatch, flags: str, candidates: tuple[str, ...]
) -> None:
    from parakeet_api.model import precision as module

    cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    monkeypatch.setattr(module, "is_large", lambda _: True)
    assert module._candidates(None, "cpu") == candidates

    monkeypatch.setattr(module, "is_large", lambda _: False)
    assert module._candidates(None, "cpu") == (), "small models gain nothing"


def test_int8_on_a_gpu_is_refused_by_name() -> None:
    from parakeet_api.model.precision import _cast_encoder

    with pytest.raises(SettingsError, match="PRECISION='int8'"):
        _cast_encoder(None, "int8", device="cuda:0")


@pytest.mark.parametrize(("keep_mb", "trims"), [(1500, 1), (None, 0)])
def test_on_a_cpu_the_heap_is_given_back_after_a_batch(
    recognizer: NemoRecognizer, keep_mb: float | None, trims: int
) -> None:
    options = demo_options(keep_cached_mb=keep_mb)
    on_cpu = NemoRecognizer(load_model(DEMO_MODEL, options), options)
    trimmed: list[None] = []
    on_cpu._heap = HeapTrimmer(trim=lambda: trimmed.append(None))

    on_cpu.recognize([NOISE])

    assert len(trimmed) == trims


ILLEGAL_ACCESS = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def verdict(tmp_path: Path) -> GraphVerdict:
    return GraphVerdict(tmp_path / "cuda-graphs.json", setup="this GPU, this driver")


@pytest.fixture
def on_gpu(gpu: FakeGpu, verdict: GraphVerdict) -> NemoRecognizer:
    """Return the demo model on a GPU, with graphs."""
    return load_on_gpu(verdict)


def load_on_gpu(verdict: GraphVerdict, **changes: Any) -> NemoRecognizer:
    wanted = {"device": "cuda:0", "largest_batch": 4, "longest_s": 10.0, "graphed_s": 6.0}
    options = demo_options(**(wanted | changes), graph_verdict=verdict)
    return NemoRecognizer.load(DEMO_MODEL, options)


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


SHORTAGES = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1154'),
]


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_full_gpu_is_a_batch_too_large(
    on_gpu: NemoRecognizer, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    emptied = gpu.emptied
    with monkeypatch.context() as patch:
        patch.setattr(on_gpu._encoder, "encode", failing(error))
        with pytest.raises(OutOfDeviceMemoryError):
            on_gpu.recognize([NOISE])

    assert gpu.emptied == emptied + 1, "what the failed pass held is given back"
    assert on_gpu.recognize([NOISE]) is not None


def test_a_gpu_that_refuses_all_work_is_lost(
    on_gpu: NemoRecognizer, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        gpu.lost = True
        raise ILLEGAL_ACCESS

    monkeypatch.setattr(on_gpu._encoder, "encode", fail)

    with pytest.raises(DeviceLostError) as caught:
        on_gpu.recognize([NOISE])
    assert caught.value.__cause__ is ILLEGAL_ACCESS
    with pytest.raises(DeviceLostError):
        on_gpu.recognize([NOISE])
    # The GPU would refuse this too.
    on_gpu.close()


@pytest.mark.parametrize("found_in", ["encode", "decode"])
def test_a_lost_gpu_aborts_no_process_that_has_requests_to_answer(
    gpu: FakeGpu, verdict: GraphVerdict, monkeypatch: pytest.MonkeyPatch, found_in: str
) -> None:
    def fail(*_: object) -> None:
        gpu.lost = True
        raise ILLEGAL_ACCESS

    first, second = load_on_gpu(verdict), load_on_gpu(verdict)
    pools = [weakref.ref(model._decoder._pool) for model in (first, second)]
    part = first._encoder if found_in == "encode" else first._decoder
    monkeypatch.setattr(part, "encode" if found_in == "encode" else "_decode", fail)

    with pytest.raises(DeviceLostError):
        first.recognize([NOISE])
    # As the server does when it stops.
    first.close()
    second.close()
    del first, second, part
    gc.collect()

    assert all(pool() is not None for pool in pools)
    assert not gpu.aborted


def test_a_gpu_lost_to_another_thread_is_seen_before_the_batch(
    on_gpu: NemoRecognizer, gpu: FakeGpu
) -> None:
    gpu.lost = True

    with pytest.raises(DeviceLostError):
        on_gpu.recognize([NOISE])


def test_an_error_after_which_the_gpu_still_works_is_not_changed(
    on_gpu: NemoRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.AcceleratorError("CUDA error: invalid configuration argument")
    monkeypatch.setattr(on_gpu._encoder, "encode", failing(error))

    with pytest.raises(torch.AcceleratorError, match="invalid configuration"):
        on_gpu.recognize([NOISE])


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_model_that_does_not_fit_the_gpu_is_reported_and_leaves_nothing_there(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("parakeet_api.model.recognizer.load_model", failing(error))

    with pytest.raises(ModelLoadError, match=r"not enough free memory for the model: .*CU"):
        NemoRecognizer.load(DEMO_MODEL, demo_options(device="cuda:0"))
    assert gpu.emptied == 1


def test_a_gpu_lost_while_loading_is_lost(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.lost = True
    monkeypatch.setattr("parakeet_api.model.recognizer.load_model", failing(ILLEGAL_ACCESS))

    with pytest.raises(DeviceLostError):
        NemoRecognizer.load(DEMO_MODEL, demo_options(device="cuda:0"))


def test_after_graphs_that_lost_the_gpu_the_next_process_does_without(
    gpu: FakeGpu,
    verdict: GraphVerdict,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        # As a driver, a torch or a NeMo could make them.
        patch.setattr(
            "parakeet_api.model.token_decoder.TokenDecoder._own_pool", lambda _: nullcontext()
        )
        with pytest.raises(DeviceLostError):
            load_on_gpu(verdict)
    # A new process, a GPU that answers again.
    gpu.lost = False

    restarted = load_on_gpu(verdict)

    assert not restarted._decoder.uses_graphs
    assert len(restarted.recognize([NOISE])) == 1
    assert "no CUDA graphs, recognition is slower: CUDA error: an illegal" in caplog.text
    assert "to try them again" in caplog.text


def test_what_condemned_graphs_counts_for_that_gpu_and_driver_alone(
    gpu: FakeGpu, verdict: GraphVerdict, tmp_path: Path
) -> None:
    verdict.condemn("an illegal memory access")
    other = GraphVerdict(tmp_path / "cuda-graphs.json", setup="this GPU, a newer driver")

    assert load_on_gpu(other)._decoder.uses_graphs


@pytest.mark.parametrize(("passes", "condemned"), [(0, True), (99, True), (100, False)])
def test_a_gpu_lost_long_after_the_load_is_not_laid_to_the_graphs(
    on_gpu: NemoRecognizer,
    gpu: FakeGpu,
    verdict: GraphVerdict,
    passes: int,
    condemned: bool,
) -> None:
    on_gpu._passes = passes
    gpu.lost = True

    with pytest.raises(DeviceLostError):
        on_gpu.recognize([NOISE])

    assert (verdict.reason_against() is not None) is condemned


def test_a_gpu_gives_the_words_of_a_cpu_in_half_precision_too(
    gpu: FakeGpu, verdict: GraphVerdict, recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    chunks = [whole(samples) for samples in waveforms[:6]]
    expected = [[w.text for w in words] for words in recognizer.recognize(chunks)]

    on_gpu = load_on_gpu(verdict, precision="auto")
    alone = [on_gpu.recognize([chunk])[0] for chunk in chunks]

    assert on_gpu.info.precision == "fp16"
    assert [[w.text for w in words] for words in on_gpu.recognize(chunks)] == expected
    assert [[w.text for w in words] for words in alone] == expected


def test_cycles_of_loading_working_and_unloading_leave_nothing(
    gpu: FakeGpu, verdict: GraphVerdict
) -> None:
    for _ in range(5):
        on_gpu = load_on_gpu(verdict)
        assert on_gpu._decoder.uses_graphs
        assert len(on_gpu.recognize([NOISE])) == 1
        decoder = on_gpu._decoder
        on_gpu.close()
        assert not decoder.uses_graphs


def test_a_rejected_precision_leaves_its_encoder_before_the_next_is_tried(
    gpu: FakeGpu, verdict: GraphVerdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from parakeet_api.model import precision as module

    rejected: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def cast(model: Any, precision: str, *, device: str) -> None:
        alive.extend(reference() is not None for reference in rejected)
        overflowing_fp16(model, precision, device=device)
        rejected.append(weakref.ref(model.encoder))

    monkeypatch.setattr(module, "_cast_encoder", cast)

    assert load_on_gpu(verdict, precision="auto").info.precision == "bf16"
    assert alive == [False]


def test_a_broken_checkpoint_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nemo"
    broken.write_bytes(DEMO_MODEL.read_bytes()[:3_000_000])

    with pytest.raises(CheckpointError, match=r"broken\.nemo cannot be loaded"):
        NemoRecognizer.load(broken, demo_options())


def test_loading_removes_what_a_killed_process_had_unpacked_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, others = tmp_path / f"{_UNPACKED}left", tmp_path / "checkpoint-500"
    in_use = tmp_path / f"{_UNPACKED}in-use"
    for folder in (left, others, in_use):
        folder.mkdir()
        (folder / "weights").touch()

    with _locked(in_use, fcntl.LOCK_SH):
        NemoRecognizer.load(DEMO_MODEL, demo_options())

    assert set(tmp_path.iterdir()) == {others, in_use}


def test_loading_leaves_no_log_that_grows(recognizer: NemoRecognizer) -> None:
    import logging
    import logging.handlers

    handlers = logging.getLogger("nemo_logger").handlers

    assert not [h for h in handlers if isinstance(h, logging.handlers.MemoryHandler)]


def test_skipping_random_initial_weights_changes_no_weight(recognizer: NemoRecognizer) -> None:
    from nemo.collections.asr.models import ASRModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = ASRModel.restore_from(str(DEMO_MODEL), map_location="cpu", strict=True)
    ours = recognizer._model.state_dict()

    assert plain.state_dict().keys() == ours.keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, ours[name]), name
