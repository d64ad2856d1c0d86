"""Requests to stop a run cleanly: Ctrl-C, SIGTERM, SIGUSR1, or a limit on its time.

After a request all ranks finish the step together and save a checkpoint. A second signal ends the
process at once. Until a run listens, there is nothing to save, so the first one ends it.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time

from cpo_ds.errors import EXIT_STOPPED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A scheduler signals every process of a job, and launchers pass their signals on. Signals that come
# this close together are one request. Nobody passes on a second Ctrl-C but who pressed it.
_SAME_REQUEST_SECONDS = 3.0
_SAME_KEY_SECONDS = 1.0


def interrupt_by_signals() -> None:
    """Lets Ctrl-C and SIGUSR1 raise `KeyboardInterrupt` until a run listens for requests."""
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    if takes_interrupts():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def takes_interrupts() -> bool:
    """Whether Ctrl-C is for this process: a script that starts it in the background ignores it."""
    return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def end_by_signals() -> None:
    """Lets Ctrl-C and SIGTERM end this process without a word, as it is about to end anyway."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if takes_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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
            if number != signal.SIGINT or takes_interrupts():
                signal.signal(number, _do_nothing)
        threading.Thread(target=self._read_signals, args=(reading_end,), daemon=True).start()

    def _read_signals(self, numbers: socket.socket) -> None:
        while received := numbers.recv(64):
            for number in received:
                if number in SIGNALS:
                    self._handle(signal.Signals(number))

    def _handle(self, received: signal.Signals) -> None:
        now, name = time.monotonic(), name_of(received)
        if self._signal is None:
            self.ask(name)
            if os.environ.get("RANK", "0") == "0":
                _say(
                    f"{name}: the step is finished and a checkpoint saved, then the run ends with "
                    f"exit code {EXIT_STOPPED}. A second {name} ends it now."
                )
        elif not is_same_request(received, now - self._signalled_at):
            _say(f"a second {name} arrived; stopped at once.")
            os._exit(128 + received)  # a shell's exit code for a process ended by a signal


def is_same_request(number: int, seconds: float) -> bool:
    """Whether a signal belongs to the request of one that came so many seconds before."""
    limit = _SAME_KEY_SECONDS if number == signal.SIGINT else _SAME_REQUEST_SECONDS
    return seconds <= limit


def name_of(number: int) -> str:
    """A signal's name for messages."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _say(text: str) -> None:
    print(f"\ncpo_ds: {text}", file=sys.stderr, flush=True)


def _do_nothing(*_: object) -> None:
    """Handles a signal, so that Python catches it and reports it to the wake-up descriptor."""
