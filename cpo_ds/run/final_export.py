"""Writes a run's export, and loads it again to compare its log-probs with the run's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpo_ds.config import Config
from cpo_ds.data.pair_columns import lengths_of
from cpo_ds.engine.engine import frozen_forward, gather_parameters, sharded_loading
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.export.folder import Written, exports_adapter, write_pretrained
from cpo_ds.export.publish import finish_export, unfinished_folder
from cpo_ds.export.read_back import as_start, difference, tokenizer_difference, told
from cpo_ds.model.adapter import gather_nothing
from cpo_ds.model.load import load_reference
from cpo_ds.ranks.liveness import count_common_work
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.run.sweep import score_pairs
from cpo_ds.run.trainer import Run
from cpo_ds.schema import PackedBatch, PairLogps, TokenizedPair

_PAIRS = 8

# Largest difference of log-probs by precision, as a mean over a completion's tokens. The export
# computes as the run does with the same weights: differences come from kernels that do not give the
# same bits twice.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
# An adapter that is merged for the export is rounded once more (docs/export.md has measurements).
_TOLERANCE_MERGED = {"float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}


@dataclass(frozen=True)
class Sample:
    """A few pairs with the run's log-probs: [pairs, 2], of chosen and rejected."""

    pairs: list[TokenizedPair]
    logps: np.ndarray


def export_run(run: Run, settings: DeepSpeedSettings, tokenizer: Any) -> None:
    """Writes a run's export; all ranks call it. Nothing can be trained afterwards.

    Raises `UserError` on all ranks if the export cannot be written, or does not give the run's
    log-probs after loading. Then it is put aside.
    """
    config, ranks = run.config, run.ranks
    folder, manifest = Path(config.output_dir) / "export", run.manifest_of(run.total_steps)
    sample = sample_of(run) if config.checkpoint.verify_export else None
    written = write_pretrained(run.engine, ranks, config, tokenizer, folder, manifest)
    problem, checked = None, ""
    if sample is not None:
        run.engine.release()
        unfinished = unfinished_folder(folder)
        problem, checked = _verify(unfinished, written, sample, config, settings, ranks)
        problem = problem or ranks.on_first(lambda: tokenizer_difference(unfinished, tokenizer))
    ranks.on_first(lambda: finish_export(folder, problem, manifest.step))
    kind = "LoRA adapter" if exports_adapter(config) else "full model"
    run.monitor.say(f"{kind} written to {folder}{checked}")


def sample_of(run: Run) -> Sample:
    """Scores a few pairs, held-out ones if there are any: from the shortest to the longest."""
    pairs = run.eval_pairs or run.train_pairs
    by_length = np.argsort(lengths_of(pairs), kind="stable")
    positions = np.linspace(0, len(pairs) - 1, min(_PAIRS, len(pairs))).round().astype(int)
    chosen = [pairs[by_length[position]] for position in positions]
    with run.engine.evaluating():
        return Sample(chosen, score_pairs(run.engine, run.ranks, run.config, chosen))


def _verify(
    folder: Path,
    written: Written | None,
    sample: Sample,
    config: Config,
    settings: DeepSpeedSettings,
    ranks: Ranks,
) -> tuple[str | None, str]:
    """Loads an export; returns a problem, and words for the log on how it was checked."""
    reason = _why_not_scored(folder, sample, settings, ranks)
    if reason is None:
        problem, reason = _compare_log_probs(folder, sample, config, settings, ranks)
    if reason is None:
        return problem, "; loaded again, it gives the run's log-probs"
    problem = ranks.on_first(lambda: difference(folder, written, config) if written else None)
    return problem, f"; loaded again, it has the run's weights (log-probs not compared: {reason})"


def _why_not_scored(
    folder: Path, sample: Sample, settings: DeepSpeedSettings, ranks: Ranks
) -> str | None:
    """The reason why log-probs cannot be compared, the same on all ranks; None if they can."""
    if not all(ranks.gather(folder.is_dir())):
        return "not every host has that folder"
    if settings.zero.quantized_weights:
        return "the run computed with weights in int8"
    if not np.isfinite(sample.logps).all():
        return "the run's own are not finite"
    return None


def _compare_log_probs(
    folder: Path, sample: Sample, config: Config, settings: DeepSpeedSettings, ranks: Ranks
) -> tuple[str | None, str | None]:
    """Scores the sample by an export; returns a problem, or the reason why it cannot be scored."""
    out_of_memory, error, loaded = False, None, sample.logps
    try:
        loaded = _score(folder, sample.pairs, config, settings, ranks)
    except torch.OutOfMemoryError:
        out_of_memory = True
    except Exception as exception:  # files that are wrong may fail anywhere, but tell no trace
        error = f"it cannot be loaded again: {told(exception)}"
    errors = [message for message in ranks.gather(error) if message]
    if errors:
        return errors[0], None
    if ranks.any(out_of_memory)[0]:
        return None, "out of device memory"
    merged = config.trains_adapter and not exports_adapter(config)
    tolerance = (_TOLERANCE_MERGED if merged else _TOLERANCE)[config.model.dtype]
    return log_prob_difference(sample, loaded, tolerance), None


def _score(
    folder: Path,
    pairs: Sequence[TokenizedPair],
    config: Config,
    settings: DeepSpeedSettings,
    ranks: Ranks,
) -> np.ndarray:
    """Loads an export as a new run would; returns its log-probs of the pairs."""
    start = as_start(config, folder, is_adapter=exports_adapter(config))
    settings, is_sharded = settings.without_groups(), settings.stage == 3
    with sharded_loading(settings, ranks):
        policy = load_reference(
            start,
            device=ranks.device,
            gather=gather_parameters if is_sharded else gather_nothing,
            place_on_device=not is_sharded and ranks.device.type == "cuda",
        )
        forward = frozen_forward(policy, settings)
    return score_pairs(_Frozen(forward), ranks, config, pairs)


@dataclass(frozen=True)
class _Frozen:
    """A policy that only scores."""

    forward: Callable[[PackedBatch], tuple[torch.Tensor, torch.Tensor]]

    @torch.no_grad()
    def score(self, batch: PackedBatch) -> PairLogps:
        count_common_work()
        return batch.logps(*self.forward(batch))


def log_prob_difference(sample: Sample, loaded: np.ndarray, tolerance: float) -> str | None:
    """Returns a sentence on the largest difference, or None if all are within the tolerance.

    `loaded` are an export's log-probs: [pairs, completions]. Differences are per token.
    """
    counts = np.ones(loaded.shape)  # pairs with fewer completions have zeros at their end
    for row, pair in zip(counts, sample.pairs, strict=True):
        row[: len(pair.num_scored)] = pair.num_scored
    differences = np.abs(loaded - sample.logps) / counts
    differences[~np.isfinite(differences)] = np.inf
    if differences.max() <= tolerance:
        return None
    pair, side = np.unravel_index(differences.argmax(), differences.shape)
    completion = "rejected" if side else "chosen"
    return (
        f"the log-prob of the {completion} text of {sample.pairs[pair].origin} is "
        f"{loaded[pair, side]:.5f} after loading, but was {sample.logps[pair, side]:.5f}, a "
        f"difference of {differences[pair, side]:.2g} per token (allowed: {tolerance:g})."
    )
