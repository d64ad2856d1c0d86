"""Scoring beside COMET's own command: translations a second and memory, on the same cores.

    bash scripts/setup.sh --comet
    python benchmarks/scoring.py                      # the built-in sample, a small random encoder
    python benchmarks/scoring.py --rows wmt22.jsonl --max-rows 200 --repeats 3
    python benchmarks/scoring.py --hidden-size 1024 --layers 24 --kinds kiwi --max-rows 10 \\
      --methods predict 1-rank 2-ranks-split --return-memory    # of a model worth splitting

Models have COMET's architecture and random weights. Each run is a fresh command with nothing
cached, its whole time counted, start-up and loading included; methods take turns. `comet-score`
computes in float16, COMET's function `predict` in float32, as this project does by default.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from jobs.command import at_least_one, run_and_render
from pages.results import Results, results_file

from cpo_ds.data.candidates import read_candidates
from cpo_ds.data.rows import SAMPLE
from cpo_ds.data.sources import read_folder
from cpo_ds.errors import UserError

BENCHMARK = "scoring"
ROOT = Path(__file__).resolve().parent.parent
COMET_MODELS = ROOT / "benchmarks" / "models" / "comet_models.py"
COMET = ROOT / ".venv-comet" / "bin"
KINDS = ("kiwi", "xcomet", "comet")
OURS = {"1-rank": (), "2-ranks": ("--ranks", "2"), "2-ranks-split": ("--ranks", "2", "--shard")}
METHODS = ("comet-score", "predict", *OURS)
GPUS = torch.cuda.device_count()
# Two ranks need two GPUs, or none.
POSSIBLE = tuple(method for method in METHODS if GPUS != 1 or not method.startswith("2-"))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for numbers below 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--rows", type=Path, help="rows with a reference and candidates (the built-in sample)")
    add("--max-rows", type=int, default=200, help="rows to score (200)")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="models (all)")
    add("--methods", nargs="+", choices=POSSIBLE, default=list(POSSIBLE), help="to run (all)")
    add("--hidden-size", type=int, default=384, help="of the encoder (384)")
    add("--layers", type=int, default=6, help="of the encoder (6)")
    add("--batch-tokens", type=int, default=4096, help="of cpo-ds (4096); COMET's batches are 16")
    add("--repeats", type=int, default=3, help="runs of each (3)")
    add(
        "--return-memory",
        action="store_true",
        help="return freed memory to the system at once: slower, but memory held is memory in use",
    )
    add("--out", type=Path, help="file of results")
    arguments = parser.parse_args(argv)
    numbers = ("max_rows", "hidden_size", "layers", "batch_tokens", "repeats")
    at_least_one(**{name: getattr(arguments, name) for name in numbers})
    return arguments


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_and_render("scoring", lambda folder: run_all(parse(argv), folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Runs every method on every model, taking turns."""
    if not COMET.is_dir():
        raise UserError("there is no .venv-comet; make it with bash scripts/setup.sh --comet.")
    # Rows and models, the same for all methods.
    rows = write_rows(arguments.rows, arguments.max_rows, folder)
    translations = sum(1 + len(row["candidates"]) for row in rows)
    sizes = {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.hidden_size // 64,
        "intermediate_size": 4 * arguments.hidden_size,
        "positions": 514,
    }
    make = [str(COMET / "python"), "-W", "ignore", str(COMET_MODELS)]
    timed([*make, "models", str(folder), json.dumps(sizes), *arguments.kinds])
    model = f"xlmr-{arguments.hidden_size}x{arguments.layers}"
    # The values that all lines share.
    shared: dict[str, Any] = {"benchmark": BENCHMARK, "model": model, "translations": translations}
    if arguments.return_memory:
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    shared["memory_returned"] = arguments.return_memory
    shared["batch_tokens"] = arguments.batch_tokens
    shared["data"] = "given rows" if arguments.rows else "built-in sample"
    results = Results(results_file(arguments.out, BENCHMARK, model), shared)
    # Methods take turns.
    for repeat in range(arguments.repeats):
        for kind in arguments.kinds:
            checkpoint = folder / kind / "checkpoints" / "model.ckpt"
            size = checkpoint.stat().st_size / 2**30
            for method in arguments.methods:
                print(f"repeat {repeat}: {kind}, {method}", flush=True)
                output = folder / f"{kind}-{method}-{repeat}.jsonl"
                command = command_of(method, kind, checkpoint, folder, rows, output)
                if method in OURS:
                    command += ["--batch-tokens", str(arguments.batch_tokens)]
                measured = timed(command, threads=1 if method.startswith("2-") else cores())
                line = {"kind": kind, "method": method, "repeat": repeat, "checkpoint_gib": size}
                results.add(line | measured)
    return results


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def write_rows(given: Path | None, most: int, folder: Path) -> list[dict[str, Any]]:
    """Writes rows with a reference and the same candidates in each, in files for all methods."""
    if given:
        rows = [row.values for row in read_candidates(str(given))[0][:most]]
    else:
        lines = [raw.values for raw in read_folder(SAMPLE, "sample") if raw]
        rows = [
            {
                "language_pair": line["language_pair"],
                "source": line["source"],
                "reference": line["chosen"],
                "candidates": {"flawed": line["rejected"]},
            }
            for line in lines[:most]
        ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"source": [row["source"] for row in rows]}
    texts |= {"reference": [row["reference"] for row in rows]}
    for name in rows[0]["candidates"]:
        texts[f"system-{name}"] = [row["candidates"][name] for row in rows]
    for name, column in texts.items():
        text_lines = "\n".join(" ".join(text.split()) for text in column)
        (folder / f"{name}.txt").write_text(text_lines + "\n", encoding="utf-8")
    return rows


def command_of(
    method: str, kind: str, checkpoint: Path, folder: Path, rows: list[Any], output: Path
) -> list[str]:
    """Returns the command that scores all translations, the references too, by one method."""
    with_reference = kind == "comet"
    # COMET's own function and command.
    if method == "predict":
        script = [str(COMET / "python"), "-W", "ignore", str(COMET_MODELS)]
        names = [str(folder), str(folder / "rows.jsonl"), str(output)]
        return [*script, "predict", *names, kind + "+" * with_reference]
    if method == "comet-score":
        systems = [f"system-{name}" for name in rows[0]["candidates"]]
        files = [str(folder / f"{name}.txt") for name in ("reference", *systems)]
        command = [str(COMET / "comet-score"), "-s", str(folder / "source.txt"), "-t", *files]
        command += ["-r", str(folder / "reference.txt")] if with_reference else []
        return [
            *command,
            "--model",
            str(checkpoint),
            "--gpus",
            str(min(1, GPUS)),
            "--quiet",
            "--only_system",
        ]
    # This project's command.
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "score"]
    command += ["--input", str(folder / "rows.jsonl"), "--output", str(output)]
    return [*command, "--metric", f"{kind}={checkpoint}", *OURS[method]]


def timed(command: list[str], threads: int = 1) -> dict[str, Any]:
    """Runs a command; returns its seconds and the largest memory of one of its processes, in GiB.

    Raises `UserError` with its output if it fails.
    """
    # Start the command, and look at the memory of its processes ten times a second.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    peaks: dict[str, float] = {"own_gib": 0.0, "resident_gib": 0.0}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        cwd=ROOT,
    ) as process:  # fmt: skip
        try:
            while True:
                for key, value in memory_of(process.pid).items():
                    peaks[key] = max(peaks[key], value)
                try:
                    output, _ = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{output[-2000:]}")
    return {"seconds": time.monotonic() - began, "threads": threads} | peaks


def memory_of(pid: int) -> dict[str, float]:
    """The largest process of a tree, in GiB: its own memory, and with pages of mapped files."""
    largest = {"own_gib": 0.0, "resident_gib": 0.0}
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return largest
    for process in tree:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        largest["resident_gib"] = max(largest["resident_gib"], memory.rss / 2**30)
        largest["own_gib"] = max(largest["own_gib"], (memory.rss - memory.shared) / 2**30)
    return largest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
