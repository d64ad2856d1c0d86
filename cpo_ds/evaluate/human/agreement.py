"""How far annotators agree: Krippendorff's alpha of scores, and shares of equal preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for values on an interval scale (2011, "Computing Krippendorff's
    Alpha-Reliability").

    A unit holds the values that different people gave to the same thing; those with a single value
    do not count. 1 is perfect agreement, 0 that of chance. None if nothing was judged twice, or all
    values are equal.
    """
    pairable = [values for values in units if len(values) > 1]
    number = sum(map(len, pairable))
    observed = sum(_squared_differences(values) / (len(values) - 1) for values in pairable)
    expected = _squared_differences([value for values in pairable for value in values])
    return 1 - (number - 1) * observed / expected if expected else None


def _squared_differences(values: Sequence[float]) -> float:
    """The sum of squared differences over all ordered pairs."""
    mean = sum(values) / len(values) if values else 0.0
    return 2 * len(values) * sum((value - mean) ** 2 for value in values)


def preference_agreement(
    by_annotator: Iterable[Sequence[Mapping[str, float]]],
) -> tuple[int, int]:
    """(equal, all) preferences of two annotators who judged the same item.

    An entry holds the scores of an item by system, one mapping for each annotator. A preference is
    which of two systems has the higher score, or that neither has.
    """
    equal = total = 0
    for annotators in by_annotator:
        for one, other in combinations(annotators, 2):
            for first, second in combinations(one, 2):
                total += 1
                equal += _sign(one[first] - one[second]) == _sign(other[first] - other[second])
    return equal, total


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
