"""Delta accuracy: how often people agree with a difference in a metric of this size.

The table is that of "Navigating the Metrics Maze"; the data file beside this module names it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.scoring.metrics import Metric, model_name

DATA = Path(__file__).with_name("delta_accuracy.json")


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def source() -> str:
    """The publication that the table is from; the data file says more."""
    return _table()["short"]


def agreement(metric: Metric, difference: float) -> str | None:
    """The share of decisions that people share, like `80-85%`; None for a metric without a table.

    `difference` is in the metric's own scores, of either sign.
    """
    steps = _table()["differences"].get(model_name(metric.model))
    if steps is None:
        return None
    size = round(abs(difference) * facts_of(metric.name, metric.model).scale, 6)
    levels = _table()["levels"]
    reached = sum(size >= step for step in steps)
    if reached == 0:
        return f"below {levels[0]}%"
    if reached == len(steps):
        return f"above {levels[reached - 1]}%"
    return f"{levels[reached - 1]}-{levels[reached]}%"
