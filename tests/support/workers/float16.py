"""A first update in float16 on the CPU, which DeepSpeed and the program refuse otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator

from cpo_ds.engine import settings as engine_settings
from cpo_ds.engine.settings import DeepSpeedSettings, read_deepspeed_settings
from cpo_ds.engine.zero import zero_settings
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run import trainer
from cpo_ds.run.build import RunInputs, build_run
from cpo_ds.run.pairs import prepare_pairs


def first_updates(recipes: dict[str, tuple[int, dict[str, Any]]], folder: str) -> None:
    """Makes the first update of each recipe at a ZeRO stage; writes {name: norms} as JSON."""
    silence_libraries()
    ranks = init_ranks()
    with (
        mock.patch.object(engine_settings, "_check_devices"),
        mock.patch.object(type(get_accelerator()), "is_fp16_supported", lambda self: True),
    ):
        norms = {name: _first_update(v, stage, ranks) for name, (stage, v) in recipes.items()}
    Path(folder, "norms.json").write_text(json.dumps(norms))
    torch.distributed.destroy_process_group()


def _first_update(values: dict[str, Any], stage: int, ranks: Ranks) -> dict[str, float]:
    """Norms of Adam's first moments and of the change of weights."""
    config = parse_config(values, "test")
    settings = _at_stage(read_deepspeed_settings(config), stage)
    pairs = prepare_pairs(config, prints_counts=False).train
    run = build_run(RunInputs(config, settings, ranks, pairs))
    before = _weights(run)
    # A step is skipped as long as the loss scale makes gradients overflow.
    for step in range(1, 20):
        batches, totals = trainer.plan(run, step)
        for batch in batches:
            terms = pair_terms(run.engine.score(batch), config.loss)
            run.engine.accumulate(step_share(terms, totals, config.loss))
        if run.engine.update(1e-2).applied:
            break
    after = _weights(run)
    run.monitor.close()
    moments = [state["exp_avg"] for state in run.engine.optimizer.state.values()]
    return {
        "moments": _norm(moments),
        "change": _norm([after[name] - before[name] for name in before]),
    }


def _at_stage(settings: DeepSpeedSettings, stage: int) -> DeepSpeedSettings:
    """The same settings at another stage, even at one that is refused."""
    section = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    file = settings.file | {"zero_optimization": section}
    return replace(settings, zero=zero_settings(section), file=file)


def _weights(run: trainer.Run) -> dict[str, torch.Tensor]:
    return {n: w.double().clone() for n, w in run.engine.whole_parameters(trained_only=True)}


def _norm(tensors: list[torch.Tensor]) -> float:
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5
