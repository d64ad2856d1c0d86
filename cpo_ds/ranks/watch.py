"""Finds ranks that failed, ended or hang, names them and the reason, and ends this process.

A thread in each process leaves a beat every second in a store that all ranks read. It keeps beating
while the main thread waits inside a library for a rank that will never answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

import torch.distributed as dist

from cpo_ds.errors import EXIT_RANK_LOST, EXIT_USER_ERROR, NonFiniteError, Stopped, UserError
from cpo_ds.ranks.connections import a_connection_broke
from cpo_ds.ranks.limits import limit_problem
from cpo_ds.ranks.liveness import Beat, ByteWatch, count_work, own_beat, work_done
from cpo_ds.ranks.logs import last_words, log_file
from cpo_ds.ranks.processes import RankProcess, is_running, wait_for_end
from cpo_ds.ranks.roll_call import RollCall
from cpo_ds.ranks.watch_messages import QUIET_SECONDS, loss_message, stall_message
from cpo_ds.ranks.watch_store import NO_ANSWER, Verdict, WatchStore
from cpo_ds.storage.files import sync_seconds

BEAT_SECONDS = 1.0
# A rank of another host counts as lost after so long without a beat. A rank of this host is looked
# up among the processes instead.
SILENT_SECONDS = 40.0
# Rank 0 may take so long to answer on a busy host, however short the stall limit is.
_LEAST_PATIENCE = 10.0
# The same limit once a connection to another rank broke: then most likely one is lost.
_SILENT_AFTER_BREAK_SECONDS = 8.0
# Wait so long before ending a process for a fault elsewhere. It may be about to end by itself, and
# the stacks take a moment to write.
_GRACE_SECONDS = 5.0
# All ranks raise these errors together, and rank 0 prints them.
_SHARED = (UserError, NonFiniteError, Stopped, KeyboardInterrupt)


class Watch:
    """Watches over all ranks inside a `with` block, and ends the process if the run cannot go on.

    From the start of the block, at least one rank must make progress within the stall limit;
    `liveness` defines progress. `keep_in` tells it the run's folder, as soon as the run holds it.

    Watching ends with the block, unless an error of this rank alone ends it. After such an error
    the watch goes on, because the error may be a consequence of the loss of another rank.
    """

    def __init__(self, roll: RollCall, stall_minutes: float | None) -> None:
        self._rank, self._processes = roll.rank, roll.processes
        self._stall_seconds = 60 * (stall_minutes or 0)  # 0: no limit
        # The run's folder, and the console if it is not standard error any more.
        self._run_folder: Path | None = None
        self._console = sys.stderr
        self._stacks: TextIO | None = None
        self._armed_at = -1  # the count of work when the dump of stacks was last put off
        self._bytes = ByteWatch()
        self._silence_limit = SILENT_SECONDS
        self._over = threading.Event()
        self._has_failed = False  # the main thread, which only waits for the verdict then
        self._has_warned = False  # of a slow disk
        patience = max(self._stall_seconds, _LEAST_PATIENCE) if stall_minutes else SILENT_SECONDS
        self._store = WatchStore(roll, min(SILENT_SECONDS, patience))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def keep_in(self, folder: Path, console: TextIO) -> None:
        """Leaves stacks in the run's folder from now on, and reads the ranks' logs there.

        `console` is standard error as it was before each rank got a log.
        """
        self._console, self._run_folder = console, folder
        if self._stall_seconds:
            self._stacks = self._open_stacks(folder / "stacks")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, _SHARED):
            self._over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._remove_empty_stacks()
        elif is_loss_of_others(error):
            self._expect_loss()
            self._has_failed = True
        else:
            self._report(error)

    def _run(self) -> None:
        """Beats, looks at the other ranks, and ends the process if the run cannot go on."""
        last_beats: dict[int, Beat] = {}
        heard_at = dict.fromkeys(range(len(self._processes)), time.monotonic())
        progress_at = beat_at = time.monotonic()
        until_next = BEAT_SECONDS
        while not self._over.wait(until_next):
            # Do not count the time for which the whole run was suspended, as by Ctrl-Z.
            if (paused := time.monotonic() - beat_at - until_next) > QUIET_SECONDS:
                heard_at = {rank: at + paused for rank, at in heard_at.items()}
                progress_at += paused
            until_next = BEAT_SECONDS
            # Count bytes that libraries moved, and a disk that is busy, as work of this rank.
            waiting = sync_seconds()
            if self._bytes.has_moved(BEAT_SECONDS) or waiting is not None:
                count_work()
            self._warn_of_slow_disk(waiting or 0.0)
            self._arm_stacks()

            # Exchange beats, and end if some rank has found a reason.
            try:
                beats, verdict = self._store.exchange(own_beat())
            except NO_ANSWER:  # rank 0 keeps the store, so rank 0 is lost
                self._end_without_store()
                return
            if verdict:
                if not self._over.is_set():  # else this rank's own error is ending the process
                    self._end(verdict)
                return

            # Note which ranks gave a new beat, and whether any made progress.
            now = time.monotonic()
            for rank, beat in beats.items():
                if last_beats.get(rank) != beat:
                    heard_at[rank] = now
                if rank not in last_beats or last_beats[rank].work != beat.work:
                    progress_at = now
            last_beats = beats
            if a_connection_broke():
                self._expect_loss()

            # Propose a verdict; all ranks read it at their next beat, and this one at once.
            lost = [p for p in self._processes if self._is_lost(p, now - heard_at[p.rank])]
            message = None
            if lost:
                message = loss_message(lost)
            elif self._stall_seconds and now - progress_at > self._stall_seconds + _GRACE_SECONDS:
                message = stall_message(
                    self._processes, beats, heard_at, self._stall_seconds, self._run_folder
                )
            if message:
                with contextlib.suppress(*NO_ANSWER):  # asked again after the next beat
                    self._store.decide(Verdict(message, [process.rank for process in lost]))
                    until_next = 0.0
            beat_at = time.monotonic()

    def _warn_of_slow_disk(self, seconds: float) -> None:
        """Says once that a sync takes longer than the stall limit; it may last as long as it takes.

        No process could end it: the system does not kill one that waits for its disk.
        """
        if not self._stall_seconds or seconds <= self._stall_seconds or self._has_warned:
            return
        self._has_warned = True
        process = self._processes[self._rank]
        _tell(
            f"cpo_ds: warning: {process} has been waiting {seconds / 60:.2g} minutes for its disk "
            "to take what was written; the run goes on when it has.",
            self._console,
        )

    def _expect_loss(self) -> None:
        """Waits less for silent ranks from now on, since a connection to one of them broke."""
        self._silence_limit = min(_SILENT_AFTER_BREAK_SECONDS, SILENT_SECONDS)

    def _arm_stacks(self) -> None:
        """Puts off the dump of this process's stacks whenever its count of work has changed.

        The dump comes from a thread that needs no lock of Python's, in case the watch hangs too.
        """
        work = work_done()
        if self._stacks is not None and work != self._armed_at:
            self._armed_at = work
            faulthandler.dump_traceback_later(self._stall_seconds, file=self._stacks, exit=False)

    def _is_lost(self, process: RankProcess, silent_seconds: float) -> bool:
        if process.host == self._processes[self._rank].host:
            return not is_running(process)
        return silent_seconds > self._silence_limit

    def _open_stacks(self, folder: Path) -> TextIO:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return (folder / f"rank_{self._rank}.txt").open("w", encoding="utf-8")
        except OSError:  # a full disk should not leave the run without a watch
            return sys.stderr

    def _remove_empty_stacks(self) -> None:
        if self._stacks is None:
            return
        with contextlib.suppress(OSError):
            file = Path(self._stacks.name)
            if file.stat().st_size == 0:
                file.unlink()
                file.parent.rmdir()  # succeeds for the last rank, if no rank left stacks

    def _report(self, error: BaseException) -> None:
        """Tells the other ranks why this one is about to end; waits until rank 0 has printed it."""
        process = self._processes[self._rank]
        folder = self._run_folder
        log = f"; its whole output is in {log_file(folder, process.rank)}" if folder else ""
        if problem := limit_problem(error):
            verdict = Verdict(f"{process}: {problem}", is_error=True, code=EXIT_USER_ERROR)
        else:
            verdict = Verdict(
                f"{process} failed with the error below{log}.",
                traceback="".join(traceback.format_exception(error)),
                is_error=True,
            )
        try:
            is_first = self._store.decide(verdict, self._stop_watching)
            if process.rank > 0 or not is_first:  # Python prints rank 0's own error, at the end
                self._wait_until_shown()
        except NO_ANSWER:
            pass

    def _stop_watching(self, is_first: bool) -> None:
        """Stops watching if this rank's own error, rather than another rank's, ends the process.

        The watching thread may ask for the verdict at any time, so this must come before.
        """
        if is_first or self._rank > 0:
            self._over.set()

    def _wait_until_shown(self) -> None:
        """Waits until rank 0 has printed the verdict, but not for long."""
        deadline = time.monotonic() + 2 * _GRACE_SECONDS
        with contextlib.suppress(*NO_ANSWER):
            while time.monotonic() < deadline:
                if self._store.is_shown():
                    return
                time.sleep(0.1)

    def _end(self, verdict: Verdict) -> None:
        """Prints the verdict and ends this process, unless it is about to end by itself.

        Standard error is the console on rank 0, and the rank's log on the others.
        """
        if not verdict.is_error and self._over.wait(self._grace()):
            return
        # A crashed rank's last lines are in its log. Those of rank 0 are on the console already.
        folder = self._run_folder
        crashed = [last_words(folder, rank) for rank in verdict.lost if rank] if folder else []
        text = f"\ncpo_ds: stopped: {verdict.message}"
        text = "\n".join([text, *filter(None, [verdict.traceback.rstrip(), *crashed])])
        if folder or self._rank == 0:  # without logs, all ranks share the console
            _tell(text, sys.stderr)
        if self._rank == 0:
            with contextlib.suppress(*NO_ANSWER):
                self._store.mark_shown()
            if len(verdict.lost) < len(self._processes) - 1:
                time.sleep(BEAT_SECONDS)  # the store ends with this process; let others read it
        else:
            self._wait_until_shown()
        os._exit(verdict.code)

    def _grace(self) -> float:
        """Seconds to wait for the main thread to end by itself."""
        return 0.0 if self._has_failed else _GRACE_SECONDS

    def _end_without_store(self) -> None:
        """Ends this process because rank 0 is lost; one rank of each host prints the message."""
        host = self._processes[self._rank].host
        others = [p.rank for p in self._processes[1:] if p.host == host and is_running(p)]
        if self._over.wait(self._grace()):
            return
        first = min(others, default=self._rank)
        if self._rank == first:
            _tell(f"\ncpo_ds: stopped: {loss_message(self._processes[:1])}", self._console)
            time.sleep(2 * BEAT_SECONDS)  # ranks that notice later leave the message to this one
        else:  # a launcher may kill all once one ends: the message is first
            wait_for_end(self._processes[first], 2 * _GRACE_SECONDS)
        os._exit(EXIT_RANK_LOST)


def is_loss_of_others(error: BaseException) -> bool:
    """Whether an error means that the connection to another rank broke."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def _tell(text: str, stream: TextIO) -> None:
    """Prints a text, unless its disk is full: that must not keep the process from its end."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)
