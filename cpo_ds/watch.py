"""Finds ranks that ended or hang, says which and where, and ends this process.

A thread in each process beats once in a while in a store that all ranks read. It does so too while
the main thread waits inside a library for a rank that will never answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch.distributed as dist

from cpo_ds.ranks import Ranks
from cpo_ds.schema import EXIT_RANK_LOST, NonFiniteError, Stopped, UserError

BEAT_SECONDS = 1.0
# Without a beat for so long a rank of another host counts as lost; one of this host is looked up.
SILENT_SECONDS = 40.0
# Before a process is ended for what happened elsewhere: it may be about to end by itself, and
# stacks have to be written down.
_GRACE_SECONDS = 5.0
_NO_ANSWER = (TimeoutError, FutureTimeout, RuntimeError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    rank: int
    host: str
    pid: int
    started: float  # of the process, in seconds since 1970: a pid may be used again

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host} (process {self.pid})"


class Watch:
    """Watches over all ranks inside a `with` block.

    On leaving it in good order (also by an error that all ranks share) watching ends. After any
    other error it goes on, since that may be what the loss of another rank looks like from here.
    """

    def __init__(self, ranks: Ranks, folder: Path, stall_minutes: float | None) -> None:
        self._ranks = ranks
        self._limit = 60 * (stall_minutes or 0)  # seconds
        self._folder = folder / "stacks"
        self._stacks = self._open_stacks(ranks.rank) if self._limit else sys.stderr
        self._progress: Callable[[], int] = lambda: 0
        self._armed_at = 0
        self._over = threading.Event()
        started = psutil.Process().create_time()
        here = Place(ranks.rank, socket.gethostname(), os.getpid(), started)
        self._places = ranks.gather(here)
        self._store = _open_store(ranks)
        self._asking = ThreadPoolExecutor(max_workers=1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        shared = (UserError, NonFiniteError, Stopped, KeyboardInterrupt)
        if kind is None or issubclass(kind, shared):
            self._over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._remove_empty_stacks()

    def follow(self, progress: Callable[[], int]) -> None:
        """From now on `progress` has to grow on some rank within the stall limit."""
        self._progress = progress

    def _run(self) -> None:
        """Beats, looks at the others, and ends the process where one is lost or none gets on."""
        seen: dict[int, str] = {}
        heard = dict.fromkeys(range(self._ranks.world_size), time.monotonic())
        moved_at = time.monotonic()
        while not self._over.wait(BEAT_SECONDS):
            self._arm_stacks()
            try:
                beats = self._ask_store(self._exchange)
            except _NO_ANSWER:  # it lives in rank 0's process
                self._store = None
                self._end_unless_over(_lost([self._places[0]]))
                return
            now = time.monotonic()
            for rank, beat in beats.items():
                if seen.get(rank) != beat:
                    heard[rank] = now
                if _progress_of(seen.get(rank)) != _progress_of(beat):
                    moved_at = now
            seen = beats
            lost = [p for p in self._places if self._is_lost(p, now - heard[p.rank])]
            if lost:
                self._end_unless_over(_lost(lost))
            if self._limit and self._armed_at > 0 and now - moved_at > self._limit + _GRACE_SECONDS:
                self._end_unless_over(self._stall_message(beats, heard))

    def _arm_stacks(self) -> None:
        """Has the stacks written once no progress was made here for the limit.

        That is done by a thread that needs no lock of Python's, should this one be stuck too.
        """
        progress = self._progress()
        if self._limit and progress != self._armed_at:
            self._armed_at = progress
            faulthandler.dump_traceback_later(self._limit, file=self._stacks, exit=False)

    def _ask_store(self, question: Callable[[], Result]) -> Result:
        """Asks in a thread of its own: the store may never answer, whatever its timeout."""
        try:
            asked = self._asking.submit(question)
        except RuntimeError:  # this process is ending, by an error that it is about to tell
            raise SystemExit from None
        return asked.result(SILENT_SECONDS)

    def _exchange(self) -> dict[int, str]:
        """Leaves this rank's beat in the store; the latest of all ranks."""
        beat = json.dumps([time.time(), self._progress(), _main_thread_at()])
        self._store.set(f"beat/{self._ranks.rank}", beat)
        keys = [f"beat/{rank}" for rank in range(self._ranks.world_size)]
        return {
            rank: self._store.get(key).decode()
            for rank, key in enumerate(keys)
            if self._store.check([key])
        }

    def _is_lost(self, place: Place, silent_seconds: float) -> bool:
        if place.host == self._places[self._ranks.rank].host:
            return not _is_running(place)
        return silent_seconds > SILENT_SECONDS

    def _open_stacks(self, rank: int) -> Any:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return (self._folder / f"rank_{rank}.txt").open("w", encoding="utf-8")
        except OSError:  # a full disk should not keep a run from its watch
            return sys.stderr

    def _remove_empty_stacks(self) -> None:
        with contextlib.suppress(OSError):
            file = Path(self._stacks.name)
            if file.stat().st_size == 0:
                file.unlink()
                file.parent.rmdir()  # by the last rank: it fails where files are left

    def _stall_message(self, beats: dict[int, str], heard: dict[int, float]) -> str:
        fewest = min(map(_progress_of, beats.values()))
        behind = [str(rank) for rank, beat in beats.items() if _progress_of(beat) == fewest]
        which = f", rank {', '.join(behind)} being behind" if len(behind) < len(beats) else ""
        places = "; ".join(self._place_and_state(p, beats, heard) for p in self._places)
        return (
            f"no rank got on for {self._limit / 60:g} minutes (train.stall_minutes){which}: "
            f"{places}. The stacks of all ranks that run are in {self._folder}. Run the same "
            "command again to go on from the newest checkpoint."
        )

    def _place_and_state(self, place: Place, beats: dict[int, str], heard: dict[int, float]) -> str:
        where = json.loads(beats[place.rank])[2] if place.rank in beats else "an unknown place"
        silent = time.monotonic() - heard[place.rank]
        sign = f", without a sign of life for {silent:.0f} s" if silent > 5 * BEAT_SECONDS else ""
        return f"{place} at {where}{sign}"

    def _end_unless_over(self, message: str) -> None:
        """Ends this process, unless it is about to end by itself; one rank of a host says why."""
        speaks = self._is_speaker()
        if self._over.wait(_GRACE_SECONDS):
            return
        if speaks:
            print(f"\ncpo_ds: stopped: {message}", file=sys.stderr, flush=True)
        else:
            time.sleep(BEAT_SECONDS)  # the message comes first
        os._exit(EXIT_RANK_LOST)

    def _is_speaker(self) -> bool:
        rank, host = str(self._ranks.rank), self._places[self._ranks.rank].host
        try:
            claim = self._store.compare_set
            return rank == self._ask_store(lambda: claim(f"speaker/{host}", "", rank).decode())
        except (AttributeError, *_NO_ANSWER):
            others = [p for p in self._places[1:] if p.host == host and _is_running(p)]
            return self._ranks.rank == min(place.rank for place in others)


def _lost(places: list[Place]) -> str:
    """What is said of ranks that are gone."""
    return (
        f"{', '.join(map(str, places))} ended or cannot be reached; if it said why, that is above "
        "or in its own log. Run the same command again to go on from the newest checkpoint."
    )


def _open_store(ranks: Ranks) -> Any:
    """A store of the watch's own: clients of the process group's wait for each other."""
    host = os.environ["MASTER_ADDR"]

    def connect(port: int) -> Any:
        wait = timedelta(seconds=SILENT_SECONDS)
        return dist.TCPStore(host, port, None, ranks.rank == 0, wait, wait_for_workers=False)

    store = connect(0) if ranks.rank == 0 else None
    port = ranks.on_first(lambda: store.port)  # type: ignore[union-attr]
    return store or connect(port)


def _is_running(place: Place) -> bool:
    """Whether a process of this host lives; one that only waits to be noticed does not."""
    try:
        process = psutil.Process(place.pid)
        same = abs(process.create_time() - place.started) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _progress_of(beat: str | None) -> int:
    return -1 if beat is None else json.loads(beat)[1]


def _main_thread_at() -> str:
    """Where the main thread is, as `file.py:12 in function`, the innermost line of this package."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    lines = traceback.extract_stack(frame) if frame else []
    ours = [line for line in lines if "cpo_ds" in line.filename] or lines
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "?"
