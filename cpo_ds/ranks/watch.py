"""Finds ranks that failed, ended or hang, says which, where and why, and ends this process.

A thread in each process beats once in a while in a store that all ranks read. It does so too while
the main thread waits inside a library for a rank that will never answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch.distributed as dist

from cpo_ds.errors import EXIT_RANK_LOST, NonFiniteError, Stopped, UserError
from cpo_ds.ranks.liveness import Beat, ByteWatch, count_work, own_beat, ranks_behind, work_done
from cpo_ds.ranks.logs import last_words, log_file
from cpo_ds.ranks.processes import RankProcess, is_running, own_process
from cpo_ds.ranks.ranks import Ranks

BEAT_SECONDS = 1.0
# Without a beat for so long a rank of another host counts as lost; one of this host is looked up.
SILENT_SECONDS = 40.0
# The same once a connection to another rank broke.
_SILENT_AFTER_BREAK_SECONDS = 8.0
# Before a process is ended for what happened elsewhere: it may be about to end by itself, and
# stacks have to be written down.
_GRACE_SECONDS = 5.0
# Errors that all ranks raise alike, and rank 0 tells.
_SHARED = (UserError, NonFiniteError, Stopped, KeyboardInterrupt)
_NO_ANSWER = (TimeoutError, FutureTimeout, RuntimeError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Verdict:
    """Why the run ends, the same on all ranks: `lost` ranks, or a traceback of one that failed."""

    message: str
    lost: list[int] = field(default_factory=list)
    traceback: str = ""


class Watch:
    """Watches over all ranks inside a `with` block.

    Some rank has to get on within the stall limit, from the start of the block on: `liveness` says
    what counts as getting on.

    On leaving it in good order (also by an error that all ranks share) watching ends. After any
    other error it goes on, since that may be what the loss of another rank looks like from here.
    """

    def __init__(
        self, ranks: Ranks, folder: Path, stall_minutes: float | None, console: TextIO
    ) -> None:
        self._ranks, self._run_folder, self._console = ranks, folder, console
        self._limit = 60 * (stall_minutes or 0)  # seconds
        self._folder = folder / "stacks"
        self._stacks = self._open_stacks(ranks.rank) if self._limit else sys.stderr
        self._armed_at = -1  # the work done when the stacks were last put off
        self._bytes = ByteWatch()
        self._silence_limit = SILENT_SECONDS
        self._over = threading.Event()
        self._places = ranks.gather(own_process(ranks.rank))
        self._store = _open_store(ranks)
        self._asking = ThreadPoolExecutor(max_workers=1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._arm_stacks()
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or isinstance(error, _SHARED):
            self._over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._remove_empty_stacks()
        elif is_loss_of_others(error):
            self._silence_limit = min(_SILENT_AFTER_BREAK_SECONDS, SILENT_SECONDS)
        else:
            self._report(error)

    def _run(self) -> None:
        """Beats, looks at the others, and ends the process where one is lost or none gets on."""
        seen: dict[int, Beat] = {}
        heard = dict.fromkeys(range(self._ranks.world_size), time.monotonic())
        moved_at = time.monotonic()
        while not self._over.wait(BEAT_SECONDS):
            if self._bytes.has_moved(BEAT_SECONDS):
                count_work()
            self._arm_stacks()
            try:
                beats, verdict = self._ask_store(self._exchange)
            except _NO_ANSWER:  # it lives in rank 0's process
                self._end_without_store()
                return
            if verdict:
                if not self._over.is_set():  # else this rank's own error ends it
                    self._end(verdict)
                return
            now = time.monotonic()
            for rank, beat in beats.items():
                if seen.get(rank) != beat:
                    heard[rank] = now
                if rank not in seen or seen[rank].work != beat.work:
                    moved_at = now
            seen = beats
            lost = [p for p in self._places if self._is_lost(p, now - heard[p.rank])]
            message = None
            if lost:
                message = _lost(lost)
            elif self._limit and now - moved_at > self._limit + _GRACE_SECONDS:
                message = self._stall_message(beats, heard)
            if message:
                ranks = [place.rank for place in lost]
                with contextlib.suppress(*_NO_ANSWER):  # asked again after the next beat
                    self._ask_store(partial(self._decide, Verdict(message, ranks)))

    def _arm_stacks(self) -> None:
        """Has the stacks written once no work was done here for the limit.

        That is done by a thread that needs no lock of Python's, should this one be stuck too.
        """
        work = work_done()
        if self._limit and work != self._armed_at:
            self._armed_at = work
            faulthandler.dump_traceback_later(self._limit, file=self._stacks, exit=False)

    def _ask_store(self, question: Callable[[], Result]) -> Result:
        """Asks in a thread of its own: the store may never answer, whatever its timeout."""
        try:
            asked = self._asking.submit(question)
        except RuntimeError:  # this process is ending, by an error that it is about to tell
            raise SystemExit from None
        return asked.result(SILENT_SECONDS)

    def _exchange(self) -> tuple[dict[int, Beat], Verdict | None]:
        """Leaves this rank's beat in the store; the latest of all ranks, and the verdict if any."""
        self._store.set(f"beat/{self._ranks.rank}", json.dumps(asdict(own_beat())))
        keys = [f"beat/{rank}" for rank in range(self._ranks.world_size)]
        beats = {
            rank: Beat(**json.loads(self._store.get(key)))
            for rank, key in enumerate(keys)
            if self._store.check([key])
        }
        found = self._store.get("verdict").decode() if self._store.check(["verdict"]) else None
        return beats, Verdict(**json.loads(found)) if found else None

    def _decide(self, verdict: Verdict) -> bool:
        """Makes it the verdict unless there is one: the first thing that happened is the cause."""
        text = json.dumps(asdict(verdict))
        return bool(self._store.compare_set("verdict", "", text).decode() == text)

    def _decide_and_stop(self, verdict: Verdict) -> bool:
        """The same for this rank's own error, and no more watching where that is what ends it.

        Both in one question, since the watching thread may ask its own right after this one.
        """
        is_first = self._decide(verdict)
        if is_first or self._ranks.rank > 0:
            self._over.set()
        return is_first

    def _is_lost(self, place: RankProcess, silent_seconds: float) -> bool:
        if place.host == self._places[self._ranks.rank].host:
            return not is_running(place)
        return silent_seconds > self._silence_limit

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

    def _stall_message(self, beats: dict[int, Beat], heard: dict[int, float]) -> str:
        behind = [str(rank) for rank in ranks_behind(beats)]
        which = f", rank {', '.join(behind)} being behind" if behind else ""
        places = "; ".join(self._place_and_state(p, beats, heard) for p in self._places)
        return (
            f"no rank got on for {self._limit / 60:g} minutes (train.stall_minutes){which}: "
            f"{places}. The stacks of all ranks that run are in {self._folder}. Run the same "
            "command again to go on from the newest checkpoint."
        )

    def _place_and_state(
        self, place: RankProcess, beats: dict[int, Beat], heard: dict[int, float]
    ) -> str:
        where = beats[place.rank].place if place.rank in beats else "an unknown place"
        silent = time.monotonic() - heard[place.rank]
        sign = f", without a sign of life for {silent:.0f} s" if silent > 5 * BEAT_SECONDS else ""
        return f"{place} at {where}{sign}"

    def _report(self, error: BaseException) -> None:
        """Tells the others why this rank is about to end, and waits until rank 0 has shown it."""
        place = self._places[self._ranks.rank]
        log = log_file(self._run_folder, place.rank)
        verdict = Verdict(
            f"{place} failed, as follows; the rest of what it said is in {log}.",
            traceback="".join(traceback.format_exception(error)),
        )
        try:
            is_first = self._ask_store(partial(self._decide_and_stop, verdict))
            if place.rank > 0 or not is_first:  # rank 0's own is printed by Python, last as well
                self._wait_until_told()
        except _NO_ANSWER:
            pass

    def _wait_until_told(self) -> None:
        deadline = time.monotonic() + 2 * _GRACE_SECONDS
        with contextlib.suppress(*_NO_ANSWER):
            while time.monotonic() < deadline:
                if self._ask_store(lambda: self._store.check(["told"])):
                    return
                time.sleep(0.1)

    def _end(self, verdict: Verdict) -> None:
        """Ends this process, unless it is about to end by itself; rank 0 says why."""
        if not verdict.traceback and self._over.wait(_GRACE_SECONDS):
            return
        text = f"\ncpo_ds: stopped: {verdict.message}"
        # What a process said when it crashed. What rank 0 said is on the console already.
        crashed = [last_words(self._run_folder, rank) for rank in verdict.lost if rank]
        text = "\n".join([text, *filter(None, [verdict.traceback.rstrip(), *crashed])])
        print(text, file=sys.stderr, flush=True)  # the console's on rank 0, else the log's
        if self._ranks.rank == 0:
            with contextlib.suppress(*_NO_ANSWER):
                self._ask_store(lambda: self._store.set("told", ""))
            time.sleep(BEAT_SECONDS)  # the store ends with this process
        else:
            self._wait_until_told()
        os._exit(EXIT_RANK_LOST)

    def _end_without_store(self) -> None:
        """Ends this process as rank 0 is lost; one rank of each host says so on the console."""
        here = self._places[self._ranks.rank].host
        others = [p.rank for p in self._places[1:] if p.host == here and is_running(p)]
        if self._over.wait(_GRACE_SECONDS):
            return
        if self._ranks.rank == min(others, default=self._ranks.rank):
            message = f"\ncpo_ds: stopped: {_lost(self._places[:1])}"
            print(message, file=self._console, flush=True)
        else:
            time.sleep(BEAT_SECONDS)  # the message comes first
        os._exit(EXIT_RANK_LOST)


def is_loss_of_others(error: BaseException) -> bool:
    """Whether an error is what a broken connection between ranks looks like."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def _lost(places: list[RankProcess]) -> str:
    """What is said of ranks that are gone."""
    return (
        f"{', '.join(map(str, places))} ended or cannot be reached; if it said why, that is here "
        "or in its file in logs/. Run the same command again to go on from the newest checkpoint."
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
