"""Kills a run again and again at random moments, and compares it with an undisturbed run.

    python tests/support/torture.py --kills 30            # about ten minutes on two cores
    python tests/support/torture.py --kills 30 --lora --background --seed 1

Each start of the killed run goes through the real launcher; the test's ranks have none, so that
they start at once. At a random moment, from the imports on, a random rank or the launcher with all
ranks gets kill -9; most moments are drawn while a checkpoint is being saved. The command is then
given again, until the run ends by itself after the wanted number of kills.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from launch import Run, deepspeed_command, finish, kill, main_on_ranks, start, start_ranks
from runs import LORA, lines, rank_processes, small_recipe

RANKS = 2


@dataclass(frozen=True)
class Kill:
    """One kill: its victim and its moment."""

    victim: str
    moment: str
    step: int  # the newest one logged, 0 before the first


def torture(
    folder: Path,
    kills: int,
    seed: int,
    *,
    steps: int,
    lora: bool,
    background: bool,
    by_launcher: bool = True,
) -> tuple[list[Kill], Path, Path]:
    """Runs until `kills` kills were made and the run ended; returns them and both folders."""
    recipe = small_recipe(
        folder,
        train={"max_steps": steps, "epochs": 1 + steps // 10},
        checkpoint={"every_steps": 1, "in_background": background},
        lora=LORA if lora else None,
    )
    whole, killed = folder / "whole", folder / "killed"
    for done in main_on_ranks("--config", recipe, "--output_dir", whole, ranks=RANKS):
        assert done.code == 0, done.output
    draw, made = random.Random(seed), []
    while True:
        options = ("--config", recipe, "--output_dir", killed)
        run = start(deepspeed_command(*options)) if by_launcher else start_ranks(*options)
        if len(made) < kills:
            made += kill_somewhere(run, killed, draw, 12 if by_launcher else 2)
        done = finish(run, patience=1)  # as long as a launcher waits
        if done.code == 0 and len(made) >= kills:
            return made, whole, killed
        # A run that was not killed in time ended; one that was has a code of a fault.
        assert "cpo_ds: error" not in done.output, done.output


def kill_somewhere(run: Run, output: Path, draw: random.Random, start_seconds: float) -> list[Kill]:
    """Kills a rank or all of a run; returns the kill, or none if the run was over before."""
    moment = draw.choice(["saving", "saving", "saving", "training", "starting"])
    progress = _logged(output)
    if moment == "starting":
        _wait(run, lambda: False, draw.uniform(0, start_seconds))
    else:
        advance = draw.randint(1, 3)
        _wait(run, lambda: _logged(output) >= progress + advance, 120)
        if moment == "saving":
            _wait(run, lambda: any((output / "checkpoints").glob("tmp-*")), 20)
            time.sleep(draw.choice([0, 0, 0.001, 0.003, 0.01]))
        else:
            time.sleep(draw.uniform(0, 0.3))
    if run.poll() is not None:
        return []
    ranks = rank_processes(run)
    victim = draw.choice([*sorted(ranks), "all"])
    if moment == "saving" and not any((output / "checkpoints").glob("tmp-*")):
        moment = "just after saving"
    try:
        kill(run) if victim == "all" else ranks[victim].kill()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return []
    return [Kill("the launcher and all ranks" if victim == "all" else f"rank {victim}", moment,
                 _logged(output))]  # fmt: skip


def _wait(run: Run, happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < deadline and not happened():
        time.sleep(0.0005)


def _logged(output: Path) -> int:
    try:
        return max((line["step"] for line in lines(output)), default=0)
    except (OSError, ValueError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--background", action="store_true")
    arguments = vars(parser.parse_args())
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made, whole, killed = torture(Path(folder), **arguments)
        same = lines(whole) == lines(killed)
    for (moment, victim), count in sorted(Counter((k.moment, k.victim) for k in made).items()):
        print(f"  {count:3} x {victim}, {moment}")
    print(
        f"{len(made)} kills in {time.monotonic() - started:.0f} s; metrics "
        + ("equal line for line" if same else "DIFFER")
    )
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
