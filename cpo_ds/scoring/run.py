"""Scores rows by a metric, over all ranks: what is already scored is kept, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import REFERENCE, CandidateRow
from cpo_ds.errors import UserError
from cpo_ds.ranks.progress import Progress, duration
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.scoring import lexical
from cpo_ds.scoring.metrics import Metric
from cpo_ds.scoring.plan import Item, joint_batches, share
from cpo_ds.storage.results import Parts

Say = Callable[[str], None]

_LEXICAL_BATCH = 2**15  # characters


@dataclass(frozen=True)
class Scoring:
    """How to score: what the command line says of it."""

    dtype: str = "float32"
    shard: bool = False
    use_reference: bool = False
    batch_tokens: int = 4096


@dataclass(frozen=True)
class Scores:
    """What a metric gave: results by item key, how it was used, and what it left out."""

    about: dict[str, Any]
    results: dict[str, Any]  # item key -> [score] or [score, error spans]
    items: list[dict[str, Item]]  # of each row, by name of the candidate
    left_out: Counter[str] = field(default_factory=Counter)


def score_metric(
    metric: Metric, rows: list[CandidateRow], cache: Path, scoring: Scoring, ranks: Ranks, say: Say
) -> Scores:
    """Scores all translations of all rows by one metric. All ranks call it, with the same rows.

    Raises `UserError` on all ranks for a metric that is not there, or that has nothing to score.
    """
    if metric.is_lexical:
        return _score_lexical(metric, rows, cache, ranks, say)
    return _score_comet(metric, rows, cache, scoring, ranks, say)


def _score_lexical(
    metric: Metric, rows: list[CandidateRow], cache: Path, ranks: Ranks, say: Say
) -> Scores:
    items, left_out = _items(metric, rows, needs_reference=True, use_reference=True)
    about = {
        "model": metric.model,
        "uses_reference": True,
        "version": lexical.signature(metric.model),
        "note": "likeness to one reference, not a quality estimate",
    }
    say(f"{metric.name}: {about['note']}")
    batches = joint_batches(_unique(items), len, _LEXICAL_BATCH)

    def score(batch: list[Item]) -> list[Any]:
        return [(value, None) for value in lexical.score(metric.model, batch)]

    parts = Parts(cache, metric.model, ranks.rank)
    results = _score_all([batches], score, parts, ranks, metric.name, say)
    return Scores(about, results, items, left_out)


def _score_comet(
    metric: Metric, rows: list[CandidateRow], cache: Path, scoring: Scoring, ranks: Ranks, say: Say
) -> Scores:
    from cpo_ds.scoring.checkpoint import find_checkpoint
    from cpo_ds.scoring.comet_scorer import CometScorer

    # The first rank of a host finds it, or downloads it, for all of them.
    checkpoint = ranks.on_each_host(lambda: find_checkpoint(metric))
    say(f"{metric.name}: loading {checkpoint.path}")
    scorer = ranks.everywhere(
        lambda: CometScorer(checkpoint, ranks, scoring.dtype, shard=scoring.shard)
    )
    uses_reference = scorer.needs_reference or (scoring.use_reference and scorer.can_use_reference)
    items, left_out = _items(
        metric, rows, needs_reference=scorer.needs_reference, use_reference=uses_reference
    )
    texts = sorted({text for named in items for item in named.values() for text in item.texts})
    count = dict(zip(texts, scorer.count_tokens(texts), strict=True)).__getitem__
    longer = sum(scorer.cuts(item, count) for item in _unique(items))
    if longer:
        say(
            f"{metric.name}: {longer} translations, with what they are compared with, are longer "
            f"than the {scorer.longest} tokens that it reads; COMET cuts off the rest"
        )
    about = {
        "model": metric.model,
        "fingerprint": checkpoint.fingerprint,
        "dtype": scoring.dtype,
        "uses_reference": uses_reference,
        "version": f"unbabel-comet {version('unbabel-comet')}",
    }
    # Ranks of a split model compute in step, so items that take another number of passes through it
    # come apart.
    groups = []
    for has_reference in (True, False):
        alike = [item for item in _unique(items) if (item.reference is not None) == has_reference]
        groups.append(scorer.batches(alike, count, scoring.batch_tokens))
    parts = Parts(cache, f"{checkpoint.fingerprint}-{scoring.dtype}", ranks.rank)
    results = _score_all(
        groups, scorer.score, parts, ranks, metric.name, say, in_step=scoring.shard
    )
    return Scores(about, results, items, left_out)


def _score_all(
    groups: list[list[list[Item]]],
    score: Callable[[list[Item]], list[Any]],
    parts: Parts,
    ranks: Ranks,
    name: str,
    say: Say,
    *,
    in_step: bool = False,
) -> dict[str, Any]:
    """Scores what is not scored yet; rank 0 gets all results by item key, the others none.

    With `in_step` all ranks make equally many calls of `score` in each group.
    """
    known = parts.read()
    ranks.gather(None)  # before any rank adds to what others are to read
    todo = [_missing(batches, known) for batches in groups]
    own = [share(batches, ranks.rank, ranks.world_size) for batches in todo]
    mine = [batch for batches in own for batch in batches if batch]
    missing = sum(len(batch) for batches in todo for batch in batches)
    line = f"{name}: {{done}} of {{total}} translations scored"
    progress = Progress(line, missing, sum(map(len, mine)), len(mine), say)
    for batches, shares in zip(todo, own, strict=True):
        for batch in shares:
            results = score(batch or batches[-1]) if batch or in_step else []
            if batch:  # else it was to keep in step alone
                parts.add({item.key: list(r) for item, r in zip(batch, results, strict=True)})
                progress.advance(len(batch), 1)
    ranks.gather(None)
    rate = f", {missing / progress.seconds:.0f} a second" if missing else ""
    before = sum(len(batch) for batches in groups for batch in batches) - missing
    kept = f"; {before} were scored before" if before else ""
    took = duration(progress.seconds)
    say(f"{name}: {missing} different translations scored in {took}{rate}{kept}")
    return parts.read() if ranks.rank == 0 else {}


def _missing(batches: list[list[Item]], known: Mapping[str, Any]) -> list[list[Item]]:
    left = [[item for item in batch if item.key not in known] for batch in batches]
    return [batch for batch in left if batch]


def _items(
    metric: Metric, rows: list[CandidateRow], *, needs_reference: bool, use_reference: bool
) -> tuple[list[dict[str, Item]], Counter[str]]:
    """Of each row, by name, what is to be scored; what is left out, counted."""
    items: list[dict[str, Item]] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        named = {}
        if needs_reference and not row.reference:
            left_out["no reference"] += len(row.candidates)
        else:
            shown = row.reference if use_reference else None
            for name, text in row.translations.items():
                named[name] = Item(row.source, text, shown, row.language_pair)
        items.append(named)
    if needs_reference and not any(items):
        raise UserError(
            f"--metric {metric.name} compares with a reference, and no row has one; add "
            f'"{REFERENCE}" to the rows, or take a metric that needs none, like kiwi.'
        )
    return items, left_out


def _unique(items: list[dict[str, Item]]) -> list[Item]:
    return list(dict.fromkeys(item for named in items for item in named.values()))
