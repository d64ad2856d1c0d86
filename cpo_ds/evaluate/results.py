"""Scores of systems, and their means over directions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.evaluate.rows import ENGLISH
from cpo_ds.evaluate.signature import mean_signature

FROM_ENGLISH, INTO_ENGLISH, ALL = "en-xx", "xx-en", "all"
MEANS = (FROM_ENGLISH, INTO_ENGLISH, ALL)


@dataclass(frozen=True)
class Result:
    """A system's score by a metric in a direction, or the mean of its directions."""

    system: str
    language_pair: str  # a direction, or one of `MEANS`
    metric: str
    score: float
    segments: int
    signature: str  # all that the score can be computed from again
    interferes: bool = False  # whether the system was trained on pairs that a relative selected

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def groups_of(language_pair: str) -> list[str]:
    """The means that a direction counts in."""
    source, target = map(base_code, parse_direction(language_pair))
    ends = {FROM_ENGLISH: source in ENGLISH, INTO_ENGLISH: target in ENGLISH, ALL: True}
    return [group for group, counts in ends.items() if counts]


def means(results: Sequence[Result], directions: Sequence[str]) -> tuple[list[Result], list[str]]:
    """Plain means of directions by system and metric; also sentences on those that are left out.

    A system gets a mean if it has scores in all of the mean's `directions`, since means of
    different directions cannot be compared.
    """
    by_key: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        by_key.setdefault((result.metric, result.system), {})[result.language_pair] = result
    made: list[Result] = []
    notes: list[str] = []
    for group in MEANS:
        wanted = [pair for pair in directions if group in groups_of(pair)]
        for (metric, system), scored in by_key.items():
            parts = [scored[pair] for pair in wanted if pair in scored]
            if len(parts) < len(wanted):
                missing = ", ".join(pair for pair in wanted if pair not in scored)
                notes.append(f"no mean {group} of {system} by {metric}: it has no {missing}")
            elif parts:
                made.append(_mean(group, parts))
    return made, notes


def _mean(group: str, parts: Sequence[Result]) -> Result:
    first = parts[0]
    return Result(
        first.system,
        group,
        first.metric,
        statistics.fmean(part.score for part in parts),
        sum(part.segments for part in parts),
        mean_signature({part.language_pair: part.signature for part in parts}),
        any(part.interferes for part in parts),
    )
