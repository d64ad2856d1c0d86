"""Rounds of a tiny model, killed again and again at random moments, against undisturbed ones.

    python tests/support/rounds_runs.py --kills 20     # about five minutes on two cores

At a random moment all processes of the rounds get kill -9: the command, the stage that it carries
out, and the stage's own processes. The command is then given again, until it ends by itself. All
files that the stages publish must then hold the same bytes. If the rounds are over before the
wanted number of kills, they begin anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml
from helpers import save_tiny_model
from launch import Finished, Run, finish, start
from repository import ROOT
from runs import TIMED

COMMAND = [sys.executable, "-m", "cpo_ds.cli", "rounds"]
ROUNDS, STAGES = 2, 14
COMET_PYTHON = ROOT / ".venv-comet" / "bin" / "python"
# Not published: caches, consoles, times, and what only a resume reads.
_SCRATCH = r"(^|/)(lock|logs|times\.jsonl|template_date|checkpoints|[^/]+\.cache|run/pairs)(/|$)"


def metric(folder: Path, kind: str = "kiwi") -> Path:
    """A tiny random COMET model; it needs COMET's environment."""
    code = "import sys; from models.comet_models import make_models; make_models(*sys.argv[1:])"
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    subprocess.run(
        [COMET_PYTHON, "-c", code, folder, json.dumps(sizes), kind],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "PATH": "/usr/bin:/bin", **_ALONE},
        check=True,
        capture_output=True,
    )
    return folder / kind


_ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def texts(folder: Path) -> tuple[Path, Path]:
    """Files of sources and of watched texts, in two directions, from the built-in sample."""
    rows = []
    for direction in ("en-de", "de-en"):
        file = ROOT / "cpo_ds" / "data" / "sample" / f"{direction}.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            kept = {key: row[key] for key in ("language_pair", "source")}
            rows.append(kept | {"reference": row["chosen"]})
    rows = rows[::2]  # one language's sentences in one direction
    files = (folder / "sources.jsonl", folder / "watched.jsonl")
    for file, part in zip(files, (rows[:10], rows[10:18]), strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        file.write_text(text, encoding="utf-8")
    return files


def settings(folder: Path, select: str, **sections: Any) -> Path:
    """Writes a file for two rounds of a tiny model that `select` rewards; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_model(folder / "model")
    sources, watched = texts(folder)
    recipe = {
        "model": {"name_or_path": "set by the rounds", "dtype": "float32"},
        "data": {"format": "pairs", "path": "set by the rounds", "eval_fraction": 0.2},
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        "optim": {"learning_rate": 5e-3},
        "batch": {"pairs": 2, "tokens_per_rank": 1024},
        "train": {"epochs": 2},
        "checkpoint": {"every_steps": 1},
        "logging": {"tensorboard": False},
        "deepspeed": "zero2",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    values: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "rounds": ROUNDS,
        "policy": {"model": str(folder / "model")},
        "sources": {"path": str(sources), "per_round": 8},
        "sample": {"num": 4},
        "translate": {"dtype": "float32", "max_new_tokens": 12},
        "select": {"metrics": [select], "rejected": "all"},
        "train": {"recipe": str(folder / "recipe.yaml"), "gpus": 1},
        "watch": {
            "path": str(watched), "metrics": ["chrf"], "beams": 1, "stop_if_falls_by": "none",
        },
    }  # fmt: skip
    for name, changes in sections.items():
        values[name] = values[name] | changes if isinstance(changes, dict) else changes
    file = folder / "rounds.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def rounds(file: Path, *options: str) -> Finished:
    """Carries out the rounds."""
    return finish(start([*COMMAND, "--config", str(file), *options]), 1500)


def kill_all(run: Run) -> None:
    """Ends a command and everything below it at once, in whatever session it is."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(run.pid)  # type: ignore[union-attr]
        processes = [first, *first.children(recursive=True)]
        for process in processes:  # so that nobody starts another one meanwhile
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in [*processes, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def torture(file: Path, output: Path, kills: int, seed: int) -> list[str]:
    """Carries out rounds with so many kills at most; returns the stage that each of them met.

    Each kill has a stage to wait for, at random over all stages, and comes some seconds after it.
    """
    draw, met = random.Random(seed), list[str]()
    stages = sorted(draw.randint(0, STAGES) for _ in range(kills))
    while True:
        before = len(_logs(output))
        run = start([*COMMAND, "--config", str(file)])
        if len(met) < kills:
            while run.poll() is None and len(_logs(output)) < stages[len(met)]:
                time.sleep(0.002)
            deadline = time.monotonic() + draw.uniform(0, 8)
            while run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            if run.poll() is None:
                met.append(logs[-1].stem if (logs := _logs(output)) else "start")
                kill_all(run)
                finish(run, 60)
                continue
        done = finish(run, 1500)
        assert done.code == 0, done.output
        if len(met) >= kills or before == STAGES:
            return met


def _logs(output: Path) -> list[Path]:
    """The logs of stages, that of the newest stage last."""
    return sorted((output / "logs").glob("*.txt"), key=lambda path: path.stat().st_ctime_ns)


def published(output: Path) -> dict[str, bytes]:
    """The bytes of all files that stages publish, by name; without the times in two of them."""
    files = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.is_file() and not re.search(_SCRATCH, name):
            files[name] = _without_times(path)
    return files


def _without_times(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        kept = [{k: v for k, v in line.items() if k not in TIMED} for line in lines]
        return json.dumps(kept).encode()
    if path.name == "report.html":
        head, _, rest = content.partition(b'id="times"')
        return head + rest.partition(b"</section>")[2]
    return content


def differing(whole: dict[str, bytes], killed: dict[str, bytes]) -> list[str]:
    """The names of files that are not the same in both."""
    return [name for name in sorted(whole | killed) if whole.get(name) != killed.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = settings(folder, f"tiny={metric(folder / 'metrics')}")
        output = folder / "out"
        done = rounds(file)
        assert done.code == 0, done.output
        whole = published(output)
        shutil.move(output, folder / "whole")
        met, differ, times = list[str](), set[str](), 0
        while len(met) < arguments.kills:  # rounds may end before their last kills
            shutil.rmtree(output, ignore_errors=True)
            left = arguments.kills - len(met)
            met += torture(file, output, left, arguments.seed + times)
            differ |= {*differing(whole, published(output))}
            times += 1
    for stage, count in sorted(Counter(met).items()):
        print(f"  {count:3} x {stage}")
    print(
        f"{len(met)} kills of {times} times {ROUNDS} rounds in {time.monotonic() - started:.0f} s; "
        f"{len(whole)} published files "
        + (f"DIFFER: {', '.join(sorted(differ))}" if differ else "have the same bytes")
    )
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
