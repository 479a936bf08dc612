"""A model's replicas, as Ray Serve is told of them: one application for each model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.model.checkpoints import BundledModels
from parakeet_api.scale.cluster import gpu_count
from parakeet_api.scale.replica import RecognizerReplica
from parakeet_api.settings import Settings, model_basename

logger = logging.getLogger(__name__)

_CALLS_PER_BATCH = 2
"""Calls under way at a replica for each chunk of its largest batch: one batch is recognised while
the next one fills."""
_MIN_CALLS, _MAX_CALLS = 16, 64
"""Each has a thread at the replica."""
_HEALTH_CHECK_S = 2.0
"""How soon a replica that has ended is replaced."""
_HEALTH_TIMEOUT_S = 60.0
"""A forward pass on a CPU may keep all cores busy for so long."""
_STOP_GRACE_S = 60.0
"""For the calls of a replica that an update replaces."""


@dataclass(frozen=True, slots=True)
class ReplicatedModel:
    """A model that replicas serve."""

    settings: Settings
    """Of the server that deploys it."""
    model: str | None
    """Its name in `MODELS`; `None` = the one that the other settings name."""
    bundled: BundledModels
    root: Path
    """The folder of the program, on all machines of the cluster."""

    @property
    def application(self) -> str:
        """Its name in Ray Serve."""
        return f"recognizer-{model_basename(self.model)}" if self.model else "recognizer"


def is_deployed(application: str) -> bool:
    """Tell whether the cluster has replicas of a model, running or starting."""
    from ray import serve

    found = serve.status().applications.get(application)
    return found is not None and found.status not in ("DELETING", "NOT_STARTED", "DEPLOY_FAILED")


def deploy(replicated: ReplicatedModel) -> None:
    """Start a model's replicas, or replace those that run one after the other.

    Requests go on meanwhile. Returns before the replicas are loaded.
    """
    from ray import serve
    from ray.serve.config import ProxyLocation

    # Servers call replicas directly; Serve's own HTTP front would listen for nothing.
    serve.start(proxy_location=ProxyLocation.Disabled)
    application = _described(replicated).bind(
        replicated.settings,
        model=replicated.model,
        bundled=replicated.bundled,
        calls=calls_at_once(replicated.settings),
    )
    serve.run_many(
        [serve.RunTarget(application, name=replicated.application, route_prefix=None)],
        wait_for_applications_running=False,
    )
    logger.info("deployed %s", replicated.application)


def calls_at_once(settings: Settings) -> int:
    """Return how many calls a replica works on at a time."""
    filling = _CALLS_PER_BATCH * settings.transcribe_batch_size
    return max(_MIN_CALLS, min(_MAX_CALLS, filling))


def _described(replicated: ReplicatedModel) -> Any:
    from ray import serve

    settings, calls = replicated.settings, calls_at_once(replicated.settings)
    low, high = settings.replica_range
    gpus = settings.ray_replica_gpus
    number: dict[str, Any] = (
        {"num_replicas": low}
        if low == high
        else {
            "autoscaling_config": {
                "min_replicas": low,
                "max_replicas": high,
                "target_ongoing_requests": calls / 2,
            }
        }
    )
    return serve.deployment(
        name="replica",
        max_ongoing_requests=calls,
        health_check_period_s=_HEALTH_CHECK_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=_STOP_GRACE_S,
        ray_actor_options={
            "num_cpus": settings.ray_replica_cpus,
            "num_gpus": min(1, gpu_count()) if gpus is None else gpus,
            "runtime_env": {"env_vars": worker_environment(replicated.root)},
        },
        **number,
    )(RecognizerReplica)


def worker_environment(root: Path) -> dict[str, str]:
    """Return the variables that a process of the cluster needs to run this program's code."""
    return {"PYTHONPATH": str(root), "OMP_WAIT_POLICY": "PASSIVE"}
