"""The objects that the routes call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flask import current_app, g, request

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.formats.form_fields import Form, read_field
from parakeet_api.http.admission import Admission
from parakeet_api.http.client_secrets import ClientSecrets
from parakeet_api.jobs.service import Jobs
from parakeet_api.metrics import Metrics
from parakeet_api.model.devices import Gpu
from parakeet_api.realtime.places import Places
from parakeet_api.served_models import ServedModel, ServedModels
from parakeet_api.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The objects that the routes call; built once by `app.py`."""

    settings: Settings
    models: ServedModels
    admission: Admission
    metrics: Metrics
    jobs: Jobs
    decoder: FfmpegDecoder
    realtime: Places
    client_secrets: ClientSecrets
    gpu: Gpu | None


def services() -> Services:
    """Return the running application's services."""
    wired: Services = current_app.extensions["services"]
    return wired


def chosen_model(form: Form) -> ServedModel:
    """Return the model that a request names in `model`. Raises `ModelNotFoundError`."""
    model = services().models.named(read_field(form, "model"))
    g.model = model
    return model


def client_gone() -> Callable[[], bool]:
    """Return the function that returns whether the client has closed its connection."""
    gone: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return gone
