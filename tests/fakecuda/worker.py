"""Runs cases in a process of its own, since the guard must be loaded before torch.

    python worker.py CASES

CASES is a file of JSON: a list of cases (see `Case`). A line of JSON is printed for each.
"""

from __future__ import annotations

import guard

guard.load(guard.build())

# ruff: noqa: E402
import json
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fake_policy
import faults
import numpy as np
from flash_stand_in import NEWEST, install, record_torch
from helpers import random_pair, save_tiny_model

from cpo_ds.data.tokenize import make_pair
from cpo_ds.model.policy import PolicyModel
from cpo_ds.recipe import parse_config
from cpo_ds.schema import TokenizedPair


@dataclass
class Case:
    """A configuration, the flash kernels that can be imported, and one of `faults.CHANGES`."""

    backend: str
    training: str = "lora"
    dtype: str = "bfloat16"
    recomputes: bool = False
    versions: tuple[str, ...] = tuple(NEWEST.values())
    change: str | None = None
    loss: str = "cpo"
    score_margin: float = 0.0


def settings(case: Case, model: Path) -> Any:
    """The recipe of a case."""
    values: dict[str, Any] = {
        "model": {
            "name_or_path": str(model),
            "dtype": case.dtype,
            "attention": case.backend,
            "gradient_checkpointing": case.recomputes,
            "head_chunk_tokens": 16,
        },
        "data": {"format": "pairs", "path": "pairs.jsonl"},  # which is not read
        "loss": {"name": case.loss, "score_margin": case.score_margin},
    }
    if case.training == "lora":
        values["lora"] = {"rank": 4, "dropout": 0.05, "target_modules": ["down_proj"]}
    return parse_config(values, "test")


def pairs() -> list[TokenizedPair]:
    """Pairs of several lengths with scores, one of them with three rejected completions."""
    rng = np.random.RandomState(0)
    texts = [([1, 5, 9, *rng.randint(3, 99, length).tolist(), 2], 2) for length in (4, 7, 1, 3)]
    many = make_pair(*texts, direction="", origin="", scores=(4.0, 3.0, 2.0, 1.0))
    return [*(replace(random_pair(rng), scores=(2.0, 1.0)) for _ in range(3)), many]


def result_of(case: Case, model: Path) -> dict[str, Any]:
    """What a case did; `error` if it raised one."""
    calls: list[dict[str, Any]] = []
    config = settings(case, model)
    with ExitStack() as stack:
        stack.enter_context(fake_policy.fake_cuda())
        for version in case.versions:
            stack.enter_context(install(version, calls))
        stack.enter_context(record_torch(calls))
        if case.change is not None:
            stack.enter_context(faults.CHANGES[case.change](model.parent))
        try:
            policy, line = fake_policy.load_real(config)
            done = fake_policy.run_pass(policy, pairs(), config)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
    return {
        "line": line,
        "problems": dict(done.audit.problems),
        "copies": [vars(copy) for copy in done.audit.copies],
        "batch_tensors": len(done.batch.tensors()),
        "loss": [str(done.loss.dtype), done.loss.device.type],
        "gradients": gradients(policy),
        "calls": [described(call) for call in calls],
    }


def gradients(policy: PolicyModel) -> dict[str, int]:
    """Numbers of trained parameters by their gradient's dtype and device."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    kinds = ("missing" if p.grad is None else f"{p.grad.dtype} {p.grad.device}" for p in trained)
    return dict(Counter(kinds))


def described(call: dict[str, Any]) -> dict[str, Any]:
    """The names of a call's arguments, and whether both ends are one tensor."""
    given = {name: value for name, value in call.items() if name not in ("args", "kwargs")}
    ends = [given[name] for name in given if name.startswith(("cu_seq_", "cu_seqlens_"))]
    return {"names": list(given), "same_ends": ends[0] is ends[1]}


def main() -> None:
    cases = [Case(**values) for values in json.loads(Path(sys.argv[1]).read_text())]
    with tempfile.TemporaryDirectory() as name:
        model = save_tiny_model(Path(name) / "model")
        for case in cases:
            print(json.dumps(result_of(case, model)), flush=True)


if __name__ == "__main__":
    main()
