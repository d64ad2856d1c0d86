"""The report's first section: the rows, and the models and precisions that scored them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from cpo_ds.data.candidates import REFERENCE
from cpo_ds.prepare.analyses.scored import Metric
from cpo_ds.prepare.analyses.view import View
from cpo_ds.report.page import Section, Table, count, join_names


def scores_section(view: View, file: str) -> Section:
    """The section on the rows of `file` and the records of their scores."""
    scored = view.scored
    systems = [system for system in scored.systems if system != REFERENCE]
    finding = (
        f"{file}: {count(scored.num_rows, 'row')}, {count(len(scored.directions), 'direction')}, "
        f"{count(len(systems), 'system')}{' and the reference' if scored.has_reference else ''}."
    )
    return Section(
        anchor="scores",
        title="How the scores were made",
        findings=(finding,),
        parts=(
            Table(
                "The record that the rows carry of each metric.",
                ("metric", "model", "precision", "sees the reference", "rows", "scores",
                 "scores missing", "further"),
                tuple((metric.name, _scorer_lines(metric)) for metric in scored.metrics),
                ("model", "precision", "sees the reference", "further"),
            ),
        ),
        notes=(*_cautions(scored.metrics), *_left_out(scored.skipped), *view.unshown),
    )  # fmt: skip


def _scorer_lines(metric: Metric) -> tuple[tuple[str, ...], ...]:
    """A line for each different record of a metric."""
    lines = []
    counts = (count(metric.num_scores), count(metric.num_missing))
    for text, rows in metric.scorers:
        record: dict[str, Any] = json.loads(text) if text else {}
        model = _plain(record.pop("model", None)) or "not recorded"
        dtype = _plain(record.pop("dtype", None)) or "–"
        for told in ("uses_reference", "lower_is_better"):
            record.pop(told, None)
        further = "; ".join(f"{key} {_plain(value)}" for key, value in record.items()) or "–"
        compares = "yes" if metric.uses_reference else "no"
        lines.append((model, dtype, compares, count(rows), *counts, further))
        counts = ("", "")  # counts of the metric, in its first line only
    return tuple(lines)


def _plain(value: Any) -> str:
    """A value of a record as text."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _cautions(metrics: tuple[Metric, ...]) -> list[str]:
    """Notes on metrics whose scores are easily misread."""
    compare = [metric.name for metric in metrics if metric.uses_reference]
    lexical = [metric.name for metric in metrics if metric.is_lexical]
    cautions = []
    if compare:
        verb = "compares" if len(compare) == 1 else "compare"
        cautions.append(
            f"{join_names(compare)} {verb} with the reference. The reference's own score by such a "
            "metric says nothing, so it is left out everywhere."
        )
    if lexical:
        verb = "measures" if len(lexical) == 1 else "measure"
        cautions.append(
            f"{join_names(lexical)} {verb} likeness to one reference, which is not a quality "
            "estimate: a good translation in other words scores low."
        )
    negated = [metric.name for metric in metrics if metric.is_negated]
    if negated:
        verb = "counts" if len(negated) == 1 else "count"
        cautions.append(
            f"{join_names(negated)} {verb} errors, so lower is better. Such scores have a minus "
            "sign on this page, and higher is better everywhere."
        )
    mixed = [metric.name for metric in metrics if len(metric.scorers) > 1]
    if mixed:
        cautions.append(
            f"Rows differ in how {join_names(mixed)} scored them (several lines above). Means over "
            "all rows mix these."
        )
    return cautions


def _left_out(skipped: Counter[str]) -> list[str]:
    """Notes on rows and scores that were left out."""
    return [f"Left out, {reason}: {count(number)}." for reason, number in skipped.most_common()]
