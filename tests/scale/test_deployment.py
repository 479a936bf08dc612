"""What Ray Serve is told of a model's replicas; no cluster is started."""

from __future__ import annotations

from typing import Any

from conftest import BUNDLED_MODELS, ROOT
from ray_cluster import serve

from parakeet_api.scale import deployment
from parakeet_api.scale.deployment import ReplicatedModel, calls_at_once
from parakeet_api.settings import Settings

assert serve


def described(**environ: str) -> Any:
    settings = Settings.from_env({"RAY_REPLICA_GPUS": "0"} | environ)
    replicated = ReplicatedModel(settings, model=None, bundled=BUNDLED_MODELS, root=ROOT)
    return deployment._described(replicated)


def test_a_replica_reserves_what_the_settings_say() -> None:
    options = described(RAY_REPLICA_CPUS="4", RAY_REPLICA_GPUS="0.5").ray_actor_options

    assert (options["num_cpus"], options["num_gpus"]) == (4.0, 0.5)
    assert options["runtime_env"]["env_vars"]["PYTHONPATH"] == str(ROOT)


def test_a_number_of_replicas_is_fixed() -> None:
    assert described(RAY_REPLICAS="3").num_replicas == 3


def test_a_range_of_replicas_is_scaled_by_what_waits() -> None:
    scaling = described(RAY_REPLICAS="0-8")._deployment_config.autoscaling_config

    assert (scaling.min_replicas, scaling.max_replicas) == (0, 8)
    assert scaling.target_ongoing_requests == calls_at_once(Settings()) / 2


def test_a_replica_works_on_two_batches_at_a_time_within_limits() -> None:
    sizes = [1, 20, 256]

    calls = [
        calls_at_once(Settings.from_env({"TRANSCRIBE_BATCH_SIZE": str(size)})) for size in sizes
    ]

    assert calls == [16, 40, 64]
    assert described(TRANSCRIBE_BATCH_SIZE="20").max_ongoing_requests == 40


def test_each_of_several_models_has_an_application_of_its_own() -> None:
    names = [
        ReplicatedModel(Settings(), model=model, bundled=BUNDLED_MODELS, root=ROOT).application
        for model in (None, "nvidia/parakeet-tdt-0.6b-v3@main", "parakeet-ctc-0.6b")
    ]

    assert names == [
        "recognizer",
        "recognizer-parakeet-tdt-0.6b-v3",
        "recognizer-parakeet-ctc-0.6b",
    ]
