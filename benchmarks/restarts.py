"""The data phase of a first and of a second start: its time, and the peak memory of each rank.

    python scripts/make_demo_model.py runs/models/smollm2-135m-instruct
    python benchmarks/restarts.py --rows 200000 --ranks 2

Rows are in the schema of X-ALMA-Preference, made of the built-in sample's sentences, with the
lengths of WMT22: X-ALMA-Preference has 771785 rows. The data phase is everything from joined ranks
to pairs that can be planned: rows read and tokenized or their file found, fingerprints, lengths.
Each rank then packs some steps. No model is loaded; peak memory is that of a rank's process, with
its libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measures.environment import describe_environment

ROOT = Path(__file__).resolve().parent
SAMPLE = ROOT.parent / "cpo_ds" / "data" / "sample"


def main() -> None:
    """Writes rows, starts the ranks twice, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=200_000, help="rows to make (200000)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks (2)")
    parser.add_argument(
        "--model", default="runs/models/smollm2-135m-instruct", help="a tokenizer's"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/restarts"), help="for all files")
    parser.add_argument("--eval-fraction", type=float, default=0.01, help="share held out (0.01)")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure(arguments)
        return
    data = arguments.folder / f"x-alma-{arguments.rows}.jsonl"
    if not data.exists():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        write_rows(data, arguments.rows)
    shutil.rmtree(arguments.folder / "run", ignore_errors=True)
    for name, value in describe_environment().items():
        print(f"{name}: {value}")
    print(f"{arguments.rows} rows, {data.stat().st_size / 2**20:.0f} MiB")
    for start in ("first", "second"):
        for line in run_ranks(arguments):
            print(f"{start} start, rank {line.pop('rank')}: " + json.dumps(line))


def write_rows(path: Path, count: int) -> None:
    """Writes rows of the sample's sentences, as many in a row as WMT22's lengths ask for."""
    rng = random.Random(0)
    lines = [
        json.loads(line)
        for file in sorted(SAMPLE.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    by_direction: dict[str, list[tuple[str, str, str]]] = {}
    for row in lines:
        texts = (row["source"], row["chosen"], row["rejected"])
        by_direction.setdefault(row["language_pair"], []).append(texts)
    directions = sorted(by_direction)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            direction = rng.choice(directions)
            # One to six sentences; a number, so that no two rows are the same.
            parts = rng.choices(by_direction[direction], k=rng.choice((1, 1, 2, 2, 3, 6)))
            source, chosen, rejected = (" ".join(texts) for texts in zip(*parts, strict=True))
            row = {"source": f"{source} {number}", "chosen": f"{chosen} {number}"}
            row |= {"reject": f"{rejected} {number}", "directions": direction}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def run_ranks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts all ranks on this host; returns what each of them measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    master |= {"WORLD_SIZE": str(arguments.ranks), "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--rank", str(rank)],
            env=os.environ | master | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(arguments.ranks)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    print("".join(line for line in outputs[0].splitlines(keepends=True) if line[:1] != "{"))
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure(arguments: argparse.Namespace) -> None:
    """Runs the data phase as one of the ranks, and prints its time and memory as JSON."""
    from cpo_ds.ranks.quiet import silence_after_import, silence_libraries
    from cpo_ds.ranks.ranks import init_ranks
    from cpo_ds.recipe import parse_config
    from cpo_ds.run.build import run_identity
    from cpo_ds.run.pair_sharing import load_pairs

    silence_libraries()
    ranks = init_ranks()
    silence_after_import()
    data = arguments.folder / f"x-alma-{arguments.rows}.jsonl"
    values = {
        "model": {"name_or_path": arguments.model},
        "data": {"format": "x-alma", "path": str(data), "eval_fraction": arguments.eval_fraction},
        "output_dir": str(arguments.folder / "run"),
    }
    config = parse_config(values, "benchmark")
    ranks.wait_for_all()
    before, busy, started = _memory("VmRSS"), _busy(), time.perf_counter()
    _, train, held_out, _ = load_pairs(config, ranks, is_local=False)
    ranks.on_first(lambda: run_identity(config, train))
    prepared, busy = time.perf_counter() - started, _busy() - busy
    _pack_steps(train, config, ranks)
    helpers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    line = {
        "rank": ranks.rank,
        "data phase, s": round(prepared, 1),
        "of all cores, s": round(busy, 1),
        "memory before, GiB": round(before, 2),
        "peak memory, GiB": round(_memory("VmHWM"), 2),
        "of this not in files, GiB": round(_memory("RssAnon"), 2),
        "largest helper, GiB": round(helpers, 2),
        "pairs": [len(train), len(held_out)],
    }
    print(json.dumps(line))


def _pack_steps(train: Any, config: Any, ranks: Any) -> None:
    """Plans and packs some steps, as training does."""
    from types import SimpleNamespace

    from cpo_ds.run import trainer

    lengths = trainer.Run.lengths.func(SimpleNamespace(train_pairs=train))  # type: ignore[attr-defined]
    run: Any = SimpleNamespace(train_pairs=train, config=config, ranks=ranks, lengths=lengths)
    for step in range(1, 101):
        trainer.plan(run, step)


def _busy() -> float:
    """Seconds of all cores that this process and its helpers have taken."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def _memory(name: str) -> float:
    """A line of this process's status in GiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**20
    return 0.0


if __name__ == "__main__":
    main()
