"""Checkpoints that are damaged in every way, and the checkpoint that a resume takes then."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cpo_ds.checkpoint.resume import find_checkpoint
from cpo_ds.config import CheckpointConfig
from cpo_ds.errors import UserError
from cpo_ds.ranks.ranks import Ranks, init_ranks


def find_damaged(folder: str, newest: str, report: str) -> None:
    """Damages each file of a checkpoint in each way, looks for one to resume from, and restores it.

    Writes to `report` the checkpoint and the messages if the run may fall back, if it has to stop,
    and if `checkpoint.resume` names this checkpoint.
    """
    ranks, checkpoints = init_ranks(), Path(folder)
    outcomes: dict[str, list[Any]] = {"damaged": [], "untouched": []}
    for path in sorted((checkpoints / newest).iterdir()):
        content = path.read_bytes()
        outcomes["untouched"].append(_find_each_way(checkpoints, newest, ranks))
        for way, changed in _ways_to_damage(content, bits=(0, 4 * len(content), -1)):
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            fall_back, said, stop, named = _find_each_way(checkpoints, newest, ranks)
            case = {"file": path.name, "way": way, "fall_back": fall_back}
            outcomes["damaged"].append(case | {"said": said, "stop": stop, "named": named})
            path.write_bytes(content)
    outcomes["untouched"].append(_find_each_way(checkpoints, newest, ranks))
    Path(report).write_text(json.dumps(outcomes))
    torch.distributed.destroy_process_group()


def find_with_damaged_latest(folder: str, newest: str, report: str) -> None:
    """Damages the file `latest`, each bit of it too, and looks for a checkpoint to resume from."""
    ranks, checkpoints, cases = init_ranks(), Path(folder), []
    path = checkpoints / "latest"
    content = path.read_bytes()
    for way, changed in _ways_to_damage(content, bits=range(8 * len(content))):
        path.unlink(missing_ok=True)
        if changed is not None:
            path.write_bytes(changed)
        fall_back, said, stop, _ = _find_each_way(checkpoints, newest, ranks)
        stopped = None if stop == fall_back else stop
        cases.append({"way": way, "found": fall_back, "said": said, "stop": stopped})
    Path(report).write_text(json.dumps(cases))
    torch.distributed.destroy_process_group()


def _ways_to_damage(content: bytes, bits: Iterable[int]) -> list[tuple[str, bytes | None]]:
    """(damage, content after it) for a file; None if the file is gone."""
    ways: list[tuple[str, bytes | None]] = [("removed", None), ("emptied", b"")]
    ways += [(f"truncated to {size}", content[:size]) for size in {1, len(content) - 1}]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit % (8 * len(content)) // 8] ^= 1 << bit % 8
        ways.append((f"bit {bit}", bytes(flipped)))
    return ways


def _find_each_way(folder: Path, newest: str, ranks: Ranks) -> tuple[Any, list[str], Any, Any]:
    """The checkpoint and messages by default; the checkpoint with on_damage: stop, and if named."""

    def find(say: Any, **settings: Any) -> str:
        try:
            checkpoint = find_checkpoint(CheckpointConfig(**settings), folder, ranks, say)
        except UserError as error:
            return str(error)
        return checkpoint[0].name if checkpoint else "none"

    said: list[str] = []
    named = find(lambda text: None, resume=str(folder / newest))
    return find(said.append), said, find(lambda text: None, on_damage="stop"), named
