"""Scores and gains in the lines of `methods.py`, by method, metric, direction. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from cpo_ds.evaluate.metric_facts import Facts, facts_of
from cpo_ds.evaluate.results import MEANS
from pages.text import Line

BASE = "base"
_ALL = "all"


def metrics(runs: Sequence[Line]) -> list[str]:
    """The metrics, those of the headline first."""
    names = list(dict.fromkeys(result["metric"] for run in runs for result in run["results"]))
    return sorted(names, key=lambda name: is_marked(runs, name))


def methods(runs: Sequence[Line]) -> list[str]:
    """The methods in the order of their runs, without the base."""
    return list(dict.fromkeys(run["method"] for run in runs if run["method"] != BASE))


def directions(runs: Sequence[Line]) -> list[str]:
    """The directions, without the means."""
    names = dict.fromkeys(r["language_pair"] for run in runs for r in run["results"])
    return [name for name in names if name not in MEANS]


def facts(line: Line, metric: str) -> Facts:
    """A metric's scale and family, by the model that the command names for it."""
    models = dict(option.partition("=")[::2] for option in line["metrics"])
    return facts_of(metric, models.get(metric) or None)


def label(line: Line, metric: str) -> str:
    """A metric's name in heads of tables."""
    return f"{metric} (lower is better)" if facts(line, metric).lower_is_better else metric


def score(run: Line, metric: str, pair: str = _ALL) -> float | None:
    """A run's score on the scale of tables; None if it has none."""
    for result in run["results"]:
        if (result["metric"], result["language_pair"]) == (metric, pair):
            return float(result["score"]) * facts(run, metric).scale
    return None


def scores(runs: Sequence[Line], method: str, metric: str, pair: str = _ALL) -> list[float]:
    """The scores of a method's runs, one for each seed."""
    values = [score(run, metric, pair) for run in runs if run["method"] == method]
    return [value for value in values if value is not None]


def gains(runs: Sequence[Line], method: str, metric: str) -> list[float]:
    """How much better than the base each of a method's runs is; negative if it is worse."""
    base = scores(runs, BASE, metric)
    sign = _sign(runs, metric)
    return [sign * (value - base[0]) for value in scores(runs, method, metric)] if base else []


def gains_over(runs: Sequence[Line], one: str, other: str, metric: str) -> list[float]:
    """How much better one method is than another, for each seed that both have."""
    sign = _sign(runs, metric)
    first, second = (
        {run["seed"]: score(run, metric) for run in runs if run["method"] == method}
        for method in (one, other)
    )
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    return [sign * (a - b) for a, b in pairs if a is not None and b is not None]


def _sign(runs: Sequence[Line], metric: str) -> int:
    """-1 for metrics of errors, of which less is better."""
    return -1 if facts(runs[0], metric).lower_is_better else 1


def mean_spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation over seeds, like `2.00 ± 0.10`; empty without values."""
    if not values:
        return ""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{deviation}"


def is_marked(runs: Sequence[Line], metric: str) -> bool:
    """Whether the guard keeps a metric out of the headline of any run."""
    return any(r["interferes"] for run in runs for r in run["results"] if r["metric"] == metric)
