"""The loop, top to bottom: plan a step, forward and backward, update, log, evaluate, save."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cpo_ds.checkpoint.save import Saver
from cpo_ds.config import Config
from cpo_ds.data.pack import pack_micro_batch
from cpo_ds.data.plan import (
    MicroBatch,
    plan_step,
    step_indices,
    step_totals,
    steps_per_epoch,
)
from cpo_ds.engine.engine import Engine
from cpo_ds.errors import NonFiniteError, Stopped
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.flops import matrix_weights, step_flops
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.ranks.stopping import StopRequest
from cpo_ds.run.learning_rate import learning_rate
from cpo_ds.run.metrics import COLUMNS, pair_columns, summarize
from cpo_ds.run.monitor import SilentMonitor
from cpo_ds.run.throughput import Stopwatch, peak_memory_gib, peak_tflops
from cpo_ds.schema import PackedBatch, StepTotals, TokenizedPair


@dataclass
class Run:
    """Everything a run is made of."""

    config: Config
    engine: Engine
    ranks: Ranks
    monitor: SilentMonitor
    train_pairs: list[TokenizedPair]
    eval_pairs: list[TokenizedPair]
    saver: Saver
    first_step: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    lengths: np.ndarray = field(init=False)
    per_epoch: int = field(init=False)
    total_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = np.array([len(pair.tokens) for pair in self.train_pairs])
        self.per_epoch = steps_per_epoch(len(self.train_pairs), self.config.batch.pairs)
        self.total_steps = planned_steps(self.config, len(self.train_pairs))


def planned_steps(config: Config, num_pairs: int) -> int:
    """Optimizer steps of the whole run."""
    steps = config.train.epochs * steps_per_epoch(num_pairs, config.batch.pairs)
    return min(steps, config.train.max_steps or steps)


def train(run: Run) -> None:
    """Trains from `run.first_step` to the end.

    Raises `NonFiniteError`, weights untouched, and `Stopped`, where it was asked to stop.
    """
    config = run.config
    peak = peak_tflops(run.ranks.device)
    weights = matrix_weights(run.engine.policy.causal_lm)
    passes = {
        "trains_adapter": config.trains_adapter,
        "runs_reference": config.loss.takes_reference_from("model", "adapter"),
    }
    if run.first_step == 0 or _evaluates_after(run, run.first_step):
        evaluate(run, run.first_step)
    watch = Stopwatch()
    for step in range(run.first_step + 1, run.total_steps + 1):
        micro_batches, totals = plan(run, step)
        sums = torch.zeros(len(COLUMNS), dtype=torch.float64, device=run.ranks.device)
        seen = []
        for batch in micro_batches:
            logps = run.engine.score(batch)
            terms = pair_terms(logps, config.loss)
            run.engine.accumulate(step_share(terms, totals, config.loss) * float(batch.counted))
            columns = pair_columns(terms, logps)
            sums += columns.sum(0) * batch.counted
            seen.append((batch.pair_indices, columns))
        rate = learning_rate(step, run.total_steps, config.optim)
        update = run.engine.update(rate)
        if not update.applied:
            _stop_unless_rescaled(run, step, seen, update.grad_norm)
        flops = step_flops(weights, totals.unique_tokens, totals.scored_tokens, **passes)
        watch.count(totals, flops)
        run.monitor.advance()
        if step % config.logging.every_steps == 0 or step == run.total_steps:
            metrics = summarize(run.engine.sum_over_ranks(sums).tolist(), totals, config.loss)
            progress = {"step": step, "epoch": round(step / run.per_epoch, 4)}
            line = progress | metrics | {"learning_rate": rate, "grad_norm": update.grad_norm}
            line |= vars(totals) | watch.read(run.ranks.world_size, peak)
            line["peak_memory_gib"] = run.engine.max_over_ranks(peak_memory_gib(run.ranks.device))
            run.monitor.write(line)
            run.monitor.show(line)
        paused_at = watch.pause()
        save_or_stop(run, step)
        if _evaluates_after(run, step):
            evaluate(run, step)
        watch.go_on(paused_at)
    run.saver.finish()


def save_or_stop(run: Run, step: int) -> None:
    """Saves a checkpoint where one is due, and stops where some rank was asked to.

    Saving comes before evaluating: who resumes from a step evaluates it again.
    """
    reason = run.stop.reason
    stop, is_writing = run.ranks.any(reason is not None, run.saver.is_writing)
    if run.saver.is_pending and not is_writing:
        run.saver.finish()
    last = step == run.total_steps
    if last or stop or _due(step, run.config.checkpoint.every_steps):
        run.monitor.sync()
        run.saver.save(step)
    if stop and not last:
        run.saver.finish()
        reasons = sorted({why for why in run.ranks.gather(reason) if why})
        saved = run.saver.last_saved == step
        raise Stopped(
            f"after step {step} of {run.total_steps}, asked to by {' and '.join(reasons)}; "
            + ("its checkpoint is saved. " if saved else "its checkpoint could NOT be saved. ")
            + "Run the same command again to go on."
        )


def plan(run: Run, step: int) -> tuple[list[PackedBatch], StepTotals]:
    """This rank's micro-batches of a step (from 1), and the counts of the whole of it."""
    indices = step_indices(
        len(run.train_pairs), run.config.batch.pairs, run.config.train.seed, step - 1
    )
    planned = plan_step(
        indices, run.lengths, run.ranks.world_size, run.config.batch.tokens_per_rank
    )
    stand_in = min(indices.tolist(), key=lambda index: run.lengths[index])
    mine = planned[run.ranks.rank]
    return list(_packed(run, run.train_pairs, mine, stand_in)), step_totals(
        planned, run.train_pairs
    )


def _packed(
    run: Run, pairs: list[TokenizedPair], mine: list[MicroBatch], stand_in: int
) -> list[PackedBatch]:
    batches = [pack_micro_batch(pairs, micro_batch, stand_in) for micro_batch in mine]
    return [batch.to(run.ranks.device) for batch in batches]


def evaluate(run: Run, step: int) -> None:
    """Writes a line of metrics over the held-out pairs, and by direction, under `eval_` names."""
    pairs, config = run.eval_pairs, run.config
    if not pairs:
        return
    lengths = np.array([len(pair.tokens) for pair in pairs])
    planned = plan_step(
        range(len(pairs)), lengths, run.ranks.world_size, config.batch.tokens_per_rank
    )
    directions = sorted({pair.direction for pair in pairs})
    sums = torch.zeros(len(directions), len(COLUMNS), dtype=torch.float64, device=run.ranks.device)
    with run.engine.evaluating():
        for batch in _packed(run, pairs, planned[run.ranks.rank], int(lengths.argmin())):
            logps = run.engine.score(batch)
            if batch.counted:
                rows = [directions.index(pairs[i].direction) for i in batch.pair_indices]
                columns = pair_columns(pair_terms(logps, config.loss), logps)
                sums.index_add_(0, torch.tensor(rows, device=sums.device), columns)
    run.engine.sum_over_ranks(sums)
    by_direction = {}
    for direction, row in zip(directions, sums.tolist(), strict=True):
        chosen: list[MicroBatch] = [
            (i,) for i, pair in enumerate(pairs) if pair.direction == direction
        ]
        totals = step_totals([chosen], pairs)
        by_direction[direction or "unknown"] = {"pairs": totals.pairs} | summarize(
            row, totals, config.loss
        )
    metrics = summarize(sums.sum(0).tolist(), step_totals(planned, pairs), config.loss)
    line = {f"eval_{name}": value for name, value in metrics.items()}
    run.monitor.write(
        {"step": step, "epoch": round(step / run.per_epoch, 4), "eval_pairs": len(pairs)}
        | line
        | {"eval_directions": by_direction}
    )
    run.monitor.say(
        f"held-out pairs at step {step}: loss {metrics['loss']:.4f}  "
        f"reward accuracy {metrics['reward_accuracy']:.3f}  margin {metrics['reward_margin']:.4f}"
    )


def _evaluates_after(run: Run, step: int) -> bool:
    return _due(step, run.config.train.eval_every_steps) or step == run.total_steps


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _stop_unless_rescaled(
    run: Run, step: int, seen: list[tuple[tuple[int, ...], torch.Tensor]], grad_norm: float
) -> None:
    """Writes down which pairs were not finite and stops.

    In float16 a gradient may overflow while all losses are finite: DeepSpeed then lowers its loss
    scale and skips the step, and the run goes on.
    """
    values = [
        (index, dict(zip(COLUMNS, row, strict=True)))
        for indices, columns in seen
        for index, row in zip(indices, columns.tolist(), strict=True)
    ]
    guilty = [(i, row) for i, row in values if not np.isfinite(list(row.values())).all()]
    everyone = run.ranks.gather((guilty, values))
    found = [item for some, _ in everyone for item in some]
    if run.engine.is_float16 and not found:
        return
    suspects = found or [item for _, some in everyone for item in some]
    report = Path(run.config.output_dir) / "non_finite.json"
    if run.ranks.rank == 0:
        pairs = [
            {"origin": run.train_pairs[i].origin, "direction": run.train_pairs[i].direction}
            | {name: str(value) for name, value in row.items()}
            for i, row in suspects
        ]
        what = "loss" if found else "gradient"
        content = {"step": step, "what": what, "grad_norm": str(grad_norm), "pairs": pairs}
        with contextlib.suppress(OSError):  # a full disk; the message below says the most
            report.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    run.saver.finish()
    names = ", ".join(run.train_pairs[i].origin for i, _ in suspects[:3])
    raise NonFiniteError(
        f"step {step}: the {'loss' if found else 'gradient'} is not finite, so the run stopped "
        f"before it changed the weights. {'Pairs' if found else 'All pairs of the step'}: {names}"
        f"{', ...' if len(suspects) > 3 else ''} (all in {report}). Look at them, lower "
        "optim.learning_rate, or use model.dtype bfloat16 or float32."
    )
