"""Unload and load models of a running server."""

from __future__ import annotations

import threading

from flask import Blueprint, request
from werkzeug.datastructures import CombinedMultiDict

from parakeet_api.errors import (
    InvalidRequestError,
    ModelInUseError,
    ModelNotReadyError,
    StoppingError,
)
from parakeet_api.formats.form_fields import read_field
from parakeet_api.formats.status import AdminReport
from parakeet_api.http.auth import require_operator
from parakeet_api.http.received_form import received_fields
from parakeet_api.http.services import services
from parakeet_api.model.diarizer import SpeakerModel
from parakeet_api.served_models import ServedModel

admin_api = Blueprint("admin", __name__)
admin_api.before_request(require_operator)

_MAX_WAIT_S = 120.0
"""For a load: the 0.6B model takes half a minute from a slow disk. The load itself continues."""
_waiters = threading.BoundedSemaphore(2)
"""Limits the requests that wait for a load: each occupies a thread."""


@admin_api.post("/admin/unload")
def unload() -> AdminReport:
    """Unload the named model, or all with the speaker model, unless they are in use."""
    models = services().models
    outcomes = [(model, models.unload(model)) for model in _requested_models()]
    in_use = [model.name for model, outcome in outcomes if outcome == "in_use"]
    if in_use:
        raise ModelInUseError(
            f"{', '.join(in_use)}: in use, and not unloaded. Try again when the work is done."
        )
    return {
        "models": [
            {"name": model.name, "state": model.slot.state, "outcome": outcome}
            for model, outcome in outcomes
            if outcome != "in_use"
        ]
    }


@admin_api.post("/admin/load")
def load() -> AdminReport:
    """Load the named model, or the first one, and respond when it is loaded."""
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
    """Wait for a load, which continues after a timeout."""
    loading = services().models.load(model)
    if not _waiters.acquire(blocking=False):
        raise ModelNotReadyError(f"The model {model.name} is being loaded; others wait for it.")
    try:
        loading.result(_MAX_WAIT_S)
    except TimeoutError as error:
        raise ModelNotReadyError(f"The model {model.name} is still being loaded.") from error
    finally:
        _waiters.release()


def _requested_models() -> list[ServedModel | SpeakerModel]:
    models, name = services().models, _name()
    if name:
        return [models.named(name)]
    if models.speakers is not None and models.speakers.slot.state == "ready":
        return [*models, models.speakers]
    return list(models)


def _name() -> str:
    """Read `model` from the query or a form."""
    try:
        parameters = CombinedMultiDict([request.args, received_fields()])
        return read_field(parameters, "model")
    except ValueError as error:
        raise InvalidRequestError(f"The body is malformed ({error}).") from error
