"""Runs whose losses, gradients and weights are written down, some with a mistake on purpose."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.utils import safe_get_full_grad

from cpo_ds.data.pack import pack
from cpo_ds.data.pieces import PieceMaker
from cpo_ds.engine import engine
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.losses import step_share
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run import ahead, trainer
from cpo_ds.run import pairs as run_pairs
from cpo_ds.run.build import RunInputs, build_run
from cpo_ds.run.main import main
from cpo_ds.run.session import run_recipe
from cpo_ds.schema import PackedBatch
from cpo_ds.storage import lock

Named = dict[str, torch.Tensor]


def train_each(recipes: dict[str, dict[str, Any]], folder: str, controls: dict[str, str]) -> None:
    """Trains each recipe in turn and writes NAME.pt: losses, gradients, weights.

    `controls` names, for some recipes, a mistake to make on purpose.
    """
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        with MISTAKES[controls.get(name, "none")](values):
            record = _train(values | {"output_dir": f"{folder}/{name}"}, ranks)
        if ranks.rank == 0:
            torch.save(record, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


def build(values: dict[str, Any], ranks: Ranks) -> trainer.Run:
    """A run that is ready to train, as `session.run_recipe` builds it."""
    config = parse_config(values, "test")
    settings = read_deepspeed_settings(config)
    _, train_pairs, eval_pairs, _ = run_pairs.prepare_pairs(config, prints_counts=False)
    return build_run(RunInputs(config, settings, ranks, train_pairs, eval_pairs))


def _train(values: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    run = build(values, ranks)
    gradients: list[Named] = []
    at_steps: list[Named] = []
    start = _whole_weights(run.engine)
    update = run.engine._deepspeed.optimizer.step

    # Gradients are read in the optimizer's step, before DeepSpeed clears them.
    def record_gradients_then_update(*arguments: Any) -> Any:
        gradients.append(_whole_gradients(run.engine))
        at_steps.append(_whole_weights(run.engine))
        return update(*arguments)

    run.engine._deepspeed.optimizer.step = record_gradients_then_update
    trainer.train(run)
    run.monitor.close()
    # The plans of all steps, made again after the training.
    steps = range(1, run.total_steps + 1)
    plans = [trainer.plan(run, step)[0] for step in steps]
    stand_ins = torch.tensor(sum(not batch.counted for batches in plans for batch in batches))
    weights = _whole_weights(run.engine)
    run.engine._deepspeed.destroy()
    written = Path(run.config.output_dir, "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "gradients": gradients,
        "at_steps": at_steps,  # weights before each update
        "start": start,
        "weights": weights,
        "micro_batches": [len(batches) for batches in plans],
        "pairs_in_each": [[batch.num_pairs for batch in batches] for batches in plans],
        "stand_ins": int(run.engine.sum_over_ranks(stand_ins)),
    }


def _whole_weights(policy_engine: engine.Engine) -> Named:
    return {n: w.clone() for n, w in policy_engine.whole_parameters(trained_only=False)}


def _whole_gradients(policy_engine: engine.Engine) -> Named:
    named = policy_engine.policy.language_model.named_parameters()
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    return {name: safe_get_full_grad(p).detach().clone() for name, p in trained.items()}


def run_each(recipes: list[dict[str, Any]]) -> None:
    """Runs whole recipes one after the other, each to its export."""
    silence_libraries()
    init_ranks()
    with mock.patch.object(torch.distributed, "destroy_process_group"):
        for values in recipes:
            run_recipe(parse_config(values, "test"))
    torch.distributed.destroy_process_group()


def main_without_patience(*arguments: str) -> int:
    """Trains, but does not wait for another run that holds the folder."""
    with mock.patch.object(lock, "_LOCK_SECONDS", 0.0):
        return main(list(arguments))


def count_tokenized(*arguments: str) -> int:
    """Trains, and prints a line each time that rows are tokenized."""
    tokenize = PieceMaker._tokenize

    def tokenize_and_say(maker: PieceMaker, rows: Any) -> Any:
        print(f"tokenized rows: {len(rows)}", flush=True)
        return tokenize(maker, rows)

    with mock.patch.object(PieceMaker, "_tokenize", tokenize_and_say):
        return main(list(arguments))


def train_with_other_dropout(*arguments: str) -> int:
    """Trains with other random numbers from the first step on, all else equal."""
    plan = trainer.plan

    def plan_and_draw(run: trainer.Run, step: int) -> Any:
        torch.rand(1)
        return plan(run, step)

    with mock.patch.object(trainer, "plan", plan_and_draw):
        return main(list(arguments))


def train_as_on_a_gpu(*arguments: str) -> int:
    """Trains, but plans each step in a thread while the step before is trained."""

    @contextlib.contextmanager
    def planned_ahead(device: torch.device, plan: Any, steps: Any) -> Iterator[Any]:
        with ahead.made_ahead(plan, steps) as planned:
            yield planned

    with mock.patch.object(trainer, "planned_steps_on", planned_ahead):
        code = main(list(arguments))
    assert not [t.name for t in threading.enumerate() if t.name.startswith("ahead")]
    return code


def stop_each(recipes: dict[str, dict[str, Any]], folder: str) -> None:
    """Trains each recipe until it stops; writes the error and changes of weights to NAME.json."""
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        run = build(values | {"output_dir": f"{folder}/{name}"}, ranks)
        record: dict[str, Any] = {"refused": 0}
        update = run.engine.update

        def watch_weights(
            rate: float, run: Any = run, update: Any = update, to: Any = record
        ) -> Any:
            before = _whole_weights(run.engine)
            done = update(rate)
            after = _whole_weights(run.engine)
            same = all(_same_bits(before[name], after[name]) for name in before)
            to["refused"] += not done.applied
            to["changed after refusal"] = not done.applied and not same
            to["changed by a step"] = to.get("changed by a step") or (done.applied and not same)
            return done

        run.engine.update = watch_weights  # type: ignore[method-assign]
        try:
            trainer.train(run)
        except trainer.NonFiniteError as error:
            record["error"] = str(error)
        run.monitor.close()
        if ranks.rank == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a, nan=1e30), torch.nan_to_num(b, nan=1e30))


@contextlib.contextmanager
def _no_mistake(values: dict[str, Any]) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _mean_of_means(values: dict[str, Any]) -> Iterator[None]:
    """Makes the mistake of other trainers: the mean of the micro-batches' own means."""
    batches: list[PackedBatch] = []
    number = values["batch"]["pairs"]
    plan = trainer.plan

    def remember(run: trainer.Run, step: int) -> Any:
        nonlocal number
        planned, totals = plan(run, step)
        batches[:] = planned
        number = len(planned)
        return planned, totals

    def share(terms: Any, totals: Any, loss: Any) -> torch.Tensor:
        batch = batches.pop(0)
        own = type(totals)(
            **vars(totals)
            | {"pairs": batch.num_pairs, "chosen_tokens": batch.num_chosen_tokens.sum()}
        )
        return step_share(terms, own, loss) / number

    with mock.patch.multiple(trainer, plan=remember, step_share=share):
        yield


@contextlib.contextmanager
def _count_stand_ins(values: dict[str, Any]) -> Iterator[None]:
    def counted(pairs: Any, micro_batch: Any, stand_in: int) -> PackedBatch:
        return pack(pairs, micro_batch or (stand_in,))

    with mock.patch.object(trainer, "pack_micro_batch", counted):
        yield


MISTAKES = {"none": _no_mistake, "mean of means": _mean_of_means, "stand-ins": _count_stand_ins}


def cpo_ds_command(*arguments: str) -> int:
    """Runs `cpo-ds ...` as one of several ranks."""
    from cpo_ds import cli

    return cli.main(list(arguments))
