"""The direction of a metric's scores, by the records that scored rows carry."""

from __future__ import annotations

from typing import Any


def lower_is_better(scorers: Any, metric: str) -> bool:
    """Whether a metric counts errors, according to the row's field `scorers` or the metric's name.

    MetricX does. Such scores are negated before they are compared or averaged.
    """
    record = scorers.get(metric) if isinstance(scorers, dict) else None
    record = record if isinstance(record, dict) else {}
    named = f"{metric} {record.get('model')}".lower()
    return bool(record.get("lower_is_better")) or "metricx" in named
