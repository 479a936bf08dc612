"""The transcription part of OpenAI's Realtime API: a WebSocket, and keys for web pages."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, request

from parakeet_api.errors import (
    ForbiddenError,
    InvalidRequestError,
    StoppingError,
    UploadTooLargeError,
)
from parakeet_api.formats.rendering import to_json
from parakeet_api.http.api_keys import is_accepted
from parakeet_api.http.auth import request_key, require_api_key, require_key
from parakeet_api.http.client_secrets import PREFIX, ClientSecret
from parakeet_api.http.cross_origin import EVERYONE
from parakeet_api.http.request_log import record
from parakeet_api.http.services import services
from parakeet_api.http.waitress_internals import DETACH
from parakeet_api.http.web_socket import Handshake, SocketClosedError, WebSocket
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.realtime.places import Place
from parakeet_api.realtime.session import Limits, Session, check_hints, with_model
from parakeet_api.realtime.session_config import ClientSecretJson, SessionConfig

logger = logging.getLogger(__name__)

realtime_api = Blueprint("realtime", __name__)

SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""Browsers cannot send headers with a WebSocket: the key comes as a subprotocol."""
_OLD_SUBPROTOCOL = "openai-beta.realtime-v1"
_OLD_HEADER = "realtime=v1"
_MAX_BODY = 256 * 1024
_MIN_SECRET_S, _MAX_SECRET_S, _SECRET_S = 10, 7200, 600
"""OpenAI's own limits."""


@realtime_api.post("/realtime/client_secrets")
def make_client_secret() -> ClientSecretJson:
    """Create a short-lived key for a web page."""
    require_api_key()
    body = _json_body()
    after = body.get("expires_after") or {}
    seconds = after.get("seconds", _SECRET_S) if isinstance(after, dict) else None
    if not isinstance(seconds, int) or not _MIN_SECRET_S <= seconds <= _MAX_SECRET_S:
        raise InvalidRequestError(
            f"expires_after.seconds is not a whole number, {_MIN_SECRET_S} to {_MAX_SECRET_S}.",
            param="expires_after.seconds",
        )
    config = SessionConfig().updated(body.get("session") or {})
    check_hints(config, services().models)
    session = config.as_json()
    secret = services().client_secrets.make(session, seconds=seconds, key=request_key())
    shown = {"id": f"sess_{uuid.uuid4().hex}", **session}
    return {"value": secret.value, "expires_at": secret.expires_at, "session": shown}


@realtime_api.get("/realtime", websocket=True)
@realtime_api.get("/realtime")
def realtime() -> Response:
    """Transcribe live over a WebSocket, until the client or the server ends the session."""
    config = _config(_accepted_secret())
    if (intent := request.args.get("intent") or "transcription") != "transcription":
        raise InvalidRequestError(f"intent={intent[:60]!r} is not transcription.", param="intent")
    model = services().models.named(config.transcription.model)
    # Fail before the upgrade if no model exists.
    model.checkpoints.checkpoint()
    # Before the first words, which would wait for it.
    services().models.load(model)
    if services().admission.stopping:
        raise StoppingError
    handshake = Handshake(
        request.full_path, [*request.headers.items()], subprotocols=frozenset({SUBPROTOCOL})
    )
    detach = request.environ.get(DETACH)
    if detach is None:
        raise InvalidRequestError("This address speaks WebSocket, by GET and HTTP/1.1.")
    with services().realtime.take(request.remote_addr or "unknown") as place:
        try:
            connection = handshake.complete(detach, headers={"X-Request-Id": record().id})
        except ConnectionAbortedError:
            raise RequestCancelled from None
        _serve(connection, config, place)
    # For the log alone: the connection is no longer HTTP's.
    return Response(status=101)


def _serve(connection: WebSocket, config: SessionConfig, place: Place) -> None:
    """Run a session."""
    settings, metrics = services().settings, services().metrics

    def send(event: Mapping[str, Any]) -> None:
        try:
            connection.send(to_json(event))
        except SocketClosedError:
            session.cancel()

    admission = services().admission
    session = Session(
        config,
        models=services().models,
        send=send,
        limits=Limits(
            idle_s=settings.realtime_idle_s,
            most_s=settings.realtime_max_minutes * 60,
            stopping=lambda: admission.stopping,
            evicted=lambda: place.evicted,
        ),
        metrics=metrics,
        is_old=_is_old(),
    )
    place.last_sound = lambda: session.last_sound if session.heard_s else None

    def abort() -> None:
        connection.abort()
        session.cancel()

    place.abort = abort
    code, reason, ended_by = 1011, "The server had an error.", "error"
    began = time.monotonic()
    try:
        farewell = session.run(connection.messages())
        code, reason = (farewell.code, farewell.reason) if farewell else (1000, "")
        ended_by = farewell.kind if farewell else "client"
    finally:
        connection.close(code, reason)
        metrics.realtime_ended.labels(ended_by).inc()
        metrics.realtime_audio_seconds.inc(session.heard_s)
        logger.info(
            "live session of %.0f s with %.1f s of sound, ended by %s [%s]",
            time.monotonic() - began,
            session.heard_s,
            ended_by,
            record().id,
        )


def _config(secret: ClientSecret | None) -> SessionConfig:
    """Return the initial configuration of a session."""
    config = SessionConfig().updated(secret.session if secret else {})
    return with_model(config, request.args.get("model", ""))


def _accepted_secret() -> ClientSecret | None:
    """Check the request's key, and return its client secret if it has one.

    Browsers send WebSocket requests for any page, without a CORS preflight: without a key, the page
    must be this server's own or listed in `CORS_ORIGINS`.
    """
    key = request_key() or _offered_key()
    if key.startswith(PREFIX) and not is_accepted(key, services().settings.api_keys):
        return services().client_secrets.read(key)
    if services().settings.api_keys:
        require_key(key)
        return None
    origin = request.headers.get("Origin", "")
    allowed = services().settings.cors_origins
    is_own = urlsplit(origin).netloc == request.host
    if origin and not (is_own or EVERYONE in allowed or origin.lower() in allowed):
        raise ForbiddenError(f"Pages of {origin[:100]!r} are not in CORS_ORIGINS.")
    return None


def _offered() -> list[str]:
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    return [name.strip() for name in offered.split(",")]


def _offered_key() -> str:
    """Return the key among the subprotocols; empty if there is none."""
    keys = [name for name in _offered() if name.startswith(_KEY_SUBPROTOCOL)]
    return keys[0].removeprefix(_KEY_SUBPROTOCOL) if keys else ""


def _is_old() -> bool:
    """Return whether the client uses the older (beta) version of the API."""
    return _OLD_SUBPROTOCOL in _offered() or _OLD_HEADER in request.headers.get("OpenAI-Beta", "")


def _json_body() -> dict[str, Any]:
    if (request.content_length or 0) > _MAX_BODY:
        raise UploadTooLargeError(f"The body has more than {_MAX_BODY} bytes.", param=None)
    # Also without a Content-Length.
    request.max_content_length = _MAX_BODY
    data = request.get_data()
    try:
        body = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidRequestError("The body is not a JSON object.")
    return body
