"""Means, ranks and win ratios of human judgements, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from cpo_ds.evaluate.human.agreement import krippendorff_alpha, preference_agreement
from cpo_ds.evaluate.human.judgements import Judgement, Key

ALL = "all"  # all directions together
CONFIDENCE = 0.95
MEASURES = ("score", "rank", "win_ratio", "minor", "major")

Groups = Mapping[tuple[str, str], Mapping[str, Judgement]]  # by annotator and item, then system
Array = np.ndarray[Any, np.dtype[np.float64]]


def ranks_of(scores: Sequence[float]) -> list[float]:
    """The rank of each score, 1 for the highest; equal scores share the mean of their ranks."""
    return [
        1 + sum(other > own for other in scores) + (sum(other == own for other in scores) - 1) / 2
        for own in scores
    ]


def win_ratios(scores: Sequence[float]) -> list[float]:
    """The share of the other systems that each does not lose to: a tie counts for both."""
    return [
        sum(other <= own for place, other in enumerate(scores) if place != index)
        / (len(scores) - 1)
        for index, own in enumerate(scores)
    ]


def tally(groups: Groups, key: Key, *, samples: int, seed: int) -> dict[str, Any]:
    """All numbers, as in the JSON file, for each direction and for all together.

    Ranks and wins compare scores that one annotator gave within one item. If several annotators
    judged an item, their numbers are averaged first, so that each item counts once.
    """
    directions = sorted({key.directions[item] for _, item in groups})
    selections = {
        name: [i for i in key.directions if key.directions[i] == name] for name in directions
    }
    if len(directions) > 1:
        selections[ALL] = list(key.directions)
    results, comparisons, agreement = [], [], []
    for name, items in selections.items():
        own = _by_item(groups, set(items))
        values = _values(own, key.systems)
        draws = _bootstrap(len(values), samples, seed)
        results += _results(name, values, draws, key.systems)
        comparisons += _comparisons(name, values, own, draws, key.systems)
        agreement.append({"direction": name, **_agreement(own)})
    annotators: dict[str, int] = {}
    for annotator, _ in groups:
        annotators[annotator] = annotators.get(annotator, 0) + 1
    return {
        "sample": key.sample,
        "items": len({item for _, item in groups}),
        "items_of_annotators": annotators,
        "confidence": CONFIDENCE,
        "bootstrap": {"samples": samples, "seed": seed},
        "results": results,
        "comparisons": comparisons,
        "agreement": agreement,
    }


def _by_item(groups: Groups, items: set[str]) -> list[list[Mapping[str, Judgement]]]:
    """For each judged item, the judgements of each annotator; in the order of the items' names."""
    own: dict[str, list[Mapping[str, Judgement]]] = {}
    for (_, item), group in sorted(groups.items()):
        if item in items:
            own.setdefault(item, []).append(group)
    return [own[item] for item in sorted(own)]


def _values(own: Sequence[Sequence[Mapping[str, Judgement]]], systems: Sequence[str]) -> Array:
    """[items, measures, systems], averaged over the annotators of each item."""
    means = []
    for annotators in own:
        tables = []
        for group in annotators:
            judged = [group[system] for system in systems]
            scores = [judgement.score for judgement in judged]
            counts = [[float(getattr(j, name)) for j in judged] for name in ("minor", "major")]
            tables.append([scores, ranks_of(scores), win_ratios(scores), *counts])
        means.append(np.mean(tables, axis=0))
    return np.array(means, dtype=np.float64)


def _bootstrap(num_items: int, samples: int, seed: int) -> Array:
    """[samples, items]: the share of each item in samples drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=samples) / num_items


def _interval(draws: Array, values: Array) -> tuple[float, float]:
    """The percentile interval of a mean over items."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws @ values, (tail, 1 - tail))
    return float(low), float(high)


def _results(
    direction: str, values: Array, draws: Array, systems: Sequence[str]
) -> list[dict[str, Any]]:
    """Each measure of each system with its interval; the highest score first."""
    results = []
    for column, system in enumerate(systems):
        result: dict[str, Any] = {"direction": direction, "system": system, "items": len(values)}
        for row, measure in enumerate(MEASURES):
            low, high = _interval(draws, values[:, row, column])
            mean = float(values[:, row, column].mean())
            result[measure] = {"mean": mean, "low": low, "high": high}
        results.append(result)
    return sorted(results, key=lambda result: -result["score"]["mean"])


def _comparisons(
    direction: str,
    values: Array,
    own: Sequence[Sequence[Mapping[str, Judgement]]],
    draws: Array,
    systems: Sequence[str],
) -> list[dict[str, Any]]:
    """The mean difference of each two systems, by paired bootstrap, and how often each won."""
    comparisons = []
    for a, b in combinations(range(len(systems)), 2):
        differences = values[:, 0, a] - values[:, 0, b]
        low, high = _interval(draws, differences)
        judged = [(g[systems[a]].score, g[systems[b]].score) for groups in own for g in groups]
        comparisons.append(
            {
                "direction": direction,
                "systems": [systems[a], systems[b]],
                "difference": {"mean": float(differences.mean()), "low": low, "high": high},
                "wins": sum(first > second for first, second in judged),
                "ties": sum(first == second for first, second in judged),
                "losses": sum(first < second for first, second in judged),
            }
        )
    return comparisons


def _agreement(own: Sequence[Sequence[Mapping[str, Judgement]]]) -> dict[str, Any]:
    """The agreement on items that several annotators judged."""
    twice = [annotators for annotators in own if len(annotators) > 1]
    units = [[group[system].score for group in groups] for groups in twice for system in groups[0]]
    scores = [[{s: j.score for s, j in group.items()} for group in groups] for groups in twice]
    equal, total = preference_agreement(scores)
    return {
        "items": len(twice),
        "krippendorff_alpha": krippendorff_alpha(units),
        "equal_preferences": equal / total if total else None,
    }
