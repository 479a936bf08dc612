"""The server: the listening socket, and waitress with the service's limits."""

from __future__ import annotations

import resource
import socket
from typing import TYPE_CHECKING

from waitress.adjustments import Adjustments

from parakeet_api.errors import SettingsError
from parakeet_api.http.admission import Admission
from parakeet_api.http.waitress_internals import UPLOAD_SLACK, Dispatcher, Server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_SPARE_CONNECTIONS = 1000
"""Open connections in addition to requests: slow uploads, idle browsers. With waitress' default of
100, a health check could hang."""
_FILES_PER_CONNECTION = 3
"""Its socket and, for an upload, the file and the handle of the stream that owns it."""
_OTHER_FILES = 200
"""Libraries, the model, the database, pipes to ffmpeg."""
_MAX_HEAD_BYTES = 64 * 1024
"""Bytes of a request's head; browsers and SDKs send 1 to 8 KiB."""
_ANSWER_BYTES = 1024**3
"""Responses up to this size, which all are, are buffered on disk for clients that read slowly: with
waitress' default of 16 MB the thread would wait."""
_RECEIVE_BYTES = 64 * 1024
"""With waitress' default of 8 KiB, an upload of 1 GB takes three times as long."""


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address; nobody can connect before `create_server` listens on it.

    Raises `SettingsError` where that is impossible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # `::` then also means every IPv4 address.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        # Names that cannot be encoded for DNS are a UnicodeError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"HOST={host!r} PORT='{port}' is not an address to listen on: {reason}"
        ) from error
    return listener


def create_server(
    application: WSGIApplication,
    *,
    listener: socket.socket,
    max_upload_bytes: int,
    max_requests: int,
    admission: Admission,
    max_sessions: int = 0,
) -> Server:
    """Listen; at most `max_requests` transcriptions may be in progress or queued.

    In addition there may be `max_sessions` live ones, each with a thread and a socket.
    """
    other_files = _OTHER_FILES + max_sessions
    most_files = _allow_files(
        _FILES_PER_CONNECTION * (max_requests + _SPARE_CONNECTIONS) + other_files
    )
    settings = Adjustments(
        sockets=[listener],
        connection_limit=(most_files - other_files) // _FILES_PER_CONNECTION,
        max_request_header_size=_MAX_HEAD_BYTES,
        outbuf_high_watermark=_ANSWER_BYTES,
        # select() ends at file descriptor 1023.
        asyncore_use_poll=True,
        recv_bytes=_RECEIVE_BYTES,
        max_request_body_size=max_upload_bytes + UPLOAD_SLACK,
        # Above 0, waitress notices a client that hangs up during its request.
        channel_request_lookahead=1,
        # Flask ignores them, unless TRUSTED_PROXY is set.
        clear_untrusted_proxy_headers=False,
        ident=None,
    )
    dispatcher = Dispatcher(
        max_threads=settings.connection_limit + max_sessions, max_idle=max_requests
    )
    server = Server(
        application,
        map={},
        _sock=listener,
        dispatcher=dispatcher,
        adj=settings,
        sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
        bind_socket=False,
    )
    server.admission = admission
    return server


def _allow_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, or as far as allowed; return the limit.

    Many systems start a process with 1024, of which ten times as many are allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
