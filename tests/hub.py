"""A stand-in for the model hub: the API that huggingface_hub 2.4 uses, with faults to inject.

The client sends `HEAD /{model}/resolve/{revision}/{file}`, reads X-Repo-Commit, ETag and
Content-Length (or X-Linked-Etag, X-Linked-Size and Location of a redirect), then a GET, with Range
after an interruption.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from urllib.parse import unquote

import pytest

MODEL_ID = "acme/tiny-tdt"
FILE = "tiny-tdt.nemo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
_ETAG = '"76b1d6d7b0d4e6c2"'
_BLOCK = 64 * 1024

Fault = Literal["missing model", "missing file", "gated", "broken", "hanging"]

_REFUSALS: dict[Fault, tuple[HTTPStatus, dict[str, str]]] = {
    "missing model": (
        HTTPStatus.UNAUTHORIZED,
        {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
    ),
    "missing file": (
        HTTPStatus.NOT_FOUND,
        {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"},
    ),
    "gated": (
        HTTPStatus.UNAUTHORIZED,
        {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"},
    ),
    "broken": (HTTPStatus.INTERNAL_SERVER_ERROR, {}),
}


class CutError(Exception):
    """Raised by `Hub.before_block` to drop the connection."""


class Hub:
    """One model with one file, on a free local port."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.revision = "main"
        """The one revision that there is."""
        self.card: bytes | None = None
        """The model's README."""
        self.fault: Fault | None = None
        self.before_block: Callable[[int], None] = lambda _: None
        """Called with the position in the file before each block of the body."""
        self.takes_ranges = True
        self.declares_length = True
        """Otherwise the body ends where the connection ends, as behind some proxies."""
        self.redirects = False
        """Answer with an address of another host, as the hub does for large files."""
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and Range of every request."""
        self.released = threading.Event()
        """Releases handlers that hang."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self) -> list[str | None]:
        """List the Range of every GET of the file."""
        return [
            given
            for method, path, given in self.requests
            if method == "GET" and path.endswith(FILE)
        ]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True
    # A handler that hangs on purpose is not waited for.
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None: ...

    def _answer(self) -> None:
        hub, path = self.hub, unquote(self.path)
        hub.requests.append((self.command, self.path, self.headers["Range"]))
        if hub.fault == "hanging":
            hub.released.wait()
            self.close_connection = True
        elif hub.fault is not None:
            self._send_head(*_REFUSALS[hub.fault])
        elif self.path == f"/cdn/{FILE}":
            self._send_file(hub.content)
        elif path == f"/{MODEL_ID}/resolve/{hub.revision}/README.md" and hub.card is not None:
            self._send_file(hub.card)
        elif path != f"/{MODEL_ID}/resolve/{hub.revision}/{FILE}":
            self._send_head(*_REFUSALS["missing file"])
        elif hub.redirects:
            self._redirect()
        else:
            self._send_file(hub.content)

    def _send_head(
        self, status: HTTPStatus, headers: dict[str, str], length: int | None = 0
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
        self.end_headers()

    def _redirect(self) -> None:
        headers = {
            # Another origin than 127.0.0.1, so that the client takes it for a CDN.
            "Location": f"http://localhost:{self.hub.port}/cdn/{FILE}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": _ETAG,
            "X-Linked-Size": str(len(self.hub.content)),
        }
        self._send_head(HTTPStatus.FOUND, headers)

    def _send_file(self, content: bytes) -> None:
        hub = self.hub
        wanted = self.headers["Range"] if hub.takes_ranges else None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        size = len(content)
        # The client keeps what has the same one once.
        etag = _ETAG if content is hub.content else '"card"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self._send_head(
            HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK,
            headers,
            size - start if hub.declares_length else None,
        )
        if self.command == "GET":
            self._send_body(content, start)

    def _send_body(self, content: bytes, start: int) -> None:
        try:
            for position in range(start, len(content), _BLOCK):
                self.hub.before_block(position)
                self.wfile.write(content[position : position + _BLOCK])
        except (CutError, OSError):
            self.close_connection = True


@contextmanager
def hub_with(checkpoint: bytes, *, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub that has the model, and a client of it with an empty cache, no token, no patience.

    huggingface_hub reads its variables when it is imported, so what they set is replaced.
    """
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    # Its list of coding agents would be fetched from the real hub.
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))
    started = Hub(checkpoint)
    try:
        yield started
    finally:
        started.close()
        huggingface_hub.close_session()
