"""Drops units that teach nothing or something wrong, counted by reason, and splits the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import regex

from cpo_ds.data.prompts import LANGUAGES, base_code, parse_direction
from cpo_ds.data.sameness import as_seen, is_blank
from cpo_ds.prepare.memory.codes import placeholders
from cpo_ds.prepare.memory.unit import EMPTY_SOURCE, EMPTY_TARGET, Unit
from cpo_ds.prepare.pairs.filters import MIN_BYTES, identifier_for
from cpo_ds.storage.results import content_key

Problem = Callable[[Unit], str | None]  # the reason to drop a unit, or None

_SHOWN = 60  # characters of a text in an example
_LETTER = regex.compile(r"\p{L}")
_NOT_A_LETTER = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


@dataclass
class Count:
    """How often something was met, and where first."""

    number: int = 0
    first: str = ""


@dataclass
class Tally:
    """Counts by reason, each with its first example."""

    counts: dict[str, Count] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Counts a unit or a draft."""
        count = self.counts.setdefault(reason, Count())
        count.number += 1
        count.first = count.first or example

    def lines(self, label: str) -> list[str]:
        """Lines to print, the largest counts first."""
        by_number = sorted(self.counts.items(), key=lambda item: -item[1].number)
        return [
            f"  {label}{reason}: {count.number}" + f" (first: {count.first})" * bool(count.first)
            for reason, count in by_number
        ]

    def record(self) -> dict[str, dict[str, int | str]]:
        """The counts as JSON."""
        return {
            reason: {"count": count.number, "first": count.first}
            for reason, count in self.counts.items()
        }


def example(unit: Unit) -> str:
    """A unit in a message: its place and its texts, cut."""
    texts = [shortened(text) for text in (unit.source, unit.target) if text]
    return ": ".join([unit.where, " | ".join(texts)]) if texts else unit.where


def shortened(text: str) -> str:
    """A text of one line, cut to what a message has room for."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def clean(units: Iterable[Unit], problems: Sequence[Problem], dropped: Tally) -> list[Unit]:
    """The units without a problem; counts the others under the first reason that applies."""
    kept = []
    for unit in units:
        reason = unit.problem or next((r for find in problems if (r := find(unit))), None)
        if reason is None:
            kept.append(unit)
        else:
            dropped.add(reason, example(unit))
    return kept


def problem_of_texts(unit: Unit) -> str | None:
    """Units whose texts are no translation: empty, of several lines, without letters, copies."""
    if is_blank(unit.source):
        return EMPTY_SOURCE
    if is_blank(unit.target):
        return EMPTY_TARGET
    if len(unit.source.splitlines()) > 1 or len(unit.target.splitlines()) > 1:
        return "text of several lines"
    if not (_LETTER.search(unit.source) and _LETTER.search(unit.target)):
        return "text without letters"
    same = same_words(unit.source) == same_words(unit.target)
    return "target equals source" if same else None


def problem_of_placeholders(unit: Unit) -> str | None:
    """Units whose target lacks a placeholder or a tag of the source, or has another."""
    source, target = placeholders(unit.source), placeholders(unit.target)
    if source - target:
        return "placeholder or tag lost"
    return "placeholder or tag that the source lacks" if target - source else None


def language_problem(confidence: float, directions: Iterable[str]) -> Problem:
    """Finds units with a text that py3langid takes for another language.

    It must give that language a probability of at least `confidence`; texts under 20 bytes pass.
    Placeholders and tags do not count. Raises `UserError` without py3langid, and for a language
    that it does not know.
    """
    by_direction = {name: tuple(map(base_code, parse_direction(name))) for name in directions}
    known = {f"{code} of {name}": code for name, codes in by_direction.items() for code in codes}
    identifier = identifier_for(known)

    def find(unit: Unit) -> str | None:
        codes = by_direction[unit.language_pair]
        for side, text, code in zip(
            ("source", "target"), (unit.source, unit.target), codes, strict=True
        ):
            words = regex.sub(r"<[^<>]*>|\{[^{}]*\}|%\S+", " ", text)
            if len(words.encode()) < MIN_BYTES:
                continue
            likeliest, probability = identifier.classify(words)
            if likeliest != code and probability >= confidence:
                return f"{side} not in {LANGUAGES.get(code, code)}"
        return None

    return find


def duplicate_problem() -> Problem:
    """Finds units whose direction, source and target look the same as those of one before."""
    seen: set[bytes] = set()

    def find(unit: Unit) -> str | None:
        texts = [unit.language_pair, *map(same_words, (unit.source, unit.target))]
        key = hashlib.blake2b("\0".join(texts).encode("utf-8"), digest_size=16).digest()
        if key in seen:
            return "duplicate"
        seen.add(key)
        return None

    return find


def same_words(text: str) -> str:
    """The text as it looks, with single spaces between words."""
    return " ".join(as_seen(text).split())


def notes_of(units: Sequence[Unit]) -> Tally:
    """What is to be said of units that are kept, such as several targets of one source."""
    notes = Tally()
    first: dict[tuple[str, str], Unit] = {}
    told: set[tuple[str, str]] = set()
    for unit in units:
        if unit.note:
            notes.add(unit.note, example(unit))
        place = (unit.language_pair, same_words(unit.source))
        if place not in first:
            first[place] = unit
        elif place not in told:
            told.add(place)
            notes.add(
                "sources with several targets, all kept",
                f"{example(first[place])} | {shortened(unit.target)}",
            )
    return notes


def limited(units: list[Unit], limit: int | None, seed: int, dropped: Tally) -> list[Unit]:
    """At most `limit` units, in their order, drawn by their texts alone. Counts the others."""
    if limit is None or len(units) <= limit:
        return units
    drawn = [_share(seed, "limit", unit.source, unit.target) for unit in units]
    highest = sorted(drawn)[limit - 1]
    dropped.add("beyond --limit", "")
    dropped.counts["beyond --limit"].number = len(units) - limit
    return [unit for unit, share in zip(units, drawn, strict=True) if share <= highest][:limit]


def is_held_out(unit: Unit, share: float, seed: int) -> bool:
    """Whether a unit is held out: by its source alone, so that no other unit changes it.

    Sources that differ in case, spaces and punctuation alone are on the same side, whatever their
    direction.
    """
    words = _NOT_A_LETTER.sub(" ", as_seen(unit.source).casefold()).strip()
    return _share(seed, "held out", words) < share


def _share(seed: int, *texts: str) -> float:
    """A number from 0 to 1 that the seed and the texts decide."""
    return int(content_key(str(seed), *texts)[:13], 16) / 16**13


def by_direction(units: Iterable[Unit]) -> dict[str, int]:
    """The number of units of each direction, the largest first."""
    return dict(Counter(unit.language_pair for unit in units).most_common())
