"""Serve the application until the process is told to stop."""

from __future__ import annotations

import logging
import socket

from flask import Flask

from parakeet_api.http.clip_desk import ClipDesk
from parakeet_api.http.graceful_stop import GracefulStop
from parakeet_api.http.server import create_server
from parakeet_api.http.services import Services
from parakeet_api.http.waitress_internals import Server

logger = logging.getLogger(__name__)


def server_for(application: Flask, services: Services, *, listener: socket.socket) -> Server:
    """Set up waitress on a bound socket, with the limits of the settings."""
    settings = services.settings
    return create_server(
        application,
        listener=listener,
        max_upload_bytes=settings.max_upload_bytes,
        max_requests=settings.app_threads + settings.max_queued_requests,
        max_sessions=settings.max_realtime_sessions,
        admission=services.admission,
    )


def run_server(application: Flask, services: Services, *, listener: socket.socket) -> None:
    """Serve on a bound socket; return when the server has stopped.

    SIGTERM and SIGINT stop it gracefully. The socket stays the caller's to close.
    """
    settings = services.settings
    server = server_for(application, services, listener=listener)
    desk = ClipDesk(services, server, listener=listener, ffmpeg=services.decoder.executable)
    GracefulStop(
        server,
        services.admission,
        grace_s=settings.stop_grace_s,
        elsewhere=(desk, services.realtime),
    ).install()
    desk.start()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("listening on http://%s:%d", host, listener.getsockname()[1])
    try:
        server.run()
    finally:
        desk.close()
        server.close()
