"""Kills a run again and again, on other numbers of ranks each time, and checks the pairs it used.

    python tests/support/ledger.py --kills 20 --seed 1 --stage 2   # about five minutes on two cores

Each rank writes down which pairs entered each of its updates. A start that resumes from a step cuts
off what came after it. What is left has each pair once an epoch.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from launch import ForkedRanks, finish, on_ranks
from runs import lines, small_recipe
from torture import kill_somewhere
from workers.ledger import train_with_ledger

EPOCHS = 3
WORLD_SIZES = (1, 2, 3)
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}


@dataclass(frozen=True)
class Killed:
    """A run that was killed, and one that was not."""

    whole: Path
    killed: Path
    ledger: Path  # of the one that was killed
    world_sizes: list[int]  # of its starts
    victims: list[str]


def kill_on_other_ranks(
    folder: Path, kills: int, seed: int, *, stage: int, pairs: int = 8, lora: bool = False
) -> Killed:
    """Trains three epochs, killed `kills` times, and restarted on another number of ranks."""
    recipe = small_recipe(
        folder,
        stage=stage,
        batch={"pairs": pairs, "tokens_per_rank": 1024},
        train={"epochs": EPOCHS, "max_steps": None},
        checkpoint={"every_steps": 2},
        lora=LORA if lora else None,
    )
    whole, killed, ledger = folder / "whole", folder / "killed", folder / "ledger"
    options = ["--config", str(recipe), "--output_dir"]
    for done in on_ranks(train_with_ledger, [str(folder / "whole-ledger"), *options, str(whole)]):
        assert done.code == 0, done.output
    draw, victims = random.Random(seed), list[str]()
    world_sizes = [draw.choice(WORLD_SIZES)]
    while True:
        arguments = [str(ledger), *options, str(killed)]
        run = ForkedRanks(train_with_ledger, arguments, ranks=world_sizes[-1])
        if len(victims) < kills:
            victims += [kill.victim for kill in kill_somewhere(run, killed, draw, 2)]
        done = finish(run, patience=1)
        if done.code == 0:
            return Killed(whole, killed, ledger, world_sizes, victims)
        assert "cpo_ds: error" not in done.output, done.output
        world_sizes.append(draw.choice([n for n in WORLD_SIZES if n != world_sizes[-1]]))


def used_pairs(ledger: Path) -> tuple[dict[int, Counter[str]], Counter[str]]:
    """The pairs of each step of the final history, and all training pairs."""
    steps: dict[int, Counter[str]] = {}
    known: Counter[str] | None = None
    for start in sorted(ledger.iterdir()):
        for file in sorted(start.iterdir()):
            first, *updates = [json.loads(line) for line in file.read_text().splitlines()]
            known = known or Counter(first["pairs"])
            assert known == Counter(first["pairs"]), f"{file}: other pairs than at the first start"
            if file.name == "rank_0.jsonl":
                steps = {s: pairs for s, pairs in steps.items() if s <= first["first_step"]}
            for update in updates:
                assert update["step"] > first["first_step"], file
                steps.setdefault(update["step"], Counter()).update(update["pairs"])
    assert known is not None, f"{ledger} is empty"
    return steps, known


def check_ledger(ledger: Path, pairs_per_step: int) -> int:
    """Asserts that each epoch used each pair once; returns the number of pairs."""
    steps, known = used_pairs(ledger)
    assert set(known.values()) == {1}, "two training pairs have the same tokens"
    per_epoch = -(-len(known) // pairs_per_step)
    assert sorted(steps) == list(range(1, EPOCHS * per_epoch + 1))
    for epoch in range(EPOCHS):
        of_epoch = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        used = sum((steps[step] for step in of_epoch), Counter())
        assert used == known, {
            "epoch": epoch + 1,
            "lost": list((known - used).elements()),
            "used twice": list((used - known).elements()),
        }
    return len(known)


def largest_differences(one: Path, other: Path) -> tuple[float, float]:
    """The largest relative differences between two runs' losses and exported weights."""
    losses = [[line["loss"] for line in lines(run) if "loss" in line] for run in (one, other)]
    assert len(losses[0]) == len(losses[1])
    of_losses = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    (file,) = (one / "export").glob("*.safetensors")
    weights = safetensors.torch.load_file(other / "export" / file.name)
    of_weights = 0.0
    for name, tensor in safetensors.torch.load_file(file).items():
        norm = torch.linalg.vector_norm(tensor) + 1e-12
        of_weights = max(of_weights, float(torch.dist(tensor, weights[name]) / norm))
    return of_losses, of_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2, help="pairs per step")
    parser.add_argument("--lora", action="store_true")
    arguments = vars(parser.parse_args())
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = kill_on_other_ranks(Path(folder), **arguments)
        pairs = check_ledger(run.ledger, arguments["pairs"])
        of_losses, of_weights = largest_differences(run.whole, run.killed)
    print(
        f"{len(run.victims)} kills in {time.monotonic() - started:.0f} s, ranks of the starts: "
        f"{run.world_sizes}; victims: {dict(Counter(run.victims))}; each of {pairs} pairs once in "
        f"each of {EPOCHS} epochs; losses differ by {of_losses:.1e}, weights by {of_weights:.1e}"
    )


if __name__ == "__main__":
    main()
