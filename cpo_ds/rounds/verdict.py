"""What the watched metrics say of a round: its scores against the best of earlier rounds.

The rule. A round is compared with the best of all rounds before it, the start among them, on the
same watched texts. A metric *falls* if the round's score is lower than the best one's by more than
`watch.stop_if_falls_by`, and if paired bootstrap resampling finds the round worse in at least one
direction, at a p-value below 0.05 divided by the number of directions. If a deciding metric falls,
no further round begins. The best round is the one with the highest score by the first deciding
metric; the earlier one of equals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.evaluate.results import ALL, MEANS
from cpo_ds.evaluate.significance import LEVEL
from cpo_ds.rounds.layout import system_of
from cpo_ds.scoring.metrics import Metric


@dataclass(frozen=True)
class Watched:
    """A round's score by one metric, the mean of its directions.

    `gain` is the difference from the best of earlier rounds, positive if the round is better;
    `half_width` is half of the score's 95% interval. Both are None for the start, and the latter if
    nothing was resampled. `p_value` is the smallest of all directions.
    """

    metric: str
    score: float
    lower_is_better: bool
    gain: float | None = None
    half_width: float | None = None
    p_value: float | None = None
    is_worse: bool = False  # significantly, in at least one direction

    def falls(self, allowed: float) -> bool:
        """Whether the score falls by more than allowed, and significantly."""
        return self.gain is not None and self.gain < -allowed and self.is_worse

    @property
    def quality(self) -> float:
        """The score, with a minus sign if lower scores are better."""
        return -self.score if self.lower_is_better else self.score


@dataclass(frozen=True)
class Verdict:
    """All scores of a round's policy on the watched texts."""

    round: int
    compared_with: str | None  # the system that was the best before
    watched: Mapping[str, Watched]  # by metric: watching and selecting ones


def read_verdict(
    evaluation: Path, number: int, metrics: Sequence[Metric], best: str | None
) -> Verdict:
    """Reads a round's evaluation, which compares it with the system `best`.

    Raises `UserError` if the file is not of this round and these metrics.
    """
    try:
        values = json.loads(evaluation.read_text(encoding="utf-8"))
        watched = {metric.name: _watched(values, metric, number, best) for metric in metrics}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{evaluation} cannot be read ({error!r}); remove it, and give the same command again."
        ) from None
    return Verdict(number, best, watched)


def _watched(values: Any, metric: Metric, number: int, best: str | None) -> Watched:
    system, lower = system_of(number), facts_of(metric.name, metric.model).lower_is_better
    own = _score(values, metric.name, system)
    if best is None:
        return Watched(metric.name, own, lower)
    tests = [
        test
        for test in values["significance"]
        if test["metric"] == metric.name and test["system"] == system
    ]
    difference = own - _score(values, metric.name, best)
    halves = [float(test["interval"]) for test in tests if test["interval"] is not None]
    p_value = min(float(test["p_value"]) for test in tests)
    return Watched(
        metric.name,
        own,
        lower,
        gain=-difference if lower else difference,
        # The mean of directions that are independent of each other.
        half_width=math.hypot(*halves) / len(halves) if halves else None,
        p_value=p_value,
        is_worse=any(
            test["verdict"] == "worse" and test["p_value"] < LEVEL / len(tests) for test in tests
        ),
    )


def _score(values: Any, metric: str, system: str) -> float:
    """The score of a system: that of its only direction, or the mean of all."""
    scores = {
        result["language_pair"]: float(result["score"])
        for result in values["results"]
        if result["metric"] == metric and result["system"] == system
    }
    directions = [pair for pair in scores if pair not in MEANS]
    return scores[directions[0]] if len(directions) == 1 else scores[ALL]


def best_round(verdicts: Sequence[Verdict], metric: str) -> int:
    """The round with the best score by a metric; the earlier one of equals."""
    return max(
        verdicts, key=lambda verdict: (verdict.watched[metric].quality, -verdict.round)
    ).round


def reason_to_stop(
    verdict: Verdict, deciding: Sequence[Metric], allowed: float | None
) -> str | None:
    """A sentence on the metrics that fall; None if the rounds may go on.

    `allowed` is `watch.stop_if_falls_by`; None never stops.
    """
    if allowed is None or verdict.compared_with is None:
        return None
    falling = [
        verdict.watched[metric.name]
        for metric in deciding
        if verdict.watched[metric.name].falls(allowed)
    ]
    if not falling:
        return None
    said = [
        f"{one.metric} fell by {-(one.gain or 0):.4g} (p = {one.p_value:.3g})" for one in falling
    ]
    return f"round {verdict.round}: {', '.join(said)} against {verdict.compared_with}"
