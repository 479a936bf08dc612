"""The faults, injected one at a time and removed afterwards."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable

import psutil

from benchmarks.faulty_server import Recognition, Switches
from benchmarks.fire.journal import FaultKind, Journal
from benchmarks.fire.server import Disk, Server

DAY_S = 86400.0
_NO_DECODER_S = 3.0
"""Time limit of the search for an ffmpeg to kill."""


class Faults:
    """Inject faults at random."""

    def __init__(self, server: Server, disk: Disk, journal: Journal, *, seed: int) -> None:
        self._server = server
        self._disk = disk
        self._journal = journal
        self._rng = random.Random(f"{seed} faults")
        self._usual: dict[Callable[[], None], int] = {
            self._kill_a_decoder: 6,
            self._ask_a_decoder_to_end: 3,
            self._set_the_clock: 3,
            lambda: self._break("recognizer raises", "raises"): 3,
            # Remembered for two minutes: oftener, long recordings would never go the usual way.
            lambda: self._break("little device memory", "has little memory"): 1,
            lambda: self._break("no device memory", "has no memory"): 1,
        }
        """And how often."""
        if disk.is_small:
            self._usual[self._fill_the_disk] = 3

    def make_one(self) -> None:
        """Inject a fault that the process survives."""
        self._rng.choices([*self._usual], [*self._usual.values()])[0]()

    def restart(self, *, by_force: bool) -> None:
        """Kill or stop the process at any point, and restart it."""
        if by_force:
            with self._journal.fault("server killed"):
                self._server.kill()
                time.sleep(self._rng.uniform(0.0, 2.0))
                self._server.start()
            return
        with self._journal.fault("server stopped"):
            if status := self._server.stop():
                self._journal.find("server stopped", f"exit status {status}")
            self._server.start()

    def _kill_a_decoder(self) -> None:
        self._signal_a_decoder("ffmpeg killed", signal.SIGKILL)

    def _ask_a_decoder_to_end(self) -> None:
        """Send SIGINT, which Ctrl-C sends to all processes of a terminal."""
        number = self._rng.choice((signal.SIGINT, signal.SIGTERM))
        self._signal_a_decoder("ffmpeg asked to end", number)

    def _signal_a_decoder(self, kind: FaultKind, number: signal.Signals) -> None:
        deadline = time.monotonic() + _NO_DECODER_S
        while time.monotonic() < deadline:
            for decoder in self._server.decoders():
                with contextlib.suppress(psutil.NoSuchProcess), self._journal.fault(kind):
                    decoder.send_signal(number)
                    return
            time.sleep(0.002)

    def _break(self, kind: FaultKind, recognition: Recognition) -> None:
        self._switched(kind, Switches(recognizer=recognition), self._rng.uniform(0.5, 2.0))

    def _set_the_clock(self) -> None:
        ahead_s = self._rng.choice((-DAY_S, DAY_S))
        self._switched("wall clock set", Switches(clock_s=ahead_s), self._rng.uniform(2.0, 8.0))

    def _switched(self, kind: FaultKind, switches: Switches, seconds: float) -> None:
        with self._journal.fault(kind):
            self._server.switch(switches)
            time.sleep(seconds)
            self._server.switch(Switches())

    def _fill_the_disk(self) -> None:
        with self._journal.fault("disk full"), self._disk.full():
            time.sleep(self._rng.uniform(1.0, 4.0))
