"""Selects pairs from rows with scores, and counts the rows and pairs that are dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import Languages
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs import filters
from cpo_ds.prepare.pairs.choose import (
    Pair,
    RatedRow,
    choose,
    human_preference,
    rate,
    scorer_name,
)
from cpo_ds.prepare.pairs.metric_choice import Mentions, MetricChoice, choose_metrics


@dataclass(frozen=True)
class Options:
    """Options of `cpo-ds prepare select`; None switches a filter off."""

    pairs: str  # best-worst, best-each, or a rule of `choose.worse_names`
    metrics: str | None  # like kiwi+xcomet; None: those that the rows suggest
    min_margin: float
    directions: tuple[str, ...] | None
    check_language: float | None
    max_length_ratio: float | None
    prompt_style: str
    languages: Languages = field(default_factory=dict)  # names besides the known ones, by code


@dataclass
class Tally:
    """Counts of a selection, which grow as its pairs are taken."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # rows and pairs, by reason
    pairs: Counter[str] = field(default_factory=Counter)  # by direction
    chosen: dict[str, Counter[str]] = field(default_factory=dict)  # systems, by direction
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    human_preferences: int = 0
    unscored_translations: int = 0
    references_left_out: int = 0
    scorers: dict[str, dict[str, Any]] = field(default_factory=dict)  # by metric: records, by JSON

    def add_row(self, rated: RatedRow) -> None:
        """Counts a row of the selected directions."""
        if not human_preference(rated.row):
            self.unscored_translations += rated.unscored
            self.references_left_out += rated.leaves_reference_out
        scorers = rated.row.values.get("scorers")
        if isinstance(scorers, dict):
            for metric, records in self.scorers.items():
                if record := scorers.get(metric):
                    records[json.dumps(record, sort_keys=True)] = record

    def add_pair(self, pair: Pair) -> None:
        """Counts a pair that is kept."""
        self.pairs[pair.direction] += 1
        self.human_preferences += pair.is_human
        self.chosen.setdefault(pair.direction, Counter())[pair.chosen_system] += 1
        self.rejected.setdefault(pair.direction, Counter())[pair.rejected_system] += 1


@dataclass(frozen=True)
class Selection:
    """The pairs of a selection in the input's order, to be taken once, and their counts so far."""

    choice: MetricChoice
    pairs: Iterator[Pair]
    tally: Tally


def select(rows: Iterable[CandidateRow], options: Options) -> Selection:
    """Picks pairs and filters them, reading the rows several times and keeping none.

    Raises `UserError` for malformed rows or unknown directions, also as the pairs are taken.
    """
    # Read the rows a first time, for their directions and metrics.
    directions: Counter[str] = Counter()
    mentions = Mentions()
    for row in rows:
        directions[row.language_pair] += 1
        if row.language_pair in (options.directions or directions):
            mentions.add(row)
    known = sorted(directions)
    for direction in options.directions or ():
        if direction not in known:
            raise UserError(
                f"--directions: {direction} is not in the rows; choose among those that are: "
                f"{', '.join(known)}."
            )

    # Choose the metrics and make the filters; some of these read the rows of the directions again.
    wanted = _RowsOf(rows, frozenset(options.directions or known))
    choice = choose_metrics(options.metrics, wanted, mentions)
    keep = _filters(options, wanted)
    tally = Tally(rows=directions.total(), scorers={metric: {} for metric in choice.metrics})
    tally.dropped["direction not selected"] = directions.total() - mentions.rows
    return Selection(choice, _pairs(wanted, choice, options, keep, tally), tally)


@dataclass(frozen=True)
class _RowsOf:
    """The rows of some directions, read anew in each iteration."""

    rows: Iterable[CandidateRow]
    directions: Collection[str]

    def __iter__(self) -> Iterator[CandidateRow]:
        return (row for row in self.rows if row.language_pair in self.directions)


def _pairs(
    rows: Iterable[CandidateRow],
    choice: MetricChoice,
    options: Options,
    keep: Sequence[filters.Filter],
    tally: Tally,
) -> Iterator[Pair]:
    """Yields the pairs that all filters keep, and counts rows and pairs."""
    for row in rows:
        rated = rate(row, choice.metrics)
        tally.add_row(rated)
        chosen = choose(rated, options.pairs, options.min_margin)
        if isinstance(chosen, str):
            tally.dropped[chosen] += 1
            continue
        for pair in chosen:
            reason = filters.first_reason(pair, keep)
            if reason:
                tally.dropped[reason] += 1
            else:
                tally.add_pair(pair)
                yield pair


def _filters(options: Options, rows: _RowsOf) -> list[filters.Filter]:
    """The filters that the options switch on, in the order in which they are asked."""
    chosen: list[filters.Filter] = [filters.not_equal]
    if options.min_margin:
        chosen.append(filters.margin_filter(options.min_margin))
    if options.check_language is not None:
        directions = sorted(rows.directions)
        chosen.append(filters.language_filter(options.check_language, directions))
    if options.max_length_ratio is not None:
        medians = filters.median_ratios(rows)
        chosen.append(filters.length_filter(options.max_length_ratio, medians))
    return [*chosen, filters.duplicate_filter()]


class Summary(TypedDict):
    """The counts of a selection, as `summary.json` has them."""

    metrics: list[str]
    metrics_because: str | None
    metrics_left_out: dict[str, str]
    scorer: str
    scorers: dict[str, list[Any]]  # by metric: the different records in the rows
    pairs: dict[str, int]  # by direction
    human_preferences: int
    dropped: dict[str, int]  # by reason
    unscored_translations: int
    references_left_out: int
    chosen: dict[str, dict[str, int]]  # by direction and system
    rejected: dict[str, dict[str, int]]


def summarize(selection: Selection) -> Summary:
    """The counts of a selection whose pairs have all been taken."""
    choice, tally = selection.choice, selection.tally
    return {
        "metrics": list(choice.metrics),
        "metrics_because": choice.because,
        "metrics_left_out": dict(choice.left_out),
        "scorer": scorer_name(choice.metrics),
        "scorers": {metric: list(records.values()) for metric, records in tally.scorers.items()},
        "pairs": dict(sorted(tally.pairs.items())),
        "human_preferences": tally.human_preferences,
        "dropped": dict((+tally.dropped).most_common()),  # + leaves zeros out
        "unscored_translations": tally.unscored_translations,
        "references_left_out": tally.references_left_out,
        "chosen": _most_common(tally.chosen),
        "rejected": _most_common(tally.rejected),
    }


def _most_common(by_direction: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """The counts with directions in order of name and the largest counts first."""
    return {name: dict(counts.most_common()) for name, counts in sorted(by_direction.items())}
