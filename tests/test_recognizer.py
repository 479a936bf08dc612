from __future__ import annotations

import fcntl
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from conftest import DEMO_MODEL, Clip, decode, demo_options, whole

from parakeet_api.audio import FfmpegDecoder
from parakeet_api.errors import CheckpointError, DeviceLostError, ModelLoadError, SettingsError
from parakeet_api.heap import HeapTrimmer
from parakeet_api.nemo_model import _UNPACKED, LoadedModel, _locked, encode
from parakeet_api.recognizer import NemoRecognizer, OutOfDeviceMemoryError
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
    """0.63 % is what one direct pass of NeMo's own decoding makes of these clips."""
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
            exact, frames = encode(recognizer._model, waveform, [len(samples)])
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


def test_log_probabilities_are_those_that_the_decoder_computes(
    recognizer: NemoRecognizer, waveforms: list[Pcm]
) -> None:
    """NeMo's own token confidence, inverted: c = (pV - 1) / (V - 1)."""
    import copy

    from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
    from omegaconf import OmegaConf, open_dict

    model = recognizer._model
    config = copy.deepcopy(model.cfg.decoding)
    with open_dict(config):
        config.confidence_cfg = OmegaConf.create(
            {
                "preserve_token_confidence": True,
                "exclude_blank": True,
                "method_cfg": {"name": "max_prob", "alpha": 1.0},
            }
        )
    decoding = RNNTBPEDecoding(
        decoding_cfg=config, decoder=model.decoder, joint=model.joint, tokenizer=model.tokenizer
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
    for chunk, words in zip(chunks, ours, strict=True):
        with torch.inference_mode():
            encoded, lengths = recognizer._encode([chunk])
            decoding = recognizer._decoder.nemo
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
    silence, spoken = whole(np.zeros(3 * SAMPLE_RATE, np.int16)), whole(waveforms[0])
    words = recognizer.recognize([spoken])[0]
    between = recognizer.recognize([silence, spoken, silence])
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
    from parakeet_api import nemo_model as module

    monkeypatch.setattr(module, "_precision_candidates", lambda *_: ("fp16", "bf16"))
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
    """A card with bf16, on which neither half precision computes anything of use."""
    from parakeet_api import nemo_model as module

    def broken(model: Any, precision: str, *, device: str) -> None:
        model.encoder.to(torch.bfloat16)
        next(model.encoder.parameters()).data.fill_(
            float("inf") if precision == "fp16" else float("nan")
        )

    real = module._precision_candidates
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(
        module, "_precision_candidates", lambda model, _: real(model, device="cuda:0")
    )
    monkeypatch.setattr(module, "_cast_encoder", broken)

    loaded = NemoRecognizer.load(DEMO_MODEL, demo_options(precision="auto"))

    assert loaded.info.precision == "fp32"
    assert "fp16 failed its self-test: encoder error inf" in caplog.text
    assert "bf16 failed its self-test: encoder error inf" in caplog.text
    weights = loaded._model.encoder.state_dict()
    for name, tensor in recognizer._model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(("bf16", "candidates"), [(True, ("fp16", "bf16")), (False, ("fp16",))])
def test_a_card_is_tried_with_the_half_precisions_that_it_has(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, candidates: tuple[str, ...]
) -> None:
    from parakeet_api.nemo_model import _precision_candidates

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)

    assert _precision_candidates(None, "cuda:0") == candidates


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
    from parakeet_api import nemo_model as module

    cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    monkeypatch.setattr(module, "_is_large", lambda _: True)
    assert module._precision_candidates(None, "cpu") == candidates

    monkeypatch.setattr(module, "_is_large", lambda _: False)
    assert module._precision_candidates(None, "cpu") == (), "small models gain nothing"


def test_int8_on_a_card_is_refused_by_name() -> None:
    from parakeet_api.nemo_model import _cast_encoder

    with pytest.raises(SettingsError, match="PRECISION='int8'"):
        _cast_encoder(None, "int8", device="cuda:0")


@pytest.mark.parametrize(
    ("keep_mb", "used", "unused_mb", "emptied"),
    [
        (1500, 0.5, 1600, 1),  # more unused than one chunk needs: given back after the batch
        (1500, 0.5, 1400, 0),
        (None, 0.5, 9999, 0),  # AGGRESSIVE_MEMORY_CLEANUP=false keeps it for speed
        (None, 0.9, 0, 1),  # the card is nearly full: given back before the batch
    ],
)
def test_a_cards_memory_is_given_back(  # noqa: PLR0917 - a row of the table each
    recognizer: NemoRecognizer,
    monkeypatch: pytest.MonkeyPatch,
    keep_mb: float | None,
    used: float,
    unused_mb: int,
    emptied: int,
) -> None:
    """The border to the card is played here: no machine of the tests has one."""
    options = demo_options(keep_cached_mb=keep_mb, cleanup_above=0.8)
    loaded = LoadedModel(
        recognizer._model, recognizer._decoder, replace(recognizer.info, device="cuda:0")
    )
    on_card = NemoRecognizer(loaded, options)
    emptyings: list[None] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(1e10 * (1 - used)), int(1e10)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(2e9 + unused_mb * 1e6))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: int(2e9))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptyings.append(None))

    on_card._make_room()
    on_card._give_back()

    assert len(emptyings) == emptied


@pytest.mark.parametrize(("keep_mb", "trims"), [(1500, 1), (None, 0)])
def test_on_a_cpu_the_heap_is_given_back_after_a_batch(
    recognizer: NemoRecognizer, keep_mb: float | None, trims: int
) -> None:
    on_cpu = NemoRecognizer(
        LoadedModel(recognizer._model, recognizer._decoder, recognizer.info),
        demo_options(keep_cached_mb=keep_mb),
    )
    trimmed: list[None] = []
    on_cpu._heap = HeapTrimmer(trim=lambda: trimmed.append(None))

    on_cpu.recognize([NOISE])

    assert len(trimmed) == trims


class Card:
    """Stands for torch.cuda: a card of 10 GB, healthy until `lost` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost = False
        self.emptied = 0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: self._answer((5e9, 1e10)))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: self._answer(None))
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def _answer(self, value: Any) -> Any:
        if self.lost:
            raise ILLEGAL_ACCESS
        return value

    def _empty(self) -> None:
        self._answer(None)
        self.emptied += 1


ILLEGAL_ACCESS = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


@pytest.fixture
def on_card(recognizer: NemoRecognizer, monkeypatch: pytest.MonkeyPatch) -> NemoRecognizer:
    """Give the demo model as if it were on a card; encoding there fails."""
    loaded = LoadedModel(
        recognizer._model, recognizer._decoder, replace(recognizer.info, device="cuda:0")
    )
    return NemoRecognizer(loaded, demo_options())


def failing(error: Exception) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error

    return fail


SHORTAGES = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_full_card_is_a_batch_too_large(
    on_card: NemoRecognizer, card: Card, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(on_card, "_encode", failing(error))

    with pytest.raises(OutOfDeviceMemoryError):
        on_card.recognize([NOISE])
    assert card.emptied == 1, "what the failed pass held is given back"


def test_a_card_that_refuses_all_work_is_lost(
    on_card: NemoRecognizer, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        card.lost = True
        raise ILLEGAL_ACCESS

    monkeypatch.setattr(on_card, "_encode", fail)

    with pytest.raises(DeviceLostError) as caught:
        on_card.recognize([NOISE])
    assert caught.value.__cause__ is ILLEGAL_ACCESS
    with pytest.raises(DeviceLostError):
        on_card.recognize([NOISE])
    # The card would refuse this too.
    on_card.close()


def test_a_card_lost_to_another_thread_is_seen_before_the_batch(
    on_card: NemoRecognizer, card: Card
) -> None:
    card.lost = True

    with pytest.raises(DeviceLostError):
        on_card.recognize([NOISE])


def test_an_error_after_which_the_card_goes_on_stays_what_it_is(
    on_card: NemoRecognizer, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.AcceleratorError("CUDA error: invalid configuration argument")
    monkeypatch.setattr(on_card, "_encode", failing(error))

    with pytest.raises(torch.AcceleratorError, match="invalid configuration"):
        on_card.recognize([NOISE])


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_model_that_does_not_fit_the_card_is_told_and_leaves_nothing_there(
    card: Card, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("parakeet_api.recognizer.load_model", lambda *_: failing(error)(None))

    with pytest.raises(ModelLoadError, match=r"not enough free memory for the model: .*CUD"):
        NemoRecognizer.load(DEMO_MODEL, demo_options(device="cuda:0"))
    assert card.emptied == 1


def test_a_card_lost_while_loading_is_lost(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    card.lost = True
    monkeypatch.setattr(
        "parakeet_api.recognizer.load_model", lambda *_: failing(ILLEGAL_ACCESS)(None)
    )

    with pytest.raises(DeviceLostError):
        NemoRecognizer.load(DEMO_MODEL, demo_options(device="cuda:0"))


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
