"""Chooses and rejects a translation of each row, by scores or by a person's preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.candidates import REFERENCE, CandidateRow
from cpo_ds.data.formats import compares_with_reference
from cpo_ds.data.json_text import finite, is_unicode
from cpo_ds.data.sameness import best_and_worst, distinct, same_score
from cpo_ds.data.scorers import lower_is_better
from cpo_ds.errors import UserError
from cpo_ds.scoring.metrics import short_name

BEST_WORST, BEST_EACH = "best-worst", "best-each"
WORST, ALL, SPREAD = "worst", "all", "spread"  # rules of `worse_names`
_SPREAD = 3  # translations that `spread` takes
_LARGEST = 1e100  # of a score: squares and sums of scores must be finite, too
EQUAL, SAME = "equal scores", "chosen equals rejected"  # why there is no pair


@dataclass(frozen=True)
class RatedRow:
    """A row and its scores by the metrics that choose.

    `means` holds the mean score of each translation that every metric scores. Its order breaks
    ties: the reference first, then as in the row. `unscored` counts the other translations. If a
    metric compares with the reference, the reference is left out of both. In all of them higher is
    better: scores of metrics that count errors are negated.
    """

    row: CandidateRow
    scores: Mapping[str, Mapping[str, float]]  # {metric: {name: score}}
    means: Mapping[str, float]
    unscored: int
    leaves_reference_out: bool


@dataclass(frozen=True)
class Pair:
    """A preference between two translations of a row, given by their names in the row."""

    rated: RatedRow
    chosen_system: str
    rejected_system: str
    is_human: bool = False

    @property
    def direction(self) -> str:
        """The translation direction, like `"en-de"`."""
        return self.rated.row.language_pair

    @property
    def source(self) -> str:
        """The source text."""
        return self.rated.row.source

    @property
    def chosen(self) -> str:
        """The text to prefer."""
        return self.rated.row.translations[self.chosen_system]

    @property
    def rejected(self) -> str:
        """The text to avoid."""
        return self.rated.row.translations[self.rejected_system]

    @property
    def means(self) -> tuple[float, float] | None:
        """The mean scores of the chosen and the rejected text; None unless both have one."""
        means = self.rated.means
        if self.chosen_system not in means or self.rejected_system not in means:
            return None
        return means[self.chosen_system], means[self.rejected_system]

    @property
    def margin(self) -> float | None:
        """The chosen text's mean score minus the rejected one's; None without scores."""
        return None if self.means is None else self.means[0] - self.means[1]

    @property
    def has_equal_scores(self) -> bool:
        """Whether both mean scores exist and differ by no more than rounding."""
        return self.means is not None and same_score(*self.means)


def scorer_name(metrics: Sequence[str]) -> str:
    """The name of the metrics' mean in `data.scorer`, like `kiwi_xcomet`."""
    names = [short_name(metric) for metric in metrics]
    return "kiwi_xcomet" if sorted(names) == ["kiwi", "xcomet"] else "_".join(names)


def rate(row: CandidateRow, metrics: Sequence[str]) -> RatedRow:
    """Rates a row by the mean of metrics.

    Raises `UserError`, naming the line, for a score that is not a finite number.
    """
    # A metric that compares with the reference cannot judge the reference.
    names = list(row.translations)
    scorers = row.values.get("scorers")
    leaves_out = any(compares_with_reference(scorers, metric) for metric in metrics)
    leaves_out &= row.reference is not None
    if leaves_out:
        names.remove(REFERENCE)

    # Only translations with a score by every metric have a mean.
    all_scores = scores_of(row)
    scores: dict[str, dict[str, float]] = {}
    for metric in metrics:
        values = all_scores.get(metric, {})
        scored = [name for name in names if values.get(name) is not None]
        sign = -1 if lower_is_better(scorers, metric) else 1
        scores[metric] = {name: sign * _number(row, metric, name, values[name]) for name in scored}
    means = {
        name: sum(values[name] for values in scores.values()) / len(scores)
        for name in names
        if scores and all(name in values for values in scores.values())
    }
    return RatedRow(row, scores, means, len(names) - len(means), leaves_out)


def scores_of(row: CandidateRow) -> dict[str, dict[str, Any]]:
    """The scores of a row, `{metric: {name: score}}`. Raises `UserError` for another shape.

    Metrics that are null are left out: in parquet files every row has the metrics of all rows.
    """
    scores = row.values.get("scores") or {}
    if not isinstance(scores, dict) or not all(
        values is None or isinstance(values, dict) for values in scores.values()
    ):
        raise UserError(
            f"{row.where}: field scores is not an object of objects, "
            '{"metric": {"name": number}}, as `cpo-ds prepare score` writes it.'
        )
    for metric in scores:
        if not is_unicode(metric):
            raise UserError(
                f"{row.where}: field scores has a metric {metric!r} with half of a surrogate pair; "
                "rename it."
            )
    return {metric: values for metric, values in scores.items() if values}


def _number(row: CandidateRow, metric: str, name: str, value: Any) -> float:
    """A score as a finite number. Raises `UserError` if it is none."""
    if (number := finite(value)) is None:
        raise UserError(
            f"{row.where}: field scores.{metric}.{name} is not a finite number but {value!r:.40}; "
            "correct it, or remove that score."
        )
    if abs(number) > _LARGEST:
        raise UserError(
            f"{row.where}: field scores.{metric}.{name} is {number:g}, too large for a score; "
            "correct it, or remove that score."
        )
    return number


def human_preference(row: CandidateRow) -> tuple[str, str] | None:
    """The names of the translations that a person prefers and rejects; None without a preference.

    The row has them as `{"preference": {"chosen": name, "rejected": name}}`. Raises `UserError` if
    they are not two translations of the row.
    """
    preference = row.values.get("preference")
    if preference is None:
        return None
    if not isinstance(preference, dict):
        raise UserError(
            f"{row.where}: field preference is not an object but {preference!r:.40}; write "
            '{"chosen": name, "rejected": name}.'
        )
    # Both names must be translations of the row, and different.
    names = list(row.translations)
    for side in ("chosen", "rejected"):
        if preference.get(side) not in names:
            raise UserError(
                f"{row.where}: field preference.{side} is {preference.get(side)!r:.40}; write one "
                f"of the row's translations: {', '.join(names)}."
            )
    chosen, rejected = preference["chosen"], preference["rejected"]
    if chosen == rejected:
        raise UserError(
            f"{row.where}: field preference names {chosen!r} as chosen and as rejected; correct "
            "it, or remove the field."
        )
    return chosen, rejected


def choose(rated: RatedRow, pairing: str, least_margin: float = 0.0) -> list[Pair] | str:
    """The pairs of a row, all with the same chosen text, or the reason why it has none.

    `pairing` is `best-worst`, which gives one pair, `best-each`, the best against each other
    translation, or a rule of `worse_names`, which chooses among those that are worse by
    `least_margin`. A person's preference goes before the scores. Of equal scores and of equal texts
    the first counts.
    """
    preference = human_preference(rated.row)
    if preference:
        return [Pair(rated, *preference, is_human=True)]
    if len(rated.means) < 2:
        return "fewer than two scored translations"
    names = distinct(rated.means, rated.row.translations)
    if len(names) < 2:
        return SAME
    picked = best_and_worst({name: rated.means[name] for name in names})
    if picked is None:
        return EQUAL
    best, worst = picked
    if pairing == BEST_WORST:
        return [Pair(rated, best, worst)]
    if pairing == BEST_EACH:
        return [Pair(rated, best, other) for other in names if other != best]
    means = {name: rated.means[name] for name in names}
    # Without any, the filters name the reason to drop the pair that comes closest.
    others = worse_names(means, best, pairing, least_margin) or [worst]
    return [Pair(rated, best, other) for other in others]


def is_rule(text: str) -> bool:
    """Whether `worse_names` takes it as a rule."""
    return text in (WORST, ALL, SPREAD) or (text.isdecimal() and int(text) > 0)


def worse_names(
    means: Mapping[str, float], best: str, rule: str, least_margin: float = 0.0
) -> list[str]:
    """The translations to reject beside the best one, from the worst up.

    Only those count whose means are lower by more than rounding, and by `least_margin` at least.
    `rule` is `worst`, `all`, `spread` (the worst, the best, and one between them), or a number:
    so many of the worst.
    """
    worse = [
        name
        for name, mean in means.items()
        if not same_score(mean, means[best]) and means[best] - mean >= least_margin
    ]
    worse.sort(key=means.__getitem__)
    if rule == SPREAD and len(worse) > _SPREAD:
        steps = [round(step * (len(worse) - 1) / (_SPREAD - 1)) for step in range(_SPREAD)]
        return [worse[step] for step in steps]
    counts = {WORST: 1, ALL: len(worse), SPREAD: _SPREAD}
    return worse[: counts.get(rule) or int(rule)] if worse else []
