"""SIGTERM and Ctrl-C: requests under way end first."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from parakeet_api.http.admission import Admission
from parakeet_api.http.waitress_internals import Server

logger = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.05
_CANCEL_S = 5.0
"""A request checks twice a second whether it is cancelled, but not during a model's load."""


class Elsewhere(Protocol):
    """Requests outside waitress: clips in other processes, and live sessions."""

    def under_way(self) -> int:
        """Count them."""
        ...

    def cancel(self) -> None:
        """Cancel them all."""
        ...


class GracefulStop:
    """Handle SIGTERM and Ctrl-C: the first lets requests in progress finish, a second one aborts.

    Meanwhile new transcriptions are rejected, and connections close after their response.
    """

    def __init__(
        self,
        server: Server,
        admission: Admission,
        *,
        grace_s: float,
        elsewhere: Sequence[Elsewhere] = (),
    ) -> None:
        self._server = server
        self._admission = admission
        self._grace_s = grace_s
        self._elsewhere = elsewhere
        self._drained = threading.Event()

    def install(self) -> None:
        """Take over both signals; only the main thread may do this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _: object) -> None:
        if self._drained.is_set():
            # Ends the server's loop, which runs in this thread.
            raise KeyboardInterrupt
        if self._admission.stopping:
            logger.warning("stopping at once")
            logging.shutdown()
            os._exit(128 + number)
        self._admission.stop()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        deadline = time.monotonic() + self._grace_s
        logger.info("stopping: %d requests under way", self._under_way())
        while self._under_way() and time.monotonic() < deadline:
            time.sleep(_DRAIN_POLL_S)
        if left := self._under_way():
            logger.warning("%d requests did not end within %.0f s", left, self._grace_s)
            self._cancel()
        self._drained.set()
        signal.raise_signal(signal.SIGTERM)
        # The main thread sleeps until something happens on a connection, unless the signal has
        # ended that already.
        with contextlib.suppress(OSError):
            self._server.pull_trigger()

    def _under_way(self) -> int:
        """Count the connections whose request or answer is under way.

        A request that is still arriving counts, so that its client receives the rejection.
        """
        here = self._server.under_way()
        return here + sum(elsewhere.under_way() for elsewhere in self._elsewhere)

    def _cancel(self) -> None:
        """Cancel the requests, and wait for them to end."""
        for elsewhere in self._elsewhere:
            elsewhere.cancel()
        self._server.cancel_all()
        self._admission.wait_until_empty(_CANCEL_S)
