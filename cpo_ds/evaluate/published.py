"""Published scores of well-known systems, to be read beside one's own.

They hold for the test sets that they name, and cannot be computed again here: they are no results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpo_ds.evaluate.results import MEANS
from cpo_ds.evaluate.tables import NO_SCORE, Cell, Table
from cpo_ds.scoring.metrics import Metric, model_name

DATA = Path(__file__).with_name("published.json")


def published_rows(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """The published scores by these metrics, each with its test set and its source."""
    content = json.loads(DATA.read_text(encoding="utf-8"))
    models = {metric.model for metric in metrics}
    return [
        row | {"source": content["sources"][row["source"]]}
        for row in content["rows"]
        if model_name(row["metric"]) in models
    ]


def published_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """A table for each metric and test set."""
    keys = dict.fromkeys((row["metric"], row["test_set"]) for row in rows)
    return [
        _table(metric, test_set, [r for r in rows if (r["metric"], r["test_set"]) == key])
        for key in keys
        for metric, test_set in [key]
    ]


def _table(metric: str, test_set: str, rows: Sequence[dict[str, Any]]) -> Table:
    scores = {(row["system"], row["language_pair"]): row["score"] for row in rows}
    systems = list(dict.fromkeys(system for system, _ in scores))
    pairs = list(dict.fromkeys(pair for _, pair in scores if pair not in MEANS))
    pairs += [group for group in MEANS if any(pair == group for _, pair in scores)]
    cells = [
        (
            Cell(system),
            *(
                Cell(f"{scores[system, pair]:.2f}" if (system, pair) in scores else NO_SCORE)
                for pair in pairs
            ),
        )
        for system in systems
    ]
    sources = dict.fromkeys(row["source"] for row in rows)
    return Table(f"published, {metric} ({test_set})", ("system", *pairs), cells, tuple(sources))
