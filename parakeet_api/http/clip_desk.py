"""Start, serve and restart the processes that receive clips; runs in the model's process."""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from parakeet_api.http.clip_link import (
    LinkClosedError,
    Values,
    pack_words,
    receive,
    receive_socket,
    send,
)
from parakeet_api.http.clip_transcriber import ClipInfo, FrontOptions
from parakeet_api.http.request_log import CLIENT_CLOSED_REQUEST, RequestRecord
from parakeet_api.http.services import Services
from parakeet_api.http.waitress_internals import Server
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.speech.holes import Completed
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

logger = logging.getLogger(__name__)

_PROGRAM = (sys.executable, "-m", "parakeet_api.http.clip_front")
_ENDING_S = 5.0
"""How long a process may take to end after its control socket is closed."""
_PAUSE_S = 1.0
"""Wait before restarting a process that has ended."""


class ClipDesk:
    """Supervise the processes that receive clips, and recognise their clips."""

    def __init__(
        self,
        services: Services,
        server: Server,
        *,
        listener: socket.socket,
        ffmpeg: str,
    ) -> None:
        self._services = services
        self._server = server
        self._listener = listener
        settings = services.settings
        processes = settings.clip_processes
        self._options = FrontOptions(
            settings=settings,
            ffmpeg=str(Path(ffmpeg).absolute()),
            longest_chunk_s=services.models.first.plan.longest_chunk_s,
            # Connections are not spread evenly over the processes: each may get twice its share.
            threads=2 * math.ceil(settings.app_threads / max(1, processes)),
        )
        self._closed = threading.Event()
        self._cancelled = False
        self._counting = threading.Lock()
        self._ready = self._under_way = 0
        self._controls: set[socket.socket] = set()
        self._supervisors = [
            threading.Thread(target=self._supervise, name=f"clip-front-{number}", daemon=True)
            for number in range(processes)
        ]

    def start(self) -> None:
        """Start the processes; they accept connections as soon as they are ready."""
        if not self._supervisors:
            return
        self._server.accepts_elsewhere = lambda: self._ready > 0
        for supervisor in self._supervisors:
            supervisor.start()

    def under_way(self) -> int:
        """Count the clips in progress or queued."""
        return self._under_way

    def cancel(self) -> None:
        """Cancel all clips in progress."""
        self._cancelled = True

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        for control in [*self._controls]:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
        for supervisor in self._supervisors:
            supervisor.join()

    def _supervise(self) -> None:
        """Start a process, serve it until it ends, and start it again."""
        while not self._closed.is_set():
            control, theirs = socket.socketpair()
            with control:
                with theirs:
                    process = self._start(theirs)
                self._controls.add(control)
                try:
                    self._serve(control)
                finally:
                    self._controls.discard(control)
            _end(process)
            if not self._closed.is_set():
                logger.warning(
                    "a process that receives clips ended with status %d, and is started again",
                    process.returncode,
                )
                self._closed.wait(_PAUSE_S)

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        passed = (self._listener.fileno(), control.fileno())
        return subprocess.Popen(
            [*_PROGRAM, *map(str, passed)],
            # So that `-m` finds the package from any working directory.
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            pass_fds=passed,
        )

    def _serve(self, control: socket.socket) -> None:
        """Handle what a process sends over its control socket, until it ends."""
        with contextlib.suppress(LinkClosedError):
            send(control, ("options",), pickle.dumps(self._options))
            receive(control)
            with self._counting:
                self._ready += 1
            try:
                while True:
                    sock, (kind, address), data = receive_socket(control)
                    if kind == "connection":
                        self._server.adopt(sock, address, bytes(data))
                    else:
                        threading.Thread(
                            target=self._serve_link, args=(sock,), name="clip", daemon=True
                        ).start()
            finally:
                with self._counting:
                    self._ready -= 1
                # Without such a process, this one accepts waiting connections.
                self._server.pull_trigger()

    def _serve_link(self, link: socket.socket) -> None:
        """Answer the messages of one thread of a process in turn."""
        with link, contextlib.suppress(LinkClosedError):
            while True:
                (kind, *values), data = receive(link)
                if kind == "describe":
                    send(link, self._description(*values))
                else:
                    self._recognize(link, data, ClipInfo(*values))

    def _description(self, name: str) -> Values:
        try:
            model = self._services.models.named(name)
            checkpoint = model.checkpoints.checkpoint()
        except Exception as error:
            # The other process then passes the request on, and the error is raised again here.
            return "failed", repr(error)
        return "model", model.name, checkpoint.name, checkpoint.note, sorted(model.languages)

    def _recognize(self, link: socket.socket, data: bytearray, info: ClipInfo) -> None:
        metrics = self._services.metrics
        samples = np.frombuffer(data, np.int16)
        record = RequestRecord(
            id=info.request_id,
            client=info.client,
            method="POST",
            path=info.path,
            endpoint=info.path,
            metrics=metrics,
        )
        with self._counting:
            self._under_way += 1
        try:
            completed = self._completed(
                info, samples, cancelled=lambda: self._cancelled or _is_gone(link)
            )
            record.audio_s = len(samples) / SAMPLE_RATE
            metrics.audio_seconds.inc(record.audio_s)
            without_words = [(span.start, span.end) for span in completed.without_words]
            send(link, ("words", pack_words(completed.words), without_words))
        except (RequestCancelled, LinkClosedError):
            record.finish(CLIENT_CLOSED_REQUEST)
            raise LinkClosedError from None
        except Exception as error:
            # As above.
            send(link, ("failed", repr(error)))
        else:
            record.finish(200)
        finally:
            with self._counting:
                self._under_way -= 1

    def _completed(
        self, info: ClipInfo, samples: Pcm, *, cancelled: Callable[[], bool]
    ) -> Completed:
        model = self._services.models.named(info.model)
        model.checkpoints.checkpoint()
        keywords = model.keywords.tree()
        chunk = Chunk(0, 0, samples, 0, len(samples), info.language, keywords)
        with (
            self._services.admission.slot(cancelled=cancelled),
            # The model is in use: it cannot be unloaded.
            model.pipeline.counted(),
        ):
            [(_, words)] = model.batcher.recognize([chunk], cancelled=cancelled)
            # In this process, since the one that received the clip does not import torch.
            return model.pipeline.complete(chunk, words, cancelled=cancelled)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that is about to end."""
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_gone(link: socket.socket) -> bool:
    """Return whether the other side has closed a link on which nothing is sent meanwhile."""
    try:
        return link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
