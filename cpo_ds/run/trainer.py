"""The training loop: plan a step, forward and backward, update, log, save, evaluate."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpo_ds.checkpoint.interval import SaveInterval
from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.checkpoint.save import Saver
from cpo_ds.config import Config
from cpo_ds.data.pack import pack_micro_batch
from cpo_ds.data.pair_columns import lengths_of
from cpo_ds.data.plan import plan_step, step_indices, step_totals, steps_per_epoch
from cpo_ds.engine.engine import Engine, Update
from cpo_ds.errors import NonFiniteError, Stopped
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.flops import matrix_weights, step_flops
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.ranks.stopping import StopRequest
from cpo_ds.run.ahead import planned_steps_on
from cpo_ds.run.held_out import measure
from cpo_ds.run.learning_rate import learning_rate
from cpo_ds.run.metrics import COLUMNS, pair_columns, summarize
from cpo_ds.run.monitor import SilentMonitor
from cpo_ds.run.samples import Sampler
from cpo_ds.run.throughput import Stopwatch, peak_memory_gib, peak_tflops
from cpo_ds.schema import PackedBatch, StepTotals, TokenizedPair


@dataclass(frozen=True)
class Run:
    """A run that is ready to train; `build.build_run` makes it."""

    config: Config
    engine: Engine
    ranks: Ranks
    monitor: SilentMonitor  # a `Monitor` on rank 0
    saver: Saver
    manifest: Manifest  # what all checkpoints of the run have in common
    train_pairs: Sequence[TokenizedPair]
    eval_pairs: Sequence[TokenizedPair]
    first_step: int = 0  # steps that are trained already, by the run that is resumed
    stop: StopRequest = field(default_factory=StopRequest)
    interval: SaveInterval = field(default_factory=SaveInterval)
    sampler: Sampler | None = None

    @cached_property
    def lengths(self) -> np.ndarray:
        """Unique tokens of each training pair: [pairs], int64."""
        return lengths_of(self.train_pairs)

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return steps_per_epoch(len(self.train_pairs), self.config.batch.pairs)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, those before `first_step` included."""
        return planned_steps(self.config, len(self.train_pairs))

    def manifest_of(self, step: int) -> Manifest:
        """The manifest of a step, still without files."""
        return replace(self.manifest, step=step)


def planned_steps(config: Config, num_pairs: int) -> int:
    """Optimizer steps of a whole run over `num_pairs` training pairs."""
    steps = config.train.epochs * steps_per_epoch(num_pairs, config.batch.pairs)
    return min(steps, config.train.max_steps or steps)


def train(run: Run) -> None:
    """Trains from `run.first_step` to the end.

    Raises `NonFiniteError` before weights are touched, and `Stopped` if the run was asked to stop.
    """
    config = run.config
    # For the throughput in the log: the model's size, the device's peak, and passes over the model.
    peak = peak_tflops(run.ranks.device)
    weights = matrix_weights(run.engine.policy.causal_lm)
    passes = {
        "trains_adapter": config.trains_adapter,
        "runs_reference": config.loss.reads_reference_from("model", "adapter"),
    }
    if run.first_step == 0 or _evaluates_after(run, run.first_step):
        _evaluate_or_stop(run, run.first_step)
    watch = Stopwatch()
    steps = range(run.first_step + 1, run.total_steps + 1)
    with planned_steps_on(run.ranks.device, partial(plan, run), steps) as planned:
        for step, (micro_batches, totals) in zip(steps, planned, strict=True):
            sums, update, rate = _train_step(run, step, micro_batches, totals)
            flops = step_flops(weights, totals.unique_tokens, totals.scored_tokens, **passes)
            watch.count(totals, flops)
            run.monitor.advance()
            # Log. All ranks take part, since sums and the largest memory are over all of them.
            if step % config.logging.every_steps == 0 or step == run.total_steps:
                memory = peak_memory_gib(run.ranks.device)
                values, largest_memory = run.engine.sums_and_largest(sums, memory)
                line: dict[str, Any] = {"step": step, "epoch": round(step / run.per_epoch, 4)}
                line |= summarize(values, totals, config.loss)
                line |= {"learning_rate": rate, "grad_norm": update.grad_norm}
                line |= vars(totals) | watch.read(run.ranks.world_size, peak)
                line["peak_memory_gib"] = largest_memory
                run.monitor.write(line)
                run.monitor.show(line)
            # Save before evaluating: a run that resumes from this step evaluates it again.
            paused_at = watch.pause()
            save_or_stop(run, step)
            if _evaluates_after(run, step):
                _evaluate_or_stop(run, step)
            watch.go_on(paused_at)
    run.saver.finish()


def _train_step(
    run: Run, step: int, micro_batches: list[PackedBatch], totals: StepTotals
) -> tuple[torch.Tensor, Update, float]:
    """Trains one step; returns this rank's sums of `COLUMNS`, the update and its learning rate."""
    config = run.config
    # Forward and backward passes. Sums for the log stay on the device until they are logged.
    sums = torch.zeros(len(COLUMNS), dtype=torch.float64, device=run.ranks.device)
    seen = []
    for batch in micro_batches:
        logps = run.engine.score(batch)
        terms = pair_terms(logps, config.loss)
        run.engine.accumulate(step_share(terms, totals, config.loss) * float(batch.counted))
        columns = pair_columns(terms, logps)
        sums += columns.sum(0) * batch.counted
        seen.append((batch.pair_indices, columns))
    # One update with the gradient of the whole global batch.
    rate = learning_rate(step, run.total_steps, config.optim)
    update = run.engine.update(rate)
    if not update.applied:
        _stop_unless_rescaled(run, step, seen, update.grad_norm)
    return sums, update, rate


def save_or_stop(run: Run, step: int) -> None:
    """Saves a checkpoint if one is due, and raises `Stopped` if any rank was asked to stop."""
    # Agree with all ranks: one of them may have got a signal, or still write the last checkpoint,
    # and only rank 0's clock counts.
    is_time, is_asked = run.ranks.rank == 0 and run.interval.is_over, run.stop.reason is not None
    stop, is_writing, is_time = run.ranks.any(is_asked, run.saver.is_writing, is_time)
    if run.saver.is_pending and not is_writing:
        run.saver.finish()
    last = step == run.total_steps
    if last or stop or is_time or run.interval.ends_at(step):
        run.monitor.sync()
        run.saver.save(step)
        run.interval.begin()
    # The last step needs no stop: the run is about to end anyway.
    if stop and not last:
        raise _stopped(run, step)


def _stopped(run: Run, step: int) -> Stopped:
    """The end of a run that was asked to stop, once the checkpoint of `step` is written."""
    run.saver.finish()
    reasons = sorted({why for why in run.ranks.gather(run.stop.reason) if why})
    asked = f"asked to by {' and '.join(reasons)}"
    if step == 0:
        return Stopped(f"before the first step, {asked}. Run the same command again to begin.")
    saved = step in (run.saver.last_saved, run.first_step)
    return Stopped(
        f"after step {step} of {run.total_steps}, {asked}; "
        + ("its checkpoint is saved. " if saved else "its checkpoint could NOT be saved. ")
        + "Run the same command again to go on."
    )


def plan(run: Run, step: int) -> tuple[list[PackedBatch], StepTotals]:
    """This rank's micro-batches of a step (from 1), and counts over the whole global batch.

    A pure function of the data; the batches are in host memory.
    """
    indices = step_indices(
        len(run.train_pairs), run.config.batch.pairs, run.config.train.seed, step - 1
    )
    planned = plan_step(
        indices, run.lengths, run.ranks.world_size, run.config.batch.tokens_per_rank
    )
    # A rank without pairs runs the shortest one, uncounted: all ranks make as many passes.
    stand_in = min(indices.tolist(), key=lambda index: run.lengths[index])
    batches = [
        pack_micro_batch(run.train_pairs, micro_batch, stand_in)
        for micro_batch in planned[run.ranks.rank]
    ]
    return batches, step_totals(planned, run.train_pairs)


def evaluate(run: Run, step: int) -> bool:
    """Writes a line of metrics over the held-out pairs, and by direction, under `eval_` names.

    False, and no line is written, if the run was asked to stop while it translated.
    """
    pairs = run.eval_pairs
    if not pairs:
        return True
    metrics, by_direction, margins = measure(run.engine, run.ranks, run.config, pairs)
    run.monitor.say(
        f"held-out pairs at step {step}: loss {metrics['loss']:.4f}  "
        f"reward accuracy {metrics['reward_accuracy']:.3f}  margin {metrics['reward_margin']:.4f}"
    )
    # Translations are written before the line, which shows a later start that all is done.
    of_samples = run.sampler.translate(step) if run.sampler is not None else {}
    if of_samples is None:
        return False
    run.monitor.write_margins(step, pairs, margins)
    line = {f"eval_{name}": value for name, value in metrics.items()} | of_samples
    run.monitor.write(
        {"step": step, "epoch": round(step / run.per_epoch, 4), "eval_pairs": len(pairs)}
        | line
        | {"eval_directions": by_direction}
    )
    return True


def _evaluate_or_stop(run: Run, step: int) -> None:
    """Evaluates; if the run is asked to stop meanwhile, saves `step` and raises `Stopped`."""
    if evaluate(run, step):
        return
    run.saver.finish()
    if step > run.first_step and run.saver.last_saved != step:
        run.monitor.sync()
        run.saver.save(step)
    raise _stopped(run, step)


def _evaluates_after(run: Run, step: int) -> bool:
    return _due(step, run.config.train.eval_every_steps) or step == run.total_steps


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _stop_unless_rescaled(
    run: Run, step: int, seen: list[tuple[tuple[int, ...], torch.Tensor]], grad_norm: float
) -> None:
    """Raises `NonFiniteError`, after writing the pairs that are to blame to non_finite.json.

    `seen` holds pair indices and columns of each micro-batch. In float16 a gradient may overflow
    while all losses are finite: DeepSpeed then lowers its loss scale and skips the step, and the
    run goes on.
    """
    # Find the pairs with a value that is not finite, over all ranks.
    values = [
        (index, dict(zip(COLUMNS, row, strict=True)))
        for indices, columns in seen
        for index, row in zip(indices, columns.tolist(), strict=True)
    ]
    guilty = [(i, row) for i, row in values if not np.isfinite(list(row.values())).all()]
    everyone = run.ranks.gather((guilty, values))
    all_guilty = [pair for of_rank, _ in everyone for pair in of_rank]
    if run.engine.is_float16 and not all_guilty:
        return
    # Without one the gradient alone is to blame, and any pair of the step may have caused it.
    suspects = all_guilty or [pair for _, of_rank in everyone for pair in of_rank]
    cause = "loss" if all_guilty else "gradient"
    report = Path(run.config.output_dir) / "non_finite.json"
    if run.ranks.rank == 0:
        pairs = [
            {"origin": run.train_pairs[i].origin, "direction": run.train_pairs[i].direction}
            | {name: str(value) for name, value in row.items()}
            for i, row in suspects
        ]
        content = {"step": step, "what": cause, "grad_norm": str(grad_norm), "pairs": pairs}
        with contextlib.suppress(OSError):  # a full disk: the message below holds the main part
            report.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    run.saver.finish()
    names = ", ".join(run.train_pairs[i].origin for i, _ in suspects[:3])
    raise NonFiniteError(
        f"step {step}: the {cause} is not finite, so the run stopped before it changed the "
        f"weights. {'Pairs' if all_guilty else 'All pairs of the step'}: {names}"
        f"{', ...' if len(suspects) > 3 else ''} (all in {report}). Look at them, lower "
        "optim.learning_rate, or use model.dtype bfloat16 or float32."
    )
