"""What the watch says of ranks that are lost or hang."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpo_ds.ranks.liveness import Beat, ranks_behind
from cpo_ds.ranks.processes import RankProcess

# A rank without a sign of life for so long, five beats, is called silent.
QUIET_SECONDS = 5.0


def stall_message(
    processes: Sequence[RankProcess],
    beats: dict[int, Beat],
    heard_at: Mapping[int, float],
    stall_seconds: float,
    folder: Path | None,
) -> str:
    """Names the ranks that hold up the others, and the line that each rank is at.

    `heard_at` holds the time of each rank's last sign of life, and `folder` is the run's, if the
    ranks left their stacks there.
    """
    now = time.monotonic()
    silence = {rank: now - at for rank, at in heard_at.items()}
    silent = [rank for rank, seconds in silence.items() if seconds > QUIET_SECONDS]
    ranks = silent if len(silent) < len(silence) else []
    behind = ", ".join(str(rank) for rank in ranks or ranks_behind(beats))
    stacks = f"The stacks of all running ranks are in {folder / 'stacks'}. " if folder else ""
    positions = "; ".join(
        _position(process, beats.get(process.rank), silence[process.rank]) for process in processes
    )
    return (
        f"no rank made progress for {stall_seconds / 60:g} minutes (train.stall_minutes)."
        f"{f' Behind the others: rank {behind}.' if behind else ''} Positions: {positions}. "
        f"{stacks}Run the same command again to resume from the newest checkpoint."
    )


def _position(process: RankProcess, beat: Beat | None, seconds: float) -> str:
    """A process, the line of code it was at, and how long it has been silent."""
    position = f"at {beat.position}" if beat else "at an unknown line"
    silence = f", silent for {seconds:.0f} s" if seconds > QUIET_SECONDS else ""
    return f"{process} {position}{silence}"


def loss_message(processes: Sequence[RankProcess]) -> str:
    """Names the ranks whose processes are gone."""
    return (
        f"{', '.join(map(str, processes))} ended or cannot be reached; if it gave a reason, that "
        "is on this console or in its file in logs/. Run the same command again to resume from the "
        "newest checkpoint."
    )
