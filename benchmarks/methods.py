"""SFT, DPO, CPO, CPO without NLL and CPO with noised rejected texts, on the same pairs.

    python scripts/make_demo_model.py runs/models/smollm2-135m-instruct
    python benchmarks/methods.py --pairs pairs/pairs.jsonl --test test.jsonl

Each method is trained with each seed, translates the test rows, and is evaluated against the model
before training, all by commands of cpo_ds. Pairs are those that `cpo-ds prepare select` writes;
test rows have sources, directions and references, and must not be in the pairs. Other arguments
are settings of the recipe, the same for all methods. Writes a line for each run to OUT.jsonl, then
OUT.md and a chart beside it. `--add` goes on after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.command import add_model, at_least_one, check_model, run_and_render, set_threads
from jobs.method_run import (
    BASE,
    METHODS,
    FailedCommand,
    evaluate_command,
    guard_options,
    noise_command,
    objective_settings,
    read_evaluation,
    run_command,
    train_command,
    translate_command,
)
from jobs.processes import free_port
from pages.results import ROOT, Results, lines_to_keep, results_file

from cpo_ds.errors import UserError

BENCHMARK = "methods"


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""

    def run(_: Path) -> Results:
        arguments, recipe = parse(argv)
        return run_all(arguments, recipe)

    return run_and_render(BENCHMARK, run)


def run_all(arguments: argparse.Namespace, recipe: list[str]) -> Results:
    """Makes one run after the other; a line each is written as soon as it has ended."""
    shared = {
        "benchmark": BENCHMARK,
        "model": arguments.name,
        "pairs": described(arguments.pairs),
        "test": described(arguments.test),
        "metrics": arguments.metrics,
        "selected_by_option": arguments.selected_by,
        "decoding": decoding_options(arguments),
        "config": arguments.config,
        "settings": recipe,
        "ranks": arguments.ranks,
    }
    kept = lines_to_keep(arguments.out, shared) if arguments.add else []
    if not (arguments.work / f"{BASE}.jsonl").is_file():  # other runs need its translations
        kept = [line for line in kept if line["method"] != BASE]
    results = Results(arguments.out, shared, kept)
    made = {(line["method"], line["seed"]) for line in kept}
    for method, seed in runs_of(arguments.methods, arguments.seeds):
        if (method, seed) in made:
            continue
        print(f"{run_name(method, seed)} ...", flush=True)
        try:
            measured = measure(method, seed, arguments, recipe)
        except FailedCommand as error:
            if method == BASE:
                raise UserError(f"the model before training: {error}") from None
            measured = {"error": str(error)}
        line = results.add({"method": method, "seed": seed} | measured)
        print(f"  {summary(line)}", flush=True)
    return results


def runs_of(methods: list[str], seeds: int) -> Iterator[tuple[str, int | None]]:
    """The runs in order: the base, then all methods by the first seed, by the second, and so on."""
    yield BASE, None
    for seed in range(1, seeds + 1):
        for method in methods:
            yield method, seed


def run_name(method: str, seed: int | None) -> str:
    """A run's name in files and on the terminal."""
    return method if seed is None else f"{method}-{seed}"


def measure(
    method: str, seed: int | None, arguments: argparse.Namespace, recipe: list[str]
) -> dict[str, Any]:
    """Trains, translates and evaluates; returns the run's figures. Raises `FailedCommand`."""
    work, name = arguments.work, run_name(method, seed)
    timeout = 60 * arguments.timeout_minutes
    folder = work / "runs" / name

    def call(step: str, command: list[str]) -> float:
        return round(run_command(command, work / "logs" / f"{name}-{step}.txt", timeout), 1)

    # Train, unless it is the base.
    seconds: dict[str, float] = {}
    model, rows, guard = Path(arguments.model), arguments.test, []
    if seed is not None:
        pairs = arguments.pairs
        if METHODS[method].is_noised:
            pairs = work / "noised.jsonl"
            seconds["noise"] = call("noise", noise_command(arguments.pairs, pairs))
        settings = settings_of(method, seed, arguments.model, pairs, folder)
        command = train_command(arguments.config, settings, recipe, arguments.ranks, free_port())
        seconds["train"] = call("train", command)
        model, rows = folder, work / f"{BASE}.jsonl"
        guard = guard_options(method, folder, arguments.selected_by)

    # Translate and evaluate; the base's translations stand in the rows of every other run.
    output, report = work / f"{name}.jsonl", work / f"{name}-scores.json"
    options = decoding_options(arguments)
    seconds["translate"] = call(
        "translate", translate_command(model, rows, output, method, options)
    )
    seconds["evaluate"] = call(
        "evaluate", evaluate_command(output, report, arguments.metrics, method, guard)
    )
    evaluation = read_evaluation(report, method)
    shutil.rmtree(folder, ignore_errors=True)  # the checkpoints are large; texts are kept
    return {"seconds": seconds} | evaluation


def settings_of(
    method: str, seed: int, model: object, pairs: Path, folder: Path
) -> dict[str, object]:
    """The settings of a run that differ from the recipe's."""
    return {
        "model.name_or_path": model,
        "data.format": "pairs",
        "data.path": pairs.resolve(),
        **objective_settings(method),
        "train.seed": seed,
        "checkpoint.export": "true",  # which is translated by
        "checkpoint.resume": "auto",
        "output_dir": folder,
    }


def decoding_options(arguments: argparse.Namespace) -> list[str]:
    """The options of `cpo-ds translate` for all systems."""
    options = ["--beam", str(arguments.beam), "--max-new-tokens", str(arguments.max_new_tokens)]
    if arguments.prompt:
        options += ["--prompt", arguments.prompt]
    return [*options, "--dtype", arguments.dtype, "--ranks", str(arguments.ranks)]


def described(file: Path) -> dict[str, Any]:
    """A file's name, number of lines and checksum, by which `--add` knows it again."""
    content = file.read_bytes()
    return {
        "name": file.name,
        "lines": len(content.splitlines()),
        "sha256": hashlib.sha256(content).hexdigest()[:16],
    }


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal: times, and scores over all directions."""
    if "error" in line:
        return f"failed: {line['error']}"
    times = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in line["seconds"].items())
    scores = [
        f"{result['metric']} {result['score']:.2f}"
        for result in line["results"]
        if result["language_pair"] == "all"
    ]
    return f"{times}; {', '.join(scores)}"


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and settings of the recipe. Raises `UserError` for bad values."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", type=Path, required=True, metavar="PAIRS.jsonl", help="pairs to train on")
    add("--test", type=Path, required=True, metavar="ROWS.jsonl", help="held-out rows")
    add("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), help="(all)")
    add("--seeds", type=int, default=3, help="runs of each method, by seeds 1, 2, ... (3)")
    add("--metric", action="append", dest="metrics", metavar="NAME",
        help="of cpo-ds evaluate; repeat the option for more (bleu, chrf)")  # fmt: skip
    add("--selected-by", metavar="METRICS",
        help="metrics that selected the pairs, joined by +, if the pairs do not say")  # fmt: skip
    add("--beam", type=int, default=5, help="beams; 1: greedy (5)")
    add("--max-new-tokens", type=int, default=256, help="most tokens of a translation (256)")
    add("--prompt", choices=("alma", "chat"), help="(alma)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="precision of translating (float32)")  # fmt: skip
    add("--ranks", type=int, default=1, help="ranks, all on this host (1)")
    add("--threads", type=int, default=1, help="CPU threads of each rank (1)")
    add_model(parser)
    add("--work", type=Path, metavar="FOLDER",
        help="keeps translations, scores and logs (runs/methods/NAME)")  # fmt: skip
    add("--timeout-minutes", type=float, default=600.0, help="longest time of a command (600)")
    add("--add", action="store_true", help="keep the runs that OUT.jsonl has, and make the others")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/methods_MODEL_DEVICE.jsonl)")  # fmt: skip
    arguments, recipe = parser.parse_known_args(argv)
    _complete(arguments)
    return arguments, recipe


def _complete(arguments: argparse.Namespace) -> None:
    """Checks the values and fills in those that follow from others. Raises `UserError`."""
    names = ("seeds", "beam", "max_new_tokens", "ranks", "threads")
    at_least_one(**{name: getattr(arguments, name) for name in names})
    for option in ("pairs", "test"):
        if not (path := getattr(arguments, option)).is_file():
            raise UserError(f"--{option}: there is no file {path}.")
    if arguments.pairs.resolve() == arguments.test.resolve():
        raise UserError("--pairs and --test are one file; hold the test rows out.")
    check_model(arguments)
    arguments.metrics = arguments.metrics or ["bleu", "chrf"]
    arguments.work = arguments.work or ROOT / "runs" / "methods" / arguments.name
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.name)
    set_threads(arguments.threads)


if __name__ == "__main__":
    os.chdir(ROOT)  # the recipe names its files from there
    # By an exception, so that a benchmark that is stopped leaves no process of a run behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
