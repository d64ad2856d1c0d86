"""Judgements of people, in one form whatever tool they were made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.json_text import finite
from cpo_ds.errors import UserError


@dataclass(frozen=True)
class Judgement:
    """An annotator's score of a translation, from 0 to 100, and the errors marked in it."""

    annotator: str
    item: str
    system: str
    score: float
    minor: int
    major: int


class Key:
    """The key of a sample: which letter of an item is which system."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.sample = str(values["sample"])
        self.systems = tuple(values["systems"])
        self.items: dict[str, Mapping[str, Any]] = {k: dict(v) for k, v in values["items"].items()}
        self.directions = {item: values["direction"] for item, values in self.items.items()}
        self._letters = {item: dict(values["systems"]) for item, values in self.items.items()}

    def judgement(
        self,
        where: str,
        annotator: Any,
        item: Any,
        letter: Any,
        score: Any,
        severities: Iterable[Any],
    ) -> Judgement:
        """Makes a judgement of values as read from `where`. Raises `UserError` for wrong ones."""
        system = self._letters.get(str(item), {}).get(str(letter))
        if system is None:
            raise UserError(
                f"{where}: translation {letter!r} of item {item!r} is not in the sample "
                f"{self.sample}; give the key that was written together with these tasks."
            )
        number = finite(score)
        if number is None or not 0 <= number <= 100:
            raise UserError(
                f"{where}: item {item}, translation {letter}: the score is {score!r}; scores are "
                "numbers from 0 to 100."
            )
        marks = list(severities)
        major = sum(severity in ("major", "critical") for severity in marks)
        return Judgement(str(annotator), str(item), system, number, len(marks) - major, major)


def latest(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The judgements without those that the same annotator made anew later."""
    return list({(j.annotator, j.item, j.system): j for j in judgements}.values())


def complete_groups(
    judgements: Iterable[Judgement], key: Key
) -> tuple[dict[tuple[str, str], dict[str, Judgement]], list[str]]:
    """Judgements by annotator and item, those of all systems together; and what is missing.

    Items that an annotator judged in part are left out of the groups.
    """
    groups: dict[tuple[str, str], dict[str, Judgement]] = {}
    for judgement in judgements:
        groups.setdefault((judgement.annotator, judgement.item), {})[judgement.system] = judgement
    partly = [name for name, group in groups.items() if len(group) < len(key.systems)]
    untouched = set(key.items) - {item for _, item in groups}
    missing = []
    if partly:
        annotator, item = partly[0]
        missing.append(f"judged in part: {len(partly)} (the first: {item} by {annotator})")
    if untouched:
        missing.append(
            f"judged by nobody: {len(untouched)} of {len(key.items)} items (the first: "
            f"{min(untouched)})"
        )
    whole = {name: group for name, group in groups.items() if name not in set(partly)}
    return whole, missing
