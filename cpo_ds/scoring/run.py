"""Scores rows by a metric on all ranks.

Scores are kept as they are made, so after an interruption only the missing ones are computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from cpo_ds.data.candidates import REFERENCE, CandidateRow
from cpo_ds.errors import UserError
from cpo_ds.ranks.progress import Progress, duration
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.scoring import lexical
from cpo_ds.scoring.metrics import Metric
from cpo_ds.scoring.plan import Item, Score, joint_batches, share
from cpo_ds.storage.results import ResultFiles

if TYPE_CHECKING:
    from cpo_ds.scoring.comet_scorer import CometScorer
    from cpo_ds.scoring.metricx import MetricXScorer

_LEXICAL_BATCH = 2**15  # characters


@dataclass(frozen=True)
class Scoring:
    """Options of scoring, as on the command line."""

    dtype: str = "float32"
    shard: bool = False
    use_reference: bool = False
    batch_tokens: int = 4096


class ScorerRecord(TypedDict, total=False):
    """How scores were made: the entry of a metric under `scorers` in each row."""

    model: str
    fingerprint: str
    dtype: str
    uses_reference: bool
    version: str
    lower_is_better: bool  # True, or left out
    note: str


@dataclass(frozen=True)
class MetricScores:
    """The scores of all rows by one metric. On ranks other than 0, `results` is empty."""

    record: ScorerRecord
    results: dict[str, Any]  # by key of the item: [score, error spans or None]
    items: list[dict[str, Item]]  # for each row, by name of the translation
    left_out: Counter[str] = field(default_factory=Counter)  # translations, by reason


def score_metric(
    metric: Metric, rows: list[CandidateRow], cache: Path, scoring: Scoring, ranks: Ranks
) -> MetricScores:
    """Scores all translations of all rows by one metric. All ranks call it, with the same rows.

    Raises `UserError` on all ranks if the metric's model is missing or there is nothing to score.
    """
    if metric.is_lexical:
        return _score_lexical(metric, rows, cache, ranks)
    return _score_by_model(metric, rows, cache, scoring, ranks)


def _score_lexical(
    metric: Metric, rows: list[CandidateRow], cache: Path, ranks: Ranks
) -> MetricScores:
    """Scores by chrF or BLEU."""
    items, left_out = _items(metric, rows, needs_reference=True, use_reference=True)
    record: ScorerRecord = {
        "model": metric.model,
        "uses_reference": True,
        "version": lexical.signature(metric.model),
        "note": "likeness to one reference, not a quality estimate",
    }
    ranks.say(f"{metric.name}: {record['note']}")
    batches = joint_batches(_unique(items), len, _LEXICAL_BATCH)

    def score(batch: list[Item]) -> list[Score]:
        return [(value, None) for value in lexical.score(metric.model, batch)]

    kept = ResultFiles(cache, metric.model, ranks.rank)
    results = _score_all([batches], score, kept, ranks, metric.name)
    return MetricScores(record, results, items, left_out)


def _load(
    metric: Metric, scoring: Scoring, ranks: Ranks
) -> tuple[str, CometScorer | MetricXScorer]:
    """The fingerprint of a metric's model, and the scorer that computes by it."""
    # Imported late: chrF and BLEU run without COMET's environment, and MetricX without COMET. The
    # first rank of each host finds the files, or downloads them for all.
    if metric.is_metricx:
        from cpo_ds.scoring.metricx import MetricXScorer
        from cpo_ds.scoring.metricx_files import find_metricx

        files = ranks.on_each_host(lambda: find_metricx(metric))
        ranks.say(f"{metric.name}: loading {files.folder}")
        return files.fingerprint, ranks.everywhere(
            lambda: MetricXScorer(
                files, ranks, scoring.dtype, shard=scoring.shard, is_estimate=metric.is_estimate
            )
        )
    from cpo_ds.scoring.checkpoint import find_checkpoint
    from cpo_ds.scoring.comet_scorer import CometScorer

    checkpoint = ranks.on_each_host(lambda: find_checkpoint(metric))
    ranks.say(f"{metric.name}: loading {checkpoint.path}")
    return checkpoint.fingerprint, ranks.everywhere(
        lambda: CometScorer(checkpoint, ranks, scoring.dtype, shard=scoring.shard)
    )


def _score_by_model(
    metric: Metric, rows: list[CandidateRow], cache: Path, scoring: Scoring, ranks: Ranks
) -> MetricScores:
    """Scores by a COMET or MetricX model."""
    fingerprint, scorer = _load(metric, scoring, ranks)

    # Collect the translations to score, and warn about those that are cut off.
    uses_reference = scorer.needs_reference or (scoring.use_reference and scorer.can_use_reference)
    items, left_out = _items(
        metric, rows, needs_reference=scorer.needs_reference, use_reference=uses_reference
    )
    unique = _unique(items)
    texts = sorted({text for item in unique for text in item.texts})
    count = dict(zip(texts, scorer.count_tokens(texts), strict=True)).__getitem__
    longer = sum(scorer.cuts_off(item, count) for item in unique)
    if longer:
        ranks.say(
            f"{metric.name}: {longer} translations are too long together with the texts that they "
            f"are compared with: {scorer.program} cuts them off at {scorer.longest} tokens"
        )

    # Ranks of a split model compute in step. An item with a reference takes more passes through
    # the model than one without, so the two kinds never share a batch.
    groups = []
    for has_reference in (True, False):
        alike = [item for item in unique if (item.reference is not None) == has_reference]
        groups.append(scorer.batches(alike, count, scoring.batch_tokens))

    # Score. The name of the kept results holds all that decides a score besides the texts.
    kept = ResultFiles(cache, f"{fingerprint}-{scoring.dtype}", ranks.rank)
    results = _score_all(groups, scorer.score, kept, ranks, metric.name, in_step=scoring.shard)
    record: ScorerRecord = {
        "model": metric.model,
        "fingerprint": fingerprint,
        "dtype": scoring.dtype,
        "uses_reference": uses_reference,
        "version": scorer.version,
    }
    if metric.is_metricx:
        record["lower_is_better"] = True
    return MetricScores(record, results, items, left_out)


def _score_all(
    groups: Sequence[list[list[Item]]],
    score: Callable[[list[Item]], Sequence[Score]],
    kept: ResultFiles,
    ranks: Ranks,
    name: str,
    *,
    in_step: bool = False,
) -> dict[str, Any]:
    """Scores the items without a kept score; returns all results by key on rank 0, {} elsewhere.

    With `in_step`, all ranks call `score` equally often in each group.
    """
    # Drop what an earlier run scored. All ranks read before any of them adds new scores.
    known = kept.read()
    ranks.gather(None)
    missing = [_missing(batches, known) for batches in groups]
    shares = [share(batches, ranks.rank, ranks.world_size) for batches in missing]

    # Score this rank's share. A rank without a batch left repeats one to keep in step.
    own = [batch for batches in shares for batch in batches if batch]
    num_missing = sum(len(batch) for batches in missing for batch in batches)
    line = f"{name}: {{done}} of {{total}} translations scored"
    progress = Progress(line, num_missing, sum(map(len, own)), len(own), ranks.say)
    for batches, own_batches in zip(missing, shares, strict=True):
        for batch in own_batches:
            results = score(batch or batches[-1]) if batch or in_step else []
            if batch:
                kept.add({item.key: list(r) for item, r in zip(batch, results, strict=True)})
                progress.advance(len(batch), 1)

    # Wait for the other ranks' scores, then report.
    ranks.gather(None)
    rate = f", {num_missing / progress.seconds:.0f} a second" if num_missing else ""
    before = sum(len(batch) for batches in groups for batch in batches) - num_missing
    note = f"; {before} were scored before" if before else ""
    took = duration(progress.seconds)
    ranks.say(f"{name}: {num_missing} different translations scored in {took}{rate}{note}")
    return kept.read() if ranks.rank == 0 else {}


def _missing(batches: list[list[Item]], known: Mapping[str, Any]) -> list[list[Item]]:
    """The batches without the items whose score is known."""
    left = [[item for item in batch if item.key not in known] for batch in batches]
    return [batch for batch in left if batch]


def _items(
    metric: Metric, rows: list[CandidateRow], *, needs_reference: bool, use_reference: bool
) -> tuple[list[dict[str, Item]], Counter[str]]:
    """The items to score of each row, by name, and counts of those that are left out.

    Raises `UserError` if the metric needs a reference and no row has one.
    """
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
    """Each different item once, in the order of the rows."""
    return list(dict.fromkeys(item for named in items for item in named.values()))
