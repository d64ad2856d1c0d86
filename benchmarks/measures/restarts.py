"""Lines of a supervised run, each with the time at which it appeared -> the parts of its restarts.

A part ends at the first line of its kind after the end of the part before. The parts are:

    notice      from the kill until supervise.sh says that it restarts the command: all processes
                of the start have ended
    pause       until supervise.sh starts the command
    launch      until rank 0's log begins: launchers and libraries are loaded, the ranks have met
    read        until the pairs are counted
    load        until the policy is loaded and the checkpoint restored
    first step  until the line of the first step
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PARTS = ("notice", "pause", "launch", "read", "load", "first step")
KILL = "failures.py: kill "  # and the victim; the benchmark's own event
_RESTART = re.compile(r"supervise\.sh: exit code (\d+); restart \d+ of \d+ in (\d+) s")
_ENDS = {
    "launch": re.compile(r"--- rank 0 "),
    "read": re.compile(r"training pairs: \d"),
    "load": re.compile(r"training (a LoRA adapter|all parameters) with "),
    "first step": re.compile(r"step \d+/"),
}
_RESUMED = re.compile(r"resumed from .* at step (\d+) of ")
_STEP = re.compile(r"step (\d+)/\d+ ")
_SAVED = re.compile(r"saved .*, ([0-9.]+) s\)")


@dataclass(frozen=True)
class Event:
    """A line of a run and the seconds since its start."""

    seconds: float
    text: str


def kill_report(events: Sequence[Event]) -> list[dict[str, Any]]:
    """A report on each kill: its victim, its time, the parts of the restart, and what was lost.

    A part that the next kill cut off is None, as are those after it.
    """
    kills = [number for number, event in enumerate(events) if event.text.startswith(KILL)]
    ends = [*kills, len(events)][1:]
    return [
        {
            "victim": events[kill].text.removeprefix(KILL),
            "at": round(events[kill].seconds, 2),
            "parts": parts(events[kill:end]),
        }
        | lost_work(events, kill, end)
        for kill, end in zip(kills, ends, strict=True)
    ]


def parts(events: Sequence[Event]) -> dict[str, float | None]:
    """Seconds of each part of a restart, by the events from its kill to the next one."""
    result: dict[str, float | None] = dict.fromkeys(PARTS)
    restarts = [number for number, event in enumerate(events) if _RESTART.search(event.text)]
    if not restarts:
        return result
    # The end of notice, and the pause that supervise.sh announces.
    restart = events[restarts[0]]
    pause = float(_restart_seconds(restart.text))
    result["notice"] = round(restart.seconds - events[0].seconds, 2)
    result["pause"] = pause
    # Then the lines of the new start, in their order.
    since, following = restart.seconds + pause, events[restarts[0] + 1 :]
    for part, pattern in _ENDS.items():
        end = next((n for n, event in enumerate(following) if pattern.match(event.text)), None)
        if end is None:
            break
        result[part] = round(following[end].seconds - since, 2)
        since, following = following[end].seconds, following[end + 1 :]
    return result


def _restart_seconds(text: str) -> str:
    match = _RESTART.search(text)
    assert match is not None
    return match[2]


def lost_work(events: Sequence[Event], kill: int, end: int) -> dict[str, float | None]:
    """Steps that are trained again after a kill, and the seconds that went into lost work.

    Lost is what was done after the step that the next start resumes from had ended: whole steps
    and the beginning of another. None if no start followed before event `end`. A kill during a
    start loses no steps; that start is in the parts of the restart before.
    """
    begins = [n for n in range(kill, end) if _ENDS["load"].match(events[n].text)]
    if not begins:
        return {"steps lost": None, "lost": None}
    resumed = [m for event in events[begins[0] : end] if (m := _RESUMED.match(event.text))]
    step = int(resumed[0][1]) if resumed else 0
    # Go back to the line of that step, at most to the beginning of the start that was killed.
    own_start = max((n for n in range(kill) if _ENDS["load"].match(events[n].text)), default=None)
    restarts = [n for n in range(kill) if _RESTART.search(events[n].text)]
    if own_start is None or any(n > own_start for n in restarts):  # it had not trained yet
        return {"steps lost": 0, "lost": 0.0}
    shown = {
        n: int(m[1]) for n in range(own_start, begins[0]) if (m := _STEP.match(events[n].text))
    }
    since = next((n for n, number in shown.items() if number == step), own_start)
    last = max(shown.values(), default=step)
    return {
        "steps lost": max(0, last - step),
        "lost": round(max(0.0, events[kill].seconds - events[since].seconds), 2),
    }


def unplanned_restarts(events: Sequence[Event]) -> list[int]:
    """Exit codes of starts that ended without a kill, each of them a fault of the run's own."""
    codes, killed = [], False
    for event in events:
        killed = killed or event.text.startswith(KILL)
        if match := _RESTART.search(event.text):
            codes += [] if killed else [int(match[1])]
            killed = False
    return codes


def save_seconds(events: Sequence[Event]) -> list[float]:
    """Seconds of each checkpoint, by the run's own lines `saved ...`."""
    return [float(match[1]) for event in events if (match := _SAVED.match(event.text))]


def step_gaps(events: Sequence[Event]) -> list[float]:
    """Seconds between the lines of two steps that follow each other, without a line between."""
    return [
        round(after.seconds - before.seconds, 3)
        for before, after in pairwise(events)
        if _STEP.match(before.text) and _STEP.match(after.text)
    ]
