"""Runs in which each rank writes down the pairs of every update that it makes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cpo_ds.engine.engine import Engine, Update
from cpo_ds.run import session, trainer
from cpo_ds.run.main import main
from cpo_ds.schema import PackedBatch


def train_with_ledger(folder: str, *arguments: str) -> int:
    """Trains; each rank adds a line to `folder` for each of its updates, once it is made.

    A pair is known by its tokens in the micro-batch that the model got, and enters the line when
    its micro-batch's gradient is added up. The first line names the start: the step that it goes on
    from, the number of ranks, and all training pairs.
    """
    train, score, accumulate, update = (
        session.train, Engine.score, Engine.accumulate, Engine.update,
    )  # fmt: skip
    scored: list[PackedBatch] = []  # the last micro-batch
    added: list[str] = []  # pairs since the last update
    step = 0

    def write(run: trainer.Run, line: dict[str, Any]) -> None:
        with _file(Path(folder), run.ranks.rank).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def train_and_write(run: trainer.Run) -> None:
        nonlocal step
        step = run.first_step
        pairs = [digest(torch.from_numpy(pair.tokens)) for pair in run.train_pairs]
        _begin(Path(folder), run)
        write(run, {"first_step": step, "ranks": run.ranks.world_size, "pairs": pairs})

        def update_and_write(engine: Engine, rate: float) -> Update:
            nonlocal step
            done = update(engine, rate)
            step += done.applied
            if done.applied:
                write(run, {"step": step, "pairs": list(added)})
            added.clear()
            return done

        with mock.patch.object(Engine, "update", update_and_write):
            train(run)

    def score_and_keep(engine: Engine, batch: PackedBatch) -> Any:
        scored[:] = [batch]
        return score(engine, batch)

    def accumulate_and_add(engine: Engine, share: torch.Tensor) -> None:
        accumulate(engine, share)
        added.extend(pairs_of(scored.pop()))

    with (
        mock.patch.object(session, "train", train_and_write),
        mock.patch.object(Engine, "score", score_and_keep),
        mock.patch.object(Engine, "accumulate", accumulate_and_add),
    ):
        return main(list(arguments))


def pairs_of(batch: PackedBatch) -> list[str]:
    """The pairs of a micro-batch that count, by their tokens."""
    if not batch.counted:
        return []
    return [
        digest(part) for part in batch.input_ids[0].split(list(map(sum, batch.segment_lengths)))
    ]


def digest(tokens: torch.Tensor) -> str:
    """A short name for a sequence of tokens."""
    return hashlib.sha256(str(tokens.tolist()).encode()).hexdigest()[:16]


def _begin(folder: Path, run: trainer.Run) -> None:
    """Makes this start's folder: the next number, the same on all ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    run.ranks.wait_for_all()
    number = len(list(folder.iterdir()))
    run.ranks.wait_for_all()
    run.ranks.on_first(lambda: (folder / f"{number:04d}").mkdir())


def _file(folder: Path, rank: int) -> Path:
    return max(folder.iterdir()) / f"rank_{rank}.jsonl"
