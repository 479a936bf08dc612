"""Transcribe clips with another process' model."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.formats.form_fields import read_field
from parakeet_api.formats.rendering import Rendered, render
from parakeet_api.formats.request_params import parse_params
from parakeet_api.formats.transcribe import transcribe_recording
from parakeet_api.http.clip_link import receive, send, unpack_words
from parakeet_api.http.clip_request import PassOnError, RequestHead
from parakeet_api.http.proxies import TrustedProxies
from parakeet_api.http.upload_form import ParsedForm
from parakeet_api.metrics import Metrics
from parakeet_api.pipeline import Pipeline, speech_without_words_caveats
from parakeet_api.settings import Settings
from parakeet_api.speech.chunking import ChunkPolicy
from parakeet_api.speech.holes import Completed, Span
from parakeet_api.transcript import Chunk, Word

_MAX_NAMES = 100
"""Models whose description is cached: clients choose the names that they send."""
_DESCRIPTION_S = 1.0
"""How long a description is cached."""


class ClientGoneError(Exception):
    """The client has disconnected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """The options of a process that receives clips, sent at its start."""

    settings: Settings
    ffmpeg: str
    longest_chunk_s: float
    threads: int
    """Clips that are decoded, recognised or rendered at a time."""


class ClipInfo(NamedTuple):
    """What the process with the model receives with the samples of a clip."""

    model: str
    """As the client named it."""
    request_id: str
    client: str
    """Its address."""
    path: str
    language: str | None
    """As its chunk states it."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The description of a model, sent by the process that owns it."""

    name: str
    checkpoint: str
    note: str | None
    """What a bundled model is, in one sentence."""
    languages: frozenset[str]
    until: float
    """When it expires, s of the monotonic clock."""


class ClipTranscriber:
    """Decode clips, have them recognised by the process with the model, and render the words."""

    def __init__(
        self, options: FrontOptions, *, pass_link: Callable[[socket.socket], None]
    ) -> None:
        """Build the pipeline's parts; `pass_link` sends a link's end to the model's process."""
        self._pass_link = pass_link
        self._settings = replace(options.settings, transcribe_num_workers=0)
        self._local = threading.local()
        self._links: set[socket.socket] = set()
        self._descriptions: dict[str, ModelDescription] = {}
        self._metrics = Metrics()
        self._decoder = FfmpegDecoder.from_settings(self._settings, executable=options.ffmpeg)
        self._policy = ChunkPolicy.from_settings(self._settings, longest_s=options.longest_chunk_s)

    def close(self) -> None:
        """Close the links; clips that wait for words fail."""
        for link in self._links:
            link.close()

    def transcribe(
        self,
        form: ParsedForm,
        head: RequestHead,
        *,
        request_id: str,
        sock: socket.socket,
        peer: str,
    ) -> tuple[ModelDescription, Rendered]:
        """Transcribe a clip; return the model used and the rendered transcript.

        `sock` and `peer` are the client's connection and address. Raises `PassOnError` if the
        process with the model must respond, and `ClientGoneError` if the client disconnects.
        """
        path = form.files.get("file")
        if path is None:
            raise PassOnError
        name = read_field(form.fields, "model")
        model = self._describe(name)
        params = parse_params(
            form.fields,
            languages=model.languages,
            model=model.name,
            decode_reference=_pass_on,
        )
        # Keyword trees are built in the process with the model, which also has the diarizer.
        if (
            params.stream
            or params.keywords
            or params.speakers.is_wanted
            or path.stat().st_size == 0
        ):
            raise PassOnError
        client = self._client(peer, head.headers)
        recognizer = _Recognizer(
            lambda chunk: self._recognize(
                chunk, ClipInfo(name, request_id, client, head.path, chunk.language), sock
            )
        )
        pipeline = Pipeline(
            decoder=self._decoder,
            batcher=recognizer,
            policy=self._policy,
            settings=self._settings,
            metrics=self._metrics,
        )
        transcript = transcribe_recording(pipeline, path, params)
        transcript = replace(
            transcript,
            caveats=(*transcript.caveats, *speech_without_words_caveats(recognizer.without_words)),
        )
        return model, render(transcript, params, settings=self._settings)

    def _client(self, peer: str, headers: Mapping[str, str]) -> str:
        """Return a client's address as its trusted proxies forward it."""
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

    def _describe(self, name: str) -> ModelDescription:
        """Get a model's description. Raises `PassOnError` for one that cannot be used."""
        known = self._descriptions.get(name)
        if known is None or known.until < time.monotonic():
            link = self._link()
            send(link, ("describe", name))
            kind, *described = receive(link)[0]
            if kind != "model":
                raise PassOnError
            model_name, checkpoint, note, languages = described
            until = time.monotonic() + _DESCRIPTION_S
            known = ModelDescription(model_name, checkpoint, note, frozenset(languages), until)
            if name in self._descriptions or len(self._descriptions) < _MAX_NAMES:
                self._descriptions[name] = known
        return known

    def _recognize(self, chunk: Chunk, info: ClipInfo, client: socket.socket) -> Completed:
        """Get a clip's words. Raises `PassOnError`, or `ClientGoneError` on a disconnect."""
        link = self._link()
        send(link, ("recognize", *info), chunk.samples.data.cast("B"))
        if not _await(link, client):
            # Closing the link cancels the clip in the other process.
            self._local.link = None
            self._links.discard(link)
            link.close()
            raise ClientGoneError
        (kind, *packed), _ = receive(link)
        if kind != "words":
            raise PassOnError
        words, without_words = packed
        return Completed(unpack_words(words), tuple(Span(*span) for span in without_words))

    def _link(self) -> socket.socket:
        """Return this thread's own link to the process with the model."""
        link: socket.socket | None = getattr(self._local, "link", None)
        if link is None:
            link, theirs = socket.socketpair()
            with theirs:
                self._pass_link(theirs)
            self._local.link = link
            self._links.add(link)
        return link


class _Recognizer:
    """The batcher's interface for a pipeline, for a recording of one chunk."""

    def __init__(self, recognize: Callable[[Chunk], Completed]) -> None:
        self._recognize = recognize
        self.without_words: tuple[Span, ...] = ()
        """Speech of the recording without words."""

    def recognize(
        self, chunks: Iterable[Chunk], *, cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Chunk, list[Word]]]:
        """Yield the chunk with its words. Raises `PassOnError` if there are more chunks."""
        iterator = iter(chunks)
        only = next(iterator, None)
        if only is None or next(iterator, None) is not None or cancelled():
            raise PassOnError
        completed = self._recognize(only)
        self.without_words = completed.without_words
        yield only, completed.words


def _pass_on(_: bytes) -> bytes:
    raise PassOnError


def _await(link: socket.socket, client: socket.socket) -> bool:
    """Wait for an answer on the link; return whether it came before the client disconnected."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(client, select.POLLRDHUP)
    return any(number == link.fileno() for number, _ in poll.poll())
