"""DPO's reference without a second model: one pass over the pairs before training, kept on disk."""

from __future__ import annotations

import hashlib
import tokenize
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cpo_ds.checkpoint.resume import Say
from cpo_ds.config import Config
from cpo_ds.data.pack import pack_micro_batch
from cpo_ds.data.plan import plan_step
from cpo_ds.data.tokenize import pairs_fingerprint
from cpo_ds.engine.engine import Engine
from cpo_ds.errors import UserError
from cpo_ds.model.hub import adapter_fingerprint
from cpo_ds.model.load import model_shape
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.schema import TokenizedPair
from cpo_ds.storage.files import replacing


def with_reference_logps(
    engine: Engine, ranks: Ranks, config: Config, pairs: list[TokenizedPair], say: Say
) -> list[TokenizedPair]:
    """The pairs with their log-probs under the policy as it is now, before training.

    They are read from `loss.reference_cache` where an earlier run left them: a file is named by a
    fingerprint of pairs, model, starting adapter and precision. Raises `UserError` where a
    log-prob is not finite.
    """
    folder = Path(config.loss.reference_cache or Path(config.output_dir) / "reference")
    path = folder / f"{_fingerprint(engine, config, pairs)}.npz"
    logps = ranks.on_first(lambda: _read(path, len(pairs), say))
    if logps is None:
        logps = _score(engine, ranks, config, pairs)
        _check_finite(logps, pairs)
        ranks.on_first(lambda: _write(path, logps, say))
    else:
        say(f"log-probs of the reference: read from {path}")
    return [
        replace(pair, reference_logps=(chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, logps.tolist(), strict=True)
    ]


def _fingerprint(engine: Engine, config: Config, pairs: list[TokenizedPair]) -> str:
    adapter = config.model.adapter and adapter_fingerprint(config.model.adapter)
    model = (model_shape(config), engine.policy.fingerprint)
    parts = (pairs_fingerprint(pairs), *model, adapter, config.model.dtype)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _score(engine: Engine, ranks: Ranks, config: Config, pairs: list[TokenizedPair]) -> np.ndarray:
    """Log-probs of chosen and rejected: [pairs, 2], float32, the same on all ranks."""
    lengths = np.array([len(pair.tokens) for pair in pairs])
    table = torch.zeros(len(pairs), 2, device=ranks.device)
    with engine.evaluating():
        for begin in range(0, len(pairs), config.batch.pairs):
            indices = range(begin, min(begin + config.batch.pairs, len(pairs)))
            stand_in = min(indices, key=lambda index: lengths[index])
            planned = plan_step(indices, lengths, ranks.world_size, config.batch.tokens_per_rank)
            for micro_batch in planned[ranks.rank]:
                batch = pack_micro_batch(pairs, micro_batch, stand_in).to(ranks.device)
                logps = engine.score(batch)
                if batch.counted:
                    rows = torch.stack([logps.chosen, logps.rejected], dim=1)
                    table[list(batch.pair_indices)] = rows
    return engine.sum_over_ranks(table).cpu().numpy()  # each row is zero on all ranks but one


def _check_finite(logps: np.ndarray, pairs: list[TokenizedPair]) -> None:
    guilty = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(guilty):
        raise UserError(
            f"the reference's log-probs of {len(guilty)} pair(s) are not finite, the first at "
            f"{pairs[guilty[0]].origin}; look at it, or take another model.dtype."
        )


def _read(path: Path, count: int, say: Say) -> np.ndarray | None:
    """What `_write` wrote; None where it is not there, or damaged (each array has a checksum)."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logps = arrays["logps"]
        if logps.shape == (count, 2) and np.isfinite(logps).all():
            return logps
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile,
            tokenize.TokenError):  # fmt: skip
        pass  # all that a damaged zip file or array header makes numpy raise
    say(f"{path} is damaged; the reference's log-probs are computed again")
    return None


def _write(path: Path, logps: np.ndarray, say: Say) -> None:
    """Appears whole or not at all; a full disk costs a later run the pass, and this one nothing."""
    try:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, logps=logps)
        say(f"log-probs of the reference: computed, and kept in {path}")
    except OSError as error:
        say(f"warning: the reference's log-probs cannot be kept in {path}: {error.strerror}.")
