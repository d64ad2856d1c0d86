"""Log-probs of DPO's reference, computed once before training and kept on disk."""

from __future__ import annotations

import hashlib
import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cpo_ds.config import Config
from cpo_ds.data.pair_columns import comparisons_of, pairs_fingerprint, pairs_with_logps
from cpo_ds.engine.engine import Engine
from cpo_ds.errors import UserError
from cpo_ds.model.hub import adapter_fingerprint
from cpo_ds.model.load import model_shape
from cpo_ds.model.positions import longest_unchanged
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.run.sweep import score_pairs
from cpo_ds.schema import TokenizedPair
from cpo_ds.storage.files import replacing


def with_reference_logps(
    engine: Engine, ranks: Ranks, config: Config, pairs: Sequence[TokenizedPair]
) -> Sequence[TokenizedPair]:
    """Returns the pairs with their log-probs under the policy before training.

    They are read from `loss.reference_cache` if an earlier run left them: a file is named by a
    fingerprint of pairs, model, starting adapter and precision. Raises `UserError` if a log-prob is
    not finite.
    """
    folder = Path(config.loss.reference_cache or Path(config.output_dir) / "reference")
    path = folder / f"{_fingerprint(engine, config, pairs)}.npz"
    shape = (len(pairs), 1 + int(comparisons_of(pairs).max()))
    logps = ranks.on_first(lambda: _read(path, shape, ranks))
    if logps is None:
        with engine.evaluating():
            logps = score_pairs(engine, ranks, config, pairs)
        _check_finite(logps, pairs)
        ranks.on_first(lambda: _write(path, logps, ranks))
    else:
        ranks.say(f"log-probs of the reference: read from {path}")
    return pairs_with_logps(pairs, logps)


def _fingerprint(engine: Engine, config: Config, pairs: Sequence[TokenizedPair]) -> str:
    """16 hexadecimal digits that change with anything that the log-probs depend on."""
    adapter = config.model.adapter and adapter_fingerprint(config.model.adapter)
    model = (model_shape(config), engine.policy.fingerprint)
    settings: list[str | None] = [config.model.dtype, config.model.quantization]
    # Older versions gave short sequences the rotary frequencies of the longest one beside them.
    if config.data.max_tokens > longest_unchanged(engine.policy.causal_lm.config):
        settings.append("rotary frequencies of each sequence")
    parts = (pairs_fingerprint(pairs), *model, adapter, *filter(None, settings))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _check_finite(logps: np.ndarray, pairs: Sequence[TokenizedPair]) -> None:
    guilty = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(guilty):
        raise UserError(
            f"the reference's log-probs of {len(guilty)} pair(s) are not finite, the first at "
            f"{pairs[guilty[0]].origin}; look at it, or take another model.dtype."
        )


def _read(path: Path, shape: tuple[int, int], ranks: Ranks) -> np.ndarray | None:
    """Reads the file of `_write`; None if it does not exist or is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logps = arrays["logps"]
        if logps.shape == shape and np.isfinite(logps).all():
            return logps
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile,
            tokenize.TokenError):  # fmt: skip
        pass  # numpy raises all of these for a damaged zip file or array header
    ranks.say(f"{path} is damaged; the reference's log-probs are computed again")
    return None


def _write(path: Path, logps: np.ndarray, ranks: Ranks) -> None:
    """Keeps log-probs for later runs. A full disk is reported and does not end this run."""
    try:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, logps=logps)
        ranks.say(f"log-probs of the reference: computed, and kept in {path}")
    except OSError as error:
        ranks.say(f"warning: the reference's log-probs cannot be kept in {path}: {error.strerror}.")
