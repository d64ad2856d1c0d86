"""One rank of a run that `planner_check.py` measures; rank 0 writes the memory to measured.json."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from measures.probe import memory_now, memory_peak, reset_peak

MIB = 2**20
PREFIX, BRANCH = 100, 60  # tokens


def lengths_of(rejected: int) -> tuple[int, ...]:
    """Tokens of a row: its prefix, the chosen completion, and each rejected one."""
    return PREFIX, *(BRANCH,) * (1 + rejected)


def configuration(task: dict[str, Any], model: str, folder: str) -> Any:
    """The recipe of a case: two steps of two micro-batches."""
    from cpo_ds.recipe import parse_config

    values: dict[str, Any] = {
        "model": {
            "name_or_path": model,
            "dtype": task["dtype"],
            "gradient_checkpointing": task["gradient_checkpointing"],
        },
        "data": {"format": "sample"},
        "lora": {"rank": 16} if task["training"] == "lora" else None,
        "optim": {"states": task["states"]},
        "batch": {
            "pairs": 2 * task["pairs"] * task["ranks"],
            "tokens_per_rank": task["pairs"] * sum(lengths_of(task["rejected"])),
        },
        "train": {"max_steps": 2},
        "logging": {"tensorboard": False},
        "deepspeed": f"ds_configs/zero{task['stage']}.json",
        "output_dir": folder,
    }
    return parse_config(values, "planner_check")


def main(task: dict[str, Any]) -> None:
    """Trains two steps and measures them; rank 0 writes."""
    from cpo_ds.engine.settings import read_deepspeed_settings
    from cpo_ds.ranks.quiet import silence_after_import, silence_libraries
    from cpo_ds.ranks.ranks import init_ranks
    from cpo_ds.run.build import RunInputs, build_run

    silence_libraries()
    ranks = init_ranks()
    silence_after_import()
    # Build the run on random weights.
    folder = Path(task["folder"])
    config = configuration(task, str(folder / "model"), str(folder / "run"))
    ranks.on_first(lambda: _save_random_model(task["shape"], task["dtype"], folder / "model"))
    pairs = _pairs(2 * config.batch.pairs, lengths_of(task["rejected"]))
    run = build_run(RunInputs(config, read_deepspeed_settings(config), ranks, pairs))
    # The first step fills all buffers; the second one is measured.
    held, _ = _step(run, 1)
    on_gpu = ranks.device.type == "cuda"
    baseline = 0.0 if on_gpu else memory_now() * 1024 - held
    reset_peak()
    rest, before = _step(run, 2)
    if ranks.rank == 0:
        measured = {
            "on_gpu": on_gpu,
            "at_rest_mib": rest,
            "before_update_mib": before,
            "total_mib": memory_peak() * 1024,
            "baseline_mib": baseline,
        }
        (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")
    run.monitor.close()
    torch.distributed.barrier(group=ranks.control)
    torch.distributed.destroy_process_group()


def _save_random_model(shape: str, dtype: str, folder: Path) -> None:
    """Writes the model in a process of its own, which leaves no memory behind."""
    script = (
        "import sys, torch, transformers\n"
        "from cpo_ds.model.shapes import shape_config\n"
        "dtype = getattr(torch, sys.argv[2])\n"
        "config = shape_config(sys.argv[1])\n"
        "model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)\n"
        "model.save_pretrained(sys.argv[3])\n"
    )
    command = [sys.executable, "-c", script, shape, dtype, str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _pairs(count: int, lengths: tuple[int, ...]) -> list[Any]:
    import numpy as np

    from cpo_ds.schema import TokenizedPair

    prefix, *branches = lengths
    starts = (prefix,) * len(branches)
    tokens = np.random.default_rng(0).integers(3, 500, (count, sum(lengths)), dtype=np.int32)
    return [
        TokenizedPair(row, prefix, tuple(branches), starts, "", str(number))
        for number, row in enumerate(tokens)
    ]


def _step(run: Any, number: int) -> tuple[float, float]:
    """Trains a step; returns MiB of model states after it and before its update."""
    from cpo_ds.losses import pair_terms, step_share
    from cpo_ds.run.trainer import plan

    batches, totals = plan(run, number)
    assert len(batches) == 2
    for batch in batches:
        terms = pair_terms(run.engine.score(batch), run.config.loss)
        run.engine.accumulate(step_share(terms, totals, run.config.loss))
    inputs = sum(_storages([vars(batch) for batch in batches]).values())
    del terms, batch
    before = _held_mib(run) - inputs / MIB
    run.engine.update(run.config.optim.learning_rate)
    return _held_mib(run) - inputs / MIB, before


def _held_mib(run: Any) -> float:
    """MiB of all storages that any tensor in this process refers to."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    tensors += [p.grad for p in run.engine.policy.parameters() if p.grad is not None]
    return sum(_storages(tensors).values()) / MIB


def _storages(values: Any) -> dict[int, int]:
    """Bytes of storages by address; tensors without data, as on the meta device, have none."""
    from torch.utils._pytree import tree_leaves

    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    real = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return {storage.data_ptr(): storage.nbytes() for storage in real}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
