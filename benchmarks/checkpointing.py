"""The cost of a checkpoint: the time training waits for it, written at once or in the background.

    python scripts/make_demo_model.py runs/models/smollm2-135m-instruct
    deepspeed --num_accelerators 2 benchmarks/checkpointing.py --config recipes/demo.yaml \\
      --lora none --optim.learning_rate 1e-5

Takes the arguments of `cpo_ds/train.py`. Both ways take turns on one engine: a save, then at least
one step, and more until the checkpoint is published. The page shows medians of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measures.environment import describe_environment

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Measures, prints a table and writes it with a JSON line per save."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5, help="saves of each way (5)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "checkpointing",
        help="results, OUT.md and OUT.jsonl (benchmarks/results/checkpointing)",
    )
    arguments, recipe = parser.parse_known_args()
    environment = describe_environment()
    launcher = f"deepspeed --num_accelerators {os.environ.get('WORLD_SIZE', '1')}"
    words = environment["command"].replace("python", launcher, 1).split()
    environment["command"] = " ".join(w for w in words if not w.startswith("--local_rank"))
    saves = _measure(recipe, arguments.repeats)
    if os.environ.get("RANK", "0") == "0":
        report = _report(saves, environment)
        print(report)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".md").write_text(report + "\n", encoding="utf-8")
        lines = [json.dumps(line) for line in [environment, *saves]]
        arguments.out.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measure(recipe: list[str], repeats: int) -> list[dict[str, Any]]:
    from cpo_ds.checkpoint.save import Saver
    from cpo_ds.engine.settings import read_deepspeed_settings
    from cpo_ds.ranks.quiet import silence_after_import, silence_libraries
    from cpo_ds.ranks.ranks import init_ranks
    from cpo_ds.recipe import load_config
    from cpo_ds.run.build import RunInputs, build_run
    from cpo_ds.run.pairs import prepare_pairs

    # Build the run as training does, in a temporary folder.
    silence_libraries()
    config, _ = load_config(recipe)
    settings = read_deepspeed_settings(config)
    ranks = init_ranks()
    silence_after_import()
    folder = Path(ranks.on_first(tempfile.mkdtemp))  # one for all ranks
    config = config.model_copy(update={"output_dir": str(folder)})
    pairs = prepare_pairs(config, prints_counts=False).train
    run = build_run(RunInputs(config, settings, ranks, pairs))
    # Steps without a save, to compare with.
    _timed_step(run)  # the first one makes buffers
    plain = [_timed_step(run) for _ in range(3)]
    # Both ways take turns; training goes on while a save is written.
    saves: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for background in (False, True):
            how = config.checkpoint.model_copy(update={"in_background": background})
            changed = config.model_copy(update={"checkpoint": how})
            saver = Saver(run.engine, ranks, changed, run.manifest, run.monitor.say)
            step = len(saves) + 1
            started = time.perf_counter()
            saver.save(step)
            waited = time.perf_counter() - started
            published = started + waited
            beside: list[float] = []
            while saver.is_pending or not beside:
                beside.append(_timed_step(run))
                (writing,) = ranks.any(saver.is_writing)
                if saver.is_pending and not writing:
                    saver.finish()
                    published = time.perf_counter()
            saved = folder / "checkpoints" / f"step-{step:08d}"
            saves.append(
                {
                    "in_background": background,
                    "repeat": repeat,
                    "bytes": sum(file.stat().st_size for file in saved.iterdir()),
                    "seconds_waited": waited,
                    "seconds_until_published": published - started,
                    "step_seconds_after": statistics.median(beside),
                    "step_seconds_alone": statistics.median(plain),
                    "ranks": ranks.world_size,
                }
            )
    run.monitor.close()
    ranks.on_first(lambda: shutil.rmtree(folder))
    return saves


def _timed_step(run: Any) -> float:
    """Seconds of an optimizer step, always over the same pairs."""
    from cpo_ds.losses import pair_terms, step_share
    from cpo_ds.run.trainer import plan

    started = time.perf_counter()
    batches, totals = plan(run, 1)
    for batch in batches:
        terms = pair_terms(run.engine.score(batch), run.config.loss)
        share = step_share(terms, totals, run.config.loss)
        run.engine.accumulate(share * float(batch.counted))
    run.engine.update(run.config.optim.learning_rate)
    return time.perf_counter() - started


def _report(saves: list[dict[str, Any]], environment: dict[str, str]) -> str:
    def median(background: bool, name: str) -> float:
        return statistics.median(s[name] for s in saves if s["in_background"] == background)

    rows = [
        f"| {'in the background' if background else 'at once'} "
        f"| {median(background, 'seconds_waited'):.2f} "
        f"| {median(background, 'seconds_until_published'):.2f} "
        f"| {median(background, 'step_seconds_after'):.2f} |"
        for background in (False, True)
    ]
    size = saves[0]["bytes"] / 2**30
    head = (
        f"A checkpoint of {size:.2f} GiB on {saves[0]['ranks']} rank(s); a step alone takes "
        f"{saves[0]['step_seconds_alone']:.2f} s; medians of {len(saves) // 2} saves each.\n\n"
        "| written | training waits, s | published after, s | a step meanwhile, s |\n"
        "|---|--:|--:|--:|"
    )
    facts = "\n".join(f"- {name}: {value}" for name, value in environment.items())
    return "\n".join([head, *rows, "", facts])


if __name__ == "__main__":
    main()
