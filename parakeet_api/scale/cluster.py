"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from parakeet_api.errors import ClusterUnavailableError, SettingsError

logger = logging.getLogger(__name__)

_NAMESPACE = "parakeet-api"
_PROBE_S = 5.0

_connecting = threading.Lock()
"""Ray keeps one connection in a process."""


def require_ray() -> None:
    """Raise `SettingsError` where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "RAY_ADDRESS needs Ray: pip install -r requirements-ray.txt -c constraints.txt"
        ) from error


def connect(address: str) -> None:
    """Connect this process to the cluster, unless it is connected.

    Raises `ClusterUnavailableError` if there is none at `address`.
    """
    import ray

    with _connecting:
        if ray.is_initialized():
            return
        try:
            _probe(address)
            ray.init(
                address=address,
                namespace=_NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
        # Ray raises many kinds, among them bare ones of its own and of gRPC.
        except Exception as error:
            raise ClusterUnavailableError(
                f"There is no Ray cluster at RAY_ADDRESS={address!r}: {_first_line(error)}"
            ) from error
        logger.info("connected to the Ray cluster at %s", ray.get_runtime_context().gcs_address)


def _probe(address: str) -> None:
    """Raise `OSError` if nothing listens at an address: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S):
        pass


def gpu_count() -> int:
    """Count the GPUs of the cluster."""
    import ray

    resources: dict[str, Any] = ray.cluster_resources()
    return int(resources.get("GPU", 0))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0]
