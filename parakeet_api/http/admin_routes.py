"""What an operator does to a running server: unload models and load them."""

from __future__ import annotations

import threading
from typing import Any

from flask import Blueprint, request

from parakeet_api.errors import (
    InvalidRequestError,
    ModelInUseError,
    ModelNotReadyError,
    StoppingError,
)
from parakeet_api.formats.request_params import read_field
from parakeet_api.http.web import require_operator, services
from parakeet_api.served_models import ServedModel

admin_api = Blueprint("admin", __name__)
admin_api.before_request(require_operator)

_LONGEST_WAIT_S = 120.0
"""For a load; the 0.6B model takes half a minute from a slow disk. The load itself goes on."""
_waiters = threading.BoundedSemaphore(2)
"""Half of the threads that the server keeps for pages and health."""


@admin_api.post("/admin/unload")
def unload() -> dict[str, Any]:
    """Unload the model that is named, or all, unless they are in use."""
    wished = _wished()
    outcomes = {model.name: services().models.unload(model) for model in wished}
    in_use = [name for name, outcome in outcomes.items() if outcome == "in_use"]
    if in_use:
        raise ModelInUseError(
            f"{', '.join(in_use)}: in use, and not unloaded. Try again when the work is done."
        )
    return {
        "models": [
            {"name": model.name, "state": model.slot.state, "outcome": outcomes[model.name]}
            for model in wished
        ]
    }


@admin_api.post("/admin/load")
def load() -> dict[str, Any]:
    """Load the model that is named, or the first, and answer when it is loaded."""
    if services().admission.stopping:
        raise StoppingError
    model = services().models.named(_name())
    was_ready = model.slot.state == "ready"
    _wait_for(model)
    return {
        "models": [
            {
                "name": model.name,
                "state": model.slot.state,
                "outcome": "already_loaded" if was_ready else "loaded",
            }
        ]
    }


def _wait_for(model: ServedModel) -> None:
    """Wait for a load, which goes on also when nobody waits any more."""
    loading = services().models.load(model)
    if not _waiters.acquire(blocking=False):
        raise ModelNotReadyError(f"The model {model.name} is being loaded; others wait for it.")
    try:
        loading.result(_LONGEST_WAIT_S)
    except TimeoutError as error:
        raise ModelNotReadyError(f"The model {model.name} is still being loaded.") from error
    finally:
        _waiters.release()


def _wished() -> list[ServedModel]:
    models, name = services().models, _name()
    return [models.named(name)] if name else list(models)


def _name() -> str:
    """Read `model`, of the query or of a form."""
    try:
        return read_field(request.values, "model")
    except ValueError as error:
        raise InvalidRequestError(f"The body is malformed ({error}).") from error
