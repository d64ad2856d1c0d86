"""Time to N steps under failures: a supervised run that is killed by a fixed schedule.

    python scripts/make_demo_model.py runs/models/smollm2-135m-instruct
    python benchmarks/failures.py --steps 200 --kill-minutes 2 --intervals 10 30 --background 10

Each run starts the same command anew, in a folder of its own, under scripts/supervise.sh. The first
one is undisturbed and saves its last step only. In the others a rank, the launcher and all
processes of the host are killed in turns, at fixed times; they save by checkpoint.every_minutes, in
the foreground or in the background. Other arguments are settings of the recipe. Writes a line for
each run to OUT.jsonl, then OUT.md and a chart beside it. If a start failed without a kill, the
command says so and ends with 1; the page is written all the same.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs.command import add_model, at_least_one, check_model, run_and_render, set_threads
from jobs.kills import VICTIMS, schedule
from jobs.processes import free_port, module_environment
from jobs.supervised import Supervised, run_supervised
from measures.restarts import kill_report, save_seconds, step_gaps, unplanned_restarts
from pages.failures import problems
from pages.results import ROOT, Results, lines_to_keep, read_lines, results_file

from cpo_ds.errors import UserError

BENCHMARK = "failures"
_FAILED = 1


@dataclass(frozen=True)
class Way:
    """How a run saves its checkpoints, and whether it is killed."""

    interval: float | None  # seconds between two checkpoints; None: only the last step
    background: bool
    is_killed: bool

    def __str__(self) -> str:
        if self.interval is None:
            return "undisturbed" if not self.is_killed else "without checkpoints"
        return f"every {self.interval:g} s in the {'back' if self.background else 'fore'}ground"


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code: 1 if a run failed by itself or left a process."""
    written: list[Path] = []

    def run(folder: Path) -> Results:
        arguments, recipe = parse(argv)
        results = run_all(arguments, recipe, folder)
        written.append(results.file)
        return results

    code = run_and_render("failures", run)
    for text in problems(read_lines(written[0])) if code == 0 else ():
        print(f"failures: {text}", file=sys.stderr)
        code = _FAILED
    return code


def run_all(arguments: argparse.Namespace, recipe: list[str], folder: Path) -> Results:
    """Makes one run after the other; a line each is written as soon as it has ended."""
    shared = {
        "benchmark": BENCHMARK,
        "model": arguments.name,
        "ranks": arguments.ranks,
        "steps": arguments.steps,
        "kill_seconds": 60 * arguments.kill_minutes,
        "victims": arguments.victims,
        "pause": arguments.pause,
        "settings": recipe,
        "threads": arguments.threads,
    }
    kept = lines_to_keep(arguments.out, shared) if arguments.add else []
    results = Results(arguments.out, shared, kept)
    ways = [Way(None, background=False, is_killed=False)]
    ways += [Way(seconds, background=False, is_killed=True) for seconds in arguments.intervals]
    ways += [Way(seconds, background=True, is_killed=True) for seconds in arguments.background]
    made = [Way(line["interval"], line["background"], line["killed"]) for line in kept]
    for number, way in enumerate(way for way in ways if way not in made):
        print(f"{way} ...", flush=True)
        output = folder / str(number)
        done = start(way, arguments, recipe, output)
        line = results.add({"interval": way.interval, "background": way.background,
                            "killed": way.is_killed} | measured(done, arguments.steps))  # fmt: skip
        print(summary(line), flush=True)
        shutil.rmtree(output, ignore_errors=True)
    return results


def start(way: Way, arguments: argparse.Namespace, recipe: list[str], output: Path) -> Supervised:
    """Makes a run, from its first start to its end."""
    minutes = "none" if way.interval is None else f"{way.interval / 60:.6g}"
    settings = {
        "model.name_or_path": arguments.model,
        "output_dir": output,
        "train.max_steps": arguments.steps,
        "train.epochs": arguments.steps,  # enough: an epoch has at least one step
        "checkpoint.every_steps": "none",
        "checkpoint.every_minutes": minutes,
        "checkpoint.in_background": str(way.background).lower(),
        "checkpoint.export": "false",
        "checkpoint.resume": "auto",
        "logging.every_steps": 1,
    }
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q"]
    launcher += ["--num_accelerators", str(arguments.ranks), "--master_port", str(free_port())]
    command = [*launcher, str(ROOT / "cpo_ds" / "train.py"), "--config", arguments.config, *recipe]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    kills = schedule(60 * arguments.kill_minutes, arguments.ranks, tuple(arguments.victims))
    return run_supervised(
        command,
        output,
        kills if way.is_killed else iter(()),
        script=ROOT / "scripts" / "supervise.sh",
        pause=arguments.pause,
        timeout=60 * arguments.timeout_minutes,
        environment=module_environment(),
    )


def measured(done: Supervised, steps: int) -> dict[str, Any]:
    """A run's figures, with `error` if it did not come to its last step."""
    shown = {event.text.split()[1] for event in done.events if event.text.startswith("step ")}
    gaps, saves = step_gaps(done.events), save_seconds(done.events)
    line: dict[str, Any] = {
        "seconds": round(done.seconds, 2),
        "step_seconds": round(median(gaps), 3) if gaps else None,
        "saves": len(saves),
        "save_seconds": round(median(saves), 2) if saves else None,
        "kills": kill_report(done.events),
        "unplanned_restarts": unplanned_restarts(done.events),
        "processes_left": len(done.left),
    }
    if done.code != 0 or f"{steps}/{steps}" not in shown:
        reason = "not done in time (--timeout-minutes)" if done.code is None else (
            f"it ended with exit code {done.code}")  # fmt: skip
        last = "\n".join(done.output.strip().splitlines()[-15:])
        line["error"] = f"{reason}; it printed last:\n{last}"
    return line


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    if "error" in line:
        return f"  failed: {line['error']}"
    return f"  {line['seconds']:.0f} s, {len(line['kills'])} kills, {line['saves']} checkpoints"


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and settings of the recipe. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=200, help="optimizer steps of a run (200)")
    add("--kill-minutes", type=float, default=2.0, help="between two kills (2)")
    add("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="in turns (all)")
    add("--intervals", nargs="*", type=float, default=[10.0, 30.0], metavar="SECONDS",
        help="between checkpoints in the foreground, a run each (10 30)")  # fmt: skip
    add("--background", nargs="*", type=float, default=[10.0], metavar="SECONDS",
        help="between checkpoints in the background, a run each (10)")  # fmt: skip
    add("--ranks", type=int, default=2, help="ranks, all on this host (2)")
    add("--pause", type=int, help="of supervise.sh, in seconds (its own default)")
    add_model(parser)
    add("--threads", type=int, default=1, help="CPU threads of each rank (1)")
    add("--timeout-minutes", type=float, default=60.0, help="longest time of a run (60)")
    add("--add", action="store_true", help="keep the runs that OUT.jsonl has, and make the others")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/failures_MODEL_DEVICE.jsonl)")  # fmt: skip
    arguments, recipe = parser.parse_known_args(argv)
    # Check the numbers, then fill in names.
    at_least_one(steps=arguments.steps, ranks=arguments.ranks, threads=arguments.threads)
    seconds = [*arguments.intervals, *arguments.background, arguments.kill_minutes]
    if not all(value > 0 and math.isfinite(value) for value in seconds):
        raise UserError("--intervals, --background and --kill-minutes must be above 0.")
    check_model(arguments)
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.name)
    set_threads(arguments.threads)
    return arguments, recipe


if __name__ == "__main__":
    os.chdir(ROOT)  # the recipe names its files from there
    # By an exception, so that a benchmark that is stopped leaves no process of a run behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
