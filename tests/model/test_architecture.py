"""Architectures read from configurations, without loading the models."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import pytest
from conftest import DEMO_MODEL, ENGLISH_MODEL
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.model.architecture import FULL_SIZE, StreamingContext, read_architecture
from parakeet_api.model.checkpoints import check_checkpoint
from parakeet_api.model.devices import Gpu, plan_inference
from parakeet_api.model.family import UnsupportedModelError, describe, expect
from parakeet_api.model.prompts import prompt_languages
from parakeet_api.model.vocabulary import Vocabulary, tagged_language
from parakeet_api.settings import Settings

RNNT = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"
KEYS = (
    *("target", "preprocessor", "features", "sample_rate", "encoder", "d_model", "n_layers"),
    *("window_stride", "_target_", "tokenizer", "type"),
    *("att_context_style", "att_context_size", "att_chunk_context_size", "subsampling_factor"),
    *("decoding", "durations", "loss", "loss_name", "labels", "joint", "vocabulary", "license"),
    *("model_defaults", "prompt_dictionary", "num_prompts", "initialize_prompt_feature"),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["chunked_limited", "chunked_limited_with_rc", RNNT, "${encoder.d_model}"]),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("path", "parameters"), [(DEMO_MODEL, 2867326), (ENGLISH_MODEL, 12783878)])
def test_the_bundled_models_sizes_are_known_without_loading(path: Any, parameters: int) -> None:
    assert check_checkpoint(path).parameters == parameters


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), st.booleans())
def test_nonsense_in_a_configuration_is_no_other_error(config: dict[str, Any], of: bool) -> None:
    with contextlib.suppress(UnsupportedModelError):
        architecture = describe(config | {"target": RNNT} if of else config)
        assert architecture.parameters >= 0
        assert architecture.weights_mb() >= 0
        assert isinstance(architecture.languages, frozenset)


def test_a_value_that_refers_to_itself_is_none() -> None:
    config = {"encoder": {"d_model": "${encoder.n_heads}", "n_heads": "${encoder.d_model}"}}

    assert read_architecture(config, decoder="rnnt").width == 512


@pytest.mark.parametrize(
    ("encoder", "streaming"),
    [
        ({}, None),
        ({"att_context_size": [128, 128]}, None),
        (
            {"att_context_style": "chunked_limited", "att_context_size": [[70, 13], [70, 0]]},
            StreamingContext(5.6, (1.12, 0.08)),
        ),
        (
            {"att_context_style": "chunked_limited", "att_context_size": [-1, 1]},
            StreamingContext(math.inf, (0.16,)),
        ),
        (
            {
                "att_context_style": "chunked_limited_with_rc",
                "att_chunk_context_size": [[70], [1, 2, 7, 13], [0, 1, 3, 7, 13]],
            },
            StreamingContext(5.6, (0.08, 0.16, 0.56, 1.04)),
        ),
        ({"att_context_style": "chunked_limited", "att_context_size": "all"}, None),
        ({"att_context_style": "chunked_limited_with_rc"}, None),
    ],
)
def test_streaming_contexts_are_read(
    encoder: dict[str, Any], streaming: StreamingContext | None
) -> None:
    assert read_architecture({"encoder": encoder}, decoder="rnnt").streaming == streaming


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [
        ("nvidia/parakeet-tdt-1.1b", 1.1),
        ("nvidia/parakeet-tdt_ctc-110m", 0.11),
        ("nvidia/parakeet-tdt-0.6b-v3", 0.6),
        ("me/mine", FULL_SIZE.parameters / 1e9),
    ],
)
def test_a_models_size_is_guessed_by_its_name(model_id: str, billions: float) -> None:
    assert expect(model_id).parameters / 1e9 == pytest.approx(billions)


def test_a_larger_model_leaves_less_for_a_pass() -> None:
    settings = Settings.from_env({}, detected_vram_gb=6)
    gpu = Gpu("a GPU", 4.0)

    small, full, large = (
        plan_inference(settings, gpu, expect(name)) for name in ("x-110m", "x-0.6b", "x-2b")
    )

    memory = [plan.memory_mb or 0.0 for plan in (small, full, large)]
    assert memory[0] >= memory[1] > memory[2]


def test_local_attention_takes_no_more_for_longer_chunks() -> None:
    local = read_architecture(
        {"encoder": {"self_attention_model": "rel_pos_local_attn"}}, decoder="tdt"
    )

    assert local.activations_mb(1, 600) == pytest.approx(10 * local.activations_mb(1, 60))
    assert FULL_SIZE.activations_mb(1, 600) > 20 * FULL_SIZE.activations_mb(1, 60)


CITRINET = "nemo.collections.asr.modules.ConvASREncoder"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"target": "a.EncDecCTCModel"}, "writes single characters instead of word pieces"),
        ({"target": "a.EncDecRNNTModel"}, "writes single characters instead of word pieces"),
        ({"target": "a.EncDecHybridRNNTCTCModel"}, "writes single characters"),
        ({"target": "a.EncDecMultiTaskModel"}, "a Canary model"),
        ({"target": "a.EncDecMultiTalkerRNNTBPEModel"}, "a multitalker model"),
        ({"target": "a.Unheard"}, "a Unheard; needed is a Parakeet"),
        ({"target": 7}, "a 7; needed is a Parakeet"),
        ({}, "a model of no known kind; needed is a Parakeet"),
        (
            {
                "target": RNNT,
                "sample_rate": 8000,
                "preprocessor": {"sample_rate": "${sample_rate}"},
            },
            "for audio of 8000 Hz",
        ),
        ({"target": RNNT, "encoder": {"_target_": CITRINET}}, "whose encoder is a ConvASREncoder"),
        ({"target": RNNT, "tokenizer": {"type": "wpe"}}, "whose tokenizer is of the type wpe"),
        ({"target": RNNT, "tokenizer": {"type": "agg"}}, "whose tokenizer is of the type agg"),
    ],
)
def test_what_cannot_be_served_is_named(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(reason)):
        describe(config)


@pytest.mark.parametrize(
    ("config", "decoder"),
    [
        ({}, "rnnt"),
        ({"decoding": {"durations": "${model_defaults.durations}"}}, "rnnt"),
        (
            {
                "decoding": {"durations": "${model_defaults.durations}"},
                "model_defaults": {"durations": [0, 1]},
            },
            "tdt",
        ),
        ({"loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1]}}}, "tdt"),
    ],
)
def test_durations_may_be_elsewhere_or_missing(config: dict[str, Any], decoder: str) -> None:
    assert describe({"target": RNNT, "sample_rate": 16000, **config}).decoder == decoder


@pytest.mark.parametrize(
    ("encoder", "stride", "grid"),
    [
        ({}, None, 1280),
        ({}, 0.02, 2560),
        ({"subsampling_factor": 4}, 0.01, 640),
        (
            {"att_context_style": "chunked_limited", "att_context_size": [[70, 13], [70, 0]]},
            0.01,
            17920,
        ),
        (
            {"att_context_style": "chunked_limited", "att_context_size": [[70, -1], [70, 1]]},
            0.01,
            1280,
        ),
        ({"att_context_style": "regular", "att_context_size": [70, 1]}, 0.01, 1280),
        (
            {
                "att_context_style": "chunked_limited_with_rc",
                "att_chunk_context_size": [[70], [7, 13], [1]],
            },
            0.01,
            1280,
        ),
    ],
)
def test_chunks_start_where_the_encoder_divides_time(
    encoder: dict[str, Any], stride: float | None, grid: int
) -> None:
    config = {
        "preprocessor": {} if stride is None else {"window_stride": stride},
        "encoder": {"subsampling_factor": 8} | encoder,
    }

    assert read_architecture(config, decoder="rnnt").chunk_grid == grid


def test_a_region_of_a_language_stands_for_it() -> None:
    prompts = {"en-US": 0, "en-GB": 1, "pt-BR": 2, "de-DE": 3, "de": 4, "auto": 101, "x": 7}

    assert prompt_languages(prompts) == {"en": 0, "pt": 2, "de": 4}


def test_marks_are_told_from_words() -> None:
    vocabulary = Vocabulary(
        ["<unk>", "\u2581a", "<en-US>", "\u2581<de-DE>", "<EOU>", "<EOB>", "b<c>", "<", "<0x41>"]
    )

    assert vocabulary.marks == {2, 3, 4, 5}
    assert vocabulary.languages == {2: "en", 3: "de"}
    assert tagged_language("<zh-Hans>") == "zh"
    assert tagged_language("<qq-QQ>") is None
