"""The outcome of an evaluation, and its form as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpo_ds.evaluate.results import ALL, FROM_ENGLISH, INTO_ENGLISH, MEANS, Result, groups_of

_COLUMNS = ("system", "language_pair", "metric", "score", "segments", "interferes", "signature")


@dataclass(frozen=True)
class Report:
    """Scores, and all that is said beside them."""

    results: list[Result]  # directions first, then means
    headline: tuple[str, ...]  # metrics that may stand in a headline
    notes: list[str] = field(default_factory=list)
    more: Mapping[str, Any] = field(default_factory=dict)  # further fields of the JSON file

    @property
    def metrics(self) -> list[str]:
        """The metrics, in the order of their results."""
        return list(dict.fromkeys(result.metric for result in self.results))

    @property
    def systems(self) -> list[str]:
        """The systems, in the order of their results."""
        return list(dict.fromkeys(result.system for result in self.results))

    @property
    def directions(self) -> list[str]:
        """The directions, without the means."""
        pairs = dict.fromkeys(result.language_pair for result in self.results)
        return [pair for pair in pairs if pair not in MEANS]

    @property
    def groups(self) -> list[str]:
        """What a headline shows: the only direction, or the means that differ from each other."""
        directions = self.directions
        if len(directions) == 1:
            return directions
        ends = [
            g for g in (FROM_ENGLISH, INTO_ENGLISH) if any(g in groups_of(d) for d in directions)
        ]
        if len(ends) == 1 and all(ends[0] in groups_of(d) for d in directions):
            return ends
        return [*ends, ALL]

    def scores(self, metric: str) -> dict[tuple[str, str], Result]:
        """The results of a metric by system and direction or mean."""
        return {(r.system, r.language_pair): r for r in self.results if r.metric == metric}

    def lines(self, metric: str) -> list[str]:
        """The directions, and the means if there is more than one direction."""
        scored = {pair for _, pair in self.scores(metric)}
        means = [group for group in MEANS if len(self.directions) > 1 and group in scored]
        return [*self.directions, *means]

    def as_json(self) -> str:
        """The JSON file: `results`, `headline`, `notes`, and further fields."""
        values = {
            "results": [result.as_json() for result in self.results],
            "headline": list(self.headline),
            "notes": self.notes,
            **self.more,
        }
        return json.dumps(values, ensure_ascii=False, indent=1) + "\n"

    def as_csv(self) -> str:
        """One line for each result."""
        return to_csv([result.as_json() for result in self.results], _COLUMNS)


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV, with a line of names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
