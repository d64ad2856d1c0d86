"""Asks a run to stop in good order: SIGTERM, SIGUSR1, or a limit on its time.

The step is then finished on all ranks together and a checkpoint saved. A second signal ends the
process at once.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A scheduler signals every process of a job, and launchers pass on what they get: signals that come
# together are one request.
_SAME_REQUEST_SECONDS = 3.0


class StopRequest:
    """Whether this process was asked to stop; `reason` says by what."""

    def __init__(self, max_hours: float | None = None) -> None:
        self._deadline = time.monotonic() + 3600 * (math.inf if max_hours is None else max_hours)
        self._max_hours = max_hours
        self._signal: str | None = None
        self._signalled_at = 0.0

    @property
    def reason(self) -> str | None:
        """What asks for the stop (`"SIGTERM"`, `"train.max_hours (11.5)"`), or None."""
        if self._signal is None and time.monotonic() >= self._deadline:
            return f"train.max_hours ({self._max_hours:g})"
        return self._signal

    def listen(self) -> None:
        """Listens to signals from now on. Call it once, in the main thread.

        A thread reads them, so that a second one counts also while the main thread waits for a GPU
        or for other ranks inside a library.
        """
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        self._keep_open = (ours, pythons)
        for number in SIGNALS:
            signal.signal(number, _do_nothing)
        threading.Thread(target=self._read_signals, args=(ours,), daemon=True).start()

    def _read_signals(self, numbers: socket.socket) -> None:
        while received := numbers.recv(64):
            for number in received:
                if number in SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, received: signal.Signals) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._signalled_at = received.name, now
        elif now - self._signalled_at > _SAME_REQUEST_SECONDS:
            print(
                f"\ncpo_ds: a second {received.name}: ended at once.", file=sys.stderr, flush=True
            )
            os._exit(128 + received)


def _do_nothing(*_: object) -> None:
    """The wake-up descriptor gets the signal."""
