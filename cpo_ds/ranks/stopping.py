"""Requests to stop a run cleanly: SIGTERM, SIGUSR1, or a limit on its time.

After a request all ranks finish the step together and save a checkpoint. A second signal ends the
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
# A scheduler signals every process of a job, and launchers pass their signals on. Signals that come
# this close together are one request.
_SAME_REQUEST_SECONDS = 3.0


class StopRequest:
    """A request to stop this process; `reason` is None as long as there is none."""

    def __init__(self, max_hours: float | None = None) -> None:
        self._deadline = time.monotonic() + 3600 * (math.inf if max_hours is None else max_hours)
        self._max_hours = max_hours
        self._signal: str | None = None
        self._signalled_at = 0.0

    @property
    def reason(self) -> str | None:
        """The signal, setting or event that asks for the stop, or None.

        Like `"SIGTERM"` or `"train.max_hours (11.5)"`.
        """
        if self._signal is None and time.monotonic() >= self._deadline:
            return f"train.max_hours ({self._max_hours:g})"
        return self._signal

    def ask(self, reason: str) -> None:
        """Asks for a stop, unless something has done so before."""
        if self._signal is None:
            self._signal, self._signalled_at = reason, time.monotonic()

    def listen(self) -> None:
        """Starts to listen for signals. Call it once, in the main thread.

        A thread of its own reads the signals, so that a second one works even while the main thread
        waits inside a library, for a GPU or for other ranks.
        """
        # Python writes the number of each signal that it catches to a socket.
        reading_end, writing_end = socket.socketpair()
        writing_end.setblocking(False)
        signal.set_wakeup_fd(writing_end.fileno(), warn_on_full_buffer=False)
        self._keep_open = (reading_end, writing_end)
        for number in SIGNALS:
            signal.signal(number, _do_nothing)
        threading.Thread(target=self._read_signals, args=(reading_end,), daemon=True).start()

    def _read_signals(self, numbers: socket.socket) -> None:
        while received := numbers.recv(64):
            for number in received:
                if number in SIGNALS:
                    self._handle(signal.Signals(number))

    def _handle(self, received: signal.Signals) -> None:
        now = time.monotonic()
        if self._signal is None:
            self.ask(received.name)
        elif now - self._signalled_at > _SAME_REQUEST_SECONDS:
            print(
                f"\ncpo_ds: a second {received.name} arrived; stopped at once.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(128 + received)  # a shell's exit code for a process ended by a signal


def _do_nothing(*_: object) -> None:
    """Handles a signal, so that Python catches it and reports it to the wake-up descriptor."""
