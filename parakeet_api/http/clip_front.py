"""A process beside the one with the model: receives clips, decodes them, writes their transcripts.

One interpreter can do that for some 400 clips a second, and a fast GPU recognises twice as many.
What is done here is what leaves no question: a short recording, sent whole and at once, with
parameters that are right. Its sound goes to the process with the model, and its words come back.
All else, and whatever goes wrong, goes there too, connection and all, with what was read of it:
that process answers as if it had accepted the connection itself.

    python -m parakeet_api.http.clip_front LISTENER CONTROL      two file descriptors; `clip_desk`
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import select
import selectors
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.formats.rendering import Rendered, render
from parakeet_api.formats.request_params import parse_params, read_field
from parakeet_api.http.api_keys import is_accepted, sent_key
from parakeet_api.http.clip_link import (
    LinkClosedError,
    receive,
    send,
    send_socket,
    unpack_words,
)
from parakeet_api.http.proxies import TrustedProxies
from parakeet_api.http.upload_form import MULTIPART, UploadForm
from parakeet_api.logs import set_up_logging
from parakeet_api.metrics import Metrics
from parakeet_api.pipeline import Pipeline, unheard_caveats
from parakeet_api.settings import Settings
from parakeet_api.speech.chunking import ChunkPolicy
from parakeet_api.speech.holes import Completed, Span
from parakeet_api.transcript import Chunk, Word

logger = logging.getLogger(__name__)

_REQUEST_LINE = re.compile(rb"POST ((?:/v1)?/audio/transcriptions) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_LONGEST_HEAD = 16 * 1024
_MOST_BODY = 4 * 1024 * 1024
"""Bytes: two minutes of wav. What is larger is no clip, or takes its time to arrive."""
_RECEIVE_BYTES = 256 * 1024
_PIECE_BYTES = 256 * 1024
_NOT_HERE = ("transfer-encoding", "expect", "upgrade", "content-encoding", "origin")
"""Headers of requests that are not simple."""
_SLOW_S = 5.0
"""A request that takes longer to arrive is looked after where slow clients are."""
_IDLE_S = 60.0
"""The same for a connection without a request."""
_SEND_S = 10.0
"""How long a client may take for an answer of some kilobytes."""
_TICK_S = 1.0
_MOST_HELD = 256 * 1024 * 1024
"""Bytes of requests that are held in memory at a time, those under work included. What comes
beyond them goes to the process with the model, which writes it to disk while it arrives."""
_MOST_CONNECTIONS = 1000
"""Beyond them the process with the model decides which one has to go."""
_MOST_NAMES = 100
"""Names of models are the clients' choice: no more are remembered."""
_DESCRIPTION_S = 1.0
"""How long it is believed what a model's name means."""
_LAST_ANSWERS_S = 2.0
"""How long answers may still take once the process with the model is gone."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class NotHereError(Exception):
    """The request is for the process with the model."""


class ClientGoneError(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """What such a process is told at its start."""

    settings: Settings
    ffmpeg: str
    longest_chunk_s: float
    threads: int
    """Clips that it works on, or has the model work on, at a time."""


class Wanted(NamedTuple):
    """What the process with the model is told of a clip beside its sound."""

    model: str
    """As the client named it."""
    request_id: str
    client: str
    """Its address."""
    path: str


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before a body; names of headers in lower case."""

    path: str
    headers: Mapping[str, str]
    size: int
    """Bytes, the empty line included."""

    @property
    def body_size(self) -> int:
        return int(self.headers["content-length"])


@dataclass(eq=False, slots=True)
class _Connection:
    """A client, and what it has sent of a request."""

    sock: socket.socket
    address: tuple[str, int]
    received: bytearray = field(default_factory=bytearray)
    head: _Head | None = None
    since: float = field(default_factory=time.monotonic)
    """When the request began, or the last one ended."""


class _Held:
    """Count the bytes of requests that are held in memory."""

    def __init__(self) -> None:
        self._bytes = 0
        self._counting = threading.Lock()

    def add(self, size: int) -> bool:
        """Count more, or less; tell whether there is room for all."""
        with self._counting:
            self._bytes += size
            return self._bytes <= _MOST_HELD


@dataclass(frozen=True, slots=True)
class _Description:
    """A model as the process that owns it describes it."""

    name: str
    checkpoint: str
    note: str | None
    """What a bundled model is, in one sentence."""
    languages: frozenset[str]
    until: float


class Front:
    """Answer clips over HTTP, with another process' model; pass everything else on to it."""

    def __init__(
        self, listener: socket.socket, control: socket.socket, options: FrontOptions
    ) -> None:
        self._listener = listener
        self._control = control
        self._options = options
        self._settings = replace(options.settings, transcribe_num_workers=0)
        self._sending = threading.Lock()
        """Held while something is sent over `control`."""
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        """Those that the loop waits for."""
        self._answered: deque[_Connection] = deque()
        """Those that it is to wait for again."""
        self._waking, self._wake = socket.socketpair()
        self._workers = ThreadPoolExecutor(options.threads, thread_name_prefix="clip")
        self._busy = 0
        self._counting = threading.Lock()
        self._held = _Held()
        self._local = threading.local()
        self._links: set[socket.socket] = set()
        self._descriptions: dict[str, _Description] = {}
        self._metrics = Metrics()
        self._decoder = FfmpegDecoder(
            executable=options.ffmpeg,
            max_seconds=self._settings.max_audio_hours * 3600,
            audio_filter=(
                self._settings.denoise_filter if self._settings.enable_ffmpeg_denoise else None
            ),
        )
        self._policy = ChunkPolicy.from_settings(self._settings, longest_s=options.longest_chunk_s)

    def run(self) -> None:
        """Serve until the process with the model is gone."""
        self._listener.setblocking(False)
        self._waking.setblocking(False)
        self._watch(self._listener, self._accept)
        self._watch(self._waking, self._resume)
        gone: list[bool] = []
        self._watch(self._control, lambda: gone.append(True))
        with self._sending:
            send(self._control, ("ready",))
        next_tick = time.monotonic()
        while not gone:
            for key, _ in self._selector.select(_TICK_S):
                key.data()
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK_S
                self._pass_on_slow_ones()
        self._close()

    def _close(self) -> None:
        """Let no more connections in, and the answers under way end."""
        self._listener.close()
        for connection in [*self._connections]:
            self._leave(connection)
            connection.sock.close()
        ends = time.monotonic() + _LAST_ANSWERS_S
        while self._busy and time.monotonic() < ends:
            time.sleep(0.01)
        while self._answered:
            self._answered.popleft().sock.close()
        self._workers.shutdown(wait=False)
        for link in self._links:
            link.close()
        self._selector.close()
        self._waking.close()
        self._wake.close()

    def _watch(self, sock: socket.socket, then: Callable[[], object]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, then)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:
            # Another process was quicker, or the client is gone again.
            return
        sock.setblocking(False)
        connection = _Connection(sock, address)
        if len(self._connections) < _MOST_CONNECTIONS:
            self._wait_for(connection)
        else:
            self._pass_on(connection)

    def _wait_for(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self._watch(connection.sock, lambda: self._read(connection))

    def _leave(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)

    def _resume(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._waking.recv(4096)
        while self._answered:
            self._wait_for(self._answered.popleft())

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave(connection)
            self._release(connection)
            connection.sock.close()
            return
        if not connection.received:
            connection.since = time.monotonic()
        connection.received += data
        if self._held.add(len(data)):
            self._look_at(connection)
        else:
            self._leave(connection)
            self._pass_on(connection)

    def _look_at(self, connection: _Connection) -> None:
        """Begin to work on a request that is here as a whole; pass on what is not for here."""
        try:
            connection.head = connection.head or self._head_of(connection)
            if connection.head is None:
                return
            missing = connection.head.size + connection.head.body_size - len(connection.received)
            if missing < 0 or self._busy >= self._options.threads:
                raise NotHereError
        except NotHereError:
            self._leave(connection)
            self._pass_on(connection)
            return
        if missing == 0:
            self._leave(connection)
            with self._counting:
                self._busy += 1
            self._workers.submit(self._work, connection, connection.head)

    def _head_of(self, connection: _Connection) -> _Head | None:
        """Read a head that is here as a whole. Raises `NotHereError`."""
        end = connection.received.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
        if end < 0:
            if len(connection.received) >= _LONGEST_HEAD:
                raise NotHereError
            return None
        head = parse_head(bytes(connection.received[:end]))
        if not self._is_for_here(head.headers):
            raise NotHereError
        return head

    def _is_for_here(self, headers: Mapping[str, str]) -> bool:
        keys = self._settings.api_keys
        length = headers.get("content-length", "")
        return (
            headers.get("content-type", "").lower().startswith(MULTIPART)
            and length.isdecimal()
            and length.isascii()
            and int(length) <= min(_MOST_BODY, self._settings.max_upload_bytes)
            and headers.get("connection", "").lower() in ("", "close", "keep-alive")
            and not any(name in headers for name in _NOT_HERE)
            and (not keys or is_accepted(sent_key(headers.get("authorization", "")), keys))
        )

    def _pass_on_slow_ones(self) -> None:
        now = time.monotonic()
        for connection in [*self._connections]:
            if now - connection.since > (_SLOW_S if connection.received else _IDLE_S):
                self._leave(connection)
                self._pass_on(connection)

    def _pass_on(self, connection: _Connection) -> None:
        """Let the process with the model have a connection, and what was read from it."""
        with self._sending, contextlib.suppress(LinkClosedError):
            send_socket(
                self._control,
                connection.sock,
                ("connection", connection.address),
                bytes(connection.received),
            )
        self._release(connection)
        connection.sock.close()

    def _release(self, connection: _Connection) -> None:
        """Forget what a connection has sent."""
        self._held.add(-len(connection.received))
        connection.received = bytearray()

    def _work(self, connection: _Connection, head: _Head) -> None:
        """Answer a request, or pass it on."""
        try:
            stays = self._answer(connection, head)
        except ClientGoneError:
            self._release(connection)
            connection.sock.close()
        except Exception as error:
            # A thread's border. Whatever it is, the process with the model finds it too, and tells
            # the client as it should be told.
            logger.debug("passed on: %r", error)
            self._pass_on(connection)
        else:
            self._release(connection)
            if stays:
                connection.head = None
                connection.since = time.monotonic()
                self._answered.append(connection)
                self._wake.send(b"x")
            else:
                connection.sock.close()
        finally:
            with self._counting:
                self._busy -= 1

    def _answer(self, connection: _Connection, head: _Head) -> bool:
        """Answer a request; tell whether the connection stays open."""
        given = head.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12]
        form = UploadForm.for_body(
            self._settings.temp_uploads_dir, head.headers.get("content-type", "")
        )
        if form is None:
            raise NotHereError
        with closing(form):
            with memoryview(connection.received) as view:
                for start in range(head.size, len(view), _PIECE_BYTES):
                    form.append(bytes(view[start : start + _PIECE_BYTES]))
            model, rendered = self._transcribe(form, connection, head, request_id)
        closes = head.headers.get("connection", "").lower() == "close"
        answer = _response(rendered, request_id, model, closes=closes)
        connection.sock.settimeout(_SEND_S)
        try:
            connection.sock.sendall(answer)
        except OSError as error:
            raise ClientGoneError from error
        connection.sock.setblocking(False)
        return not closes

    def _transcribe(
        self, form: UploadForm, connection: _Connection, head: _Head, request_id: str
    ) -> tuple[_Description, Rendered]:
        fields, files = form.result()
        upload = files.get("file")
        if upload is None:
            raise NotHereError
        path = Path(str(upload.stream.name))
        asked = read_field(fields, "model")
        model = self._describe(asked)
        params = parse_params(fields, languages=model.languages, model=model.name)
        if params.stream or path.stat().st_size == 0:
            raise NotHereError
        client = self._client(connection.address[0], head.headers)
        wanted = Wanted(asked, request_id, client, head.path)
        recognizer = _Recognizer(lambda chunk: self._recognize(chunk, wanted, connection.sock))
        pipeline = Pipeline(
            decoder=self._decoder,
            batcher=recognizer,
            policy=self._policy,
            settings=self._settings,
            metrics=self._metrics,
        )
        transcript = pipeline.transcribe(
            path,
            languages=params.languages,
            track=params.audio_track,
            allow_partial=params.allow_partial,
        )
        transcript = replace(
            transcript, caveats=(*transcript.caveats, *unheard_caveats(recognizer.unheard))
        )
        return model, render(transcript, params, settings=self._settings)

    def _client(self, peer: str, headers: Mapping[str, str]) -> str:
        """Tell a client's address, as the trusted proxies before it have it."""
        if not self._settings.trusted_proxy:
            return peer
        proxies = TrustedProxies(
            lambda environ, _: [environ["REMOTE_ADDR"].encode()],
            trusted=self._settings.trusted_proxy,
        )
        environ = {
            "REMOTE_ADDR": peer,
            "HTTP_X_FORWARDED_FOR": headers.get("x-forwarded-for", ""),
        }
        return b"".join(proxies(environ, lambda *_: lambda _: None)).decode()

    def _describe(self, name: str) -> _Description:
        """Ask what a model's name means. Raises `NotHereError` for one that cannot be used."""
        known = self._descriptions.get(name)
        if known is None or known.until < time.monotonic():
            link = self._link()
            send(link, ("describe", name))
            kind, *described = receive(link)[0]
            if kind != "model":
                raise NotHereError
            model_name, checkpoint, note, languages = described
            until = time.monotonic() + _DESCRIPTION_S
            known = _Description(model_name, checkpoint, note, frozenset(languages), until)
            if len(self._descriptions) < _MOST_NAMES:
                self._descriptions[name] = known
        return known

    def _recognize(self, chunk: Chunk, wanted: Wanted, client: socket.socket) -> Completed:
        """Have a clip recognised. Raises `NotHereError`, and `ClientGoneError` if nobody waits."""
        link = self._link()
        send(link, ("recognize", *wanted), chunk.samples.data.cast("B"))
        if not _await(link, client):
            # The other process sees it by the link's end.
            self._local.link = None
            self._links.discard(link)
            link.close()
            raise ClientGoneError
        (kind, *packed), _ = receive(link)
        if kind != "words":
            raise NotHereError
        words, unheard = packed
        return Completed(unpack_words(words), tuple(Span(*span) for span in unheard))

    def _link(self) -> socket.socket:
        """Give this thread's own link to the process with the model."""
        link: socket.socket | None = getattr(self._local, "link", None)
        if link is None:
            link, theirs = socket.socketpair()
            with self._sending, theirs:
                send_socket(self._control, theirs, ("link", None), b"")
            self._local.link = link
            self._links.add(link)
        return link


class _Recognizer:
    """What a pipeline needs of a batcher, for a recording of one chunk."""

    def __init__(self, recognize: Callable[[Chunk], Completed]) -> None:
        self._recognize = recognize
        self.unheard: tuple[Span, ...] = ()
        """Speech of the recording that got no words."""

    def recognize(
        self, chunks: Iterable[Chunk], *, cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Chunk, list[Word]]]:
        """Yield the chunk with its words. Raises `NotHereError` where there are more."""
        coming = iter(chunks)
        only = next(coming, None)
        if only is None or next(coming, None) is not None or cancelled():
            raise NotHereError
        completed = self._recognize(only)
        self.unheard = completed.unheard
        yield only, completed.words


def parse_head(head: bytes) -> _Head:
    """Read a request's head, without the empty line. Raises `NotHereError` if it is not plain."""
    first, *lines = head.split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    if request is None:
        raise NotHereError
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        name = header[1].decode("ascii").lower() if header else ""
        if header is None or name in headers:
            raise NotHereError
        headers[name] = header[2].decode("latin-1")
    return _Head(request[1].decode("ascii"), headers, len(head) + len(b"\r\n\r\n"))


def _response(rendered: Rendered, request_id: str, model: _Description, *, closes: bool) -> bytes:
    """Write an answer, its headers in the server's order."""
    body = rendered.body.encode()
    headers = {
        **({"Connection": "close"} if closes else {}),
        "Content-Length": str(len(body)),
        "Content-Type": rendered.media_type,
        "Date": formatdate(usegmt=True),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Parakeet-Model": model.checkpoint,
        **({"X-Parakeet-Model-Note": model.note} if model.note is not None else {}),
        "X-Request-Id": request_id,
        **rendered.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode("latin-1") + body


def _await(link: socket.socket, client: socket.socket) -> bool:
    """Wait for an answer on the link; tell whether the client has waited too."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(client, select.POLLRDHUP)
    return any(number == link.fileno() for number, _ in poll.poll())


def main() -> None:
    """Serve, with what the process that started this one says first."""
    listener, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    # Both are for the process with the model, which ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _, data = receive(control)
    # Our own parent wrote it.
    options: FrontOptions = pickle.loads(data)  # noqa: S301
    settings = options.settings
    set_up_logging(level=settings.log_level, log_format=settings.log_format)
    try:
        Front(listener, control, options).run()
    finally:
        # Threads that still wait for words would keep the process.
        os._exit(0)


if __name__ == "__main__":
    main()
