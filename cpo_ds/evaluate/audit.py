"""Faults of translations that metrics forgive: empty, copied, repeated, in a wrong language."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import regex

from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.data.sameness import as_seen
from cpo_ds.evaluate.language_check import IsIn, language_check
from cpo_ds.evaluate.tables import Cell, Table

FAULTS = ("empty", "copied source", "wrong language", "repetition", "off length")
OFF_LENGTH = 2  # times longer or shorter than usual for the source
_SHOWN = 20  # places of each fault
# A part of 4 or more characters, or of 2 or more in scripts of syllables and words, four times.
_REPEATED = regex.compile(r"(.{4,80}?|[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]{2,80}?)\1{3,}")
_WORD = regex.compile(r"[\p{L}\p{N}]")


@dataclass(frozen=True)
class AuditedText:
    """A translation with its source, and the reference if there is one."""

    system: str
    language_pair: str
    source: str
    text: str
    reference: str | None
    where: str  # like "test.jsonl, line 12"


@dataclass
class Audit:
    """Counts of a system's faults, in one direction or in all."""

    system: str
    language_pair: str
    texts: int = 0
    characters: int = 0
    source_characters: int = 0
    reference_characters: int = 0  # of those texts that have a reference
    compared_characters: int = 0  # of the texts themselves, beside these references
    faults: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)  # by fault, the first ones

    @property
    def length_ratio(self) -> float:
        """Characters for each of the references, or of the sources if there are no references."""
        if self.reference_characters:
            return self.compared_characters / self.reference_characters
        return self.characters / max(1, self.source_characters)

    def count(self, text: AuditedText, faults: Iterable[str]) -> None:
        """Adds a text and its faults."""
        self.texts += 1
        self.characters += len(text.text)
        self.source_characters += len(text.source)
        if text.reference is not None:
            self.reference_characters += len(text.reference)
            self.compared_characters += len(text.text)
        for fault in faults:
            self.faults[fault] += 1
            places = self.places.setdefault(fault, [])
            if len(places) < _SHOWN:
                places.append(text.where)

    def as_json(self) -> dict[str, object]:
        """Counts by fault, the ratio of lengths, and the first places of each fault."""
        return {
            "system": self.system,
            "language_pair": self.language_pair,
            "texts": self.texts,
            "length_ratio": self.length_ratio,
            **{fault.replace(" ", "_"): self.faults[fault] for fault in FAULTS},
            "places": self.places,
        }


def audit(texts: Sequence[AuditedText]) -> tuple[list[Audit], list[str]]:
    """Audits of each system, in each direction and in all of them; and notes on their limits."""
    targets = {base_code(parse_direction(text.language_pair)[1]) for text in texts}
    is_in, notes = language_check(targets)
    usual = _usual_ratios(texts)
    audits: dict[tuple[str, str], Audit] = {}
    pairs = list(dict.fromkeys(text.language_pair for text in texts))
    for text in texts:
        faults = faults_of(text, is_in, usual[text.language_pair])
        for pair in (text.language_pair, "all") if len(pairs) > 1 else (text.language_pair,):
            key = text.system, pair
            audits.setdefault(key, Audit(*key)).count(text, faults)
    order = {pair: number for number, pair in enumerate(pairs)}
    return sorted(audits.values(), key=lambda a: order.get(a.language_pair, len(order))), notes


def _usual_ratios(texts: Sequence[AuditedText]) -> dict[str, float]:
    """For each direction, the median of characters over the source's, of references if any."""
    references: dict[str, list[float]] = {}
    all_texts: dict[str, list[float]] = {}
    for text in texts:
        length = max(1, len(text.source))
        all_texts.setdefault(text.language_pair, []).append(len(text.text) / length)
        if text.reference is not None:
            ratio = len(text.reference) / length
            references.setdefault(text.language_pair, []).append(ratio)
    return {pair: statistics.median(v) for pair, v in (all_texts | references).items()}


def faults_of(text: AuditedText, is_in: IsIn, usual_ratio: float) -> list[str]:
    """The faults of a text. An empty one has no other."""
    seen, source = as_seen(text.text).split(), as_seen(text.source).split()
    if not seen:
        return ["empty"]
    reference = None if text.reference is None else as_seen(text.reference).split()
    usual = usual_ratio * len(text.source)
    length = len(text.text)
    # A name stays as it is: a copy that the reference is too, is right.
    faults = {
        "copied source": seen == source and reference != source,
        "wrong language": not is_in(text.text, base_code(parse_direction(text.language_pair)[1])),
        "repetition": is_repeated(text.text) and not is_repeated(text.source),
        "off length": not usual / OFF_LENGTH <= length <= usual * OFF_LENGTH,
    }
    return [fault for fault, has in faults.items() if has]


def is_repeated(text: str) -> bool:
    """Whether a part of a text with a letter or a number follows itself three times or more."""
    return any(_WORD.search(match[1]) for match in _REPEATED.finditer(f"{text} "))


def audit_table(audits: Sequence[Audit], names: str = "system") -> Table:
    """Counts and shares of faults, a line for each system and direction."""
    rows = []
    for one in audits:
        cells = [f"{one.faults[fault]} ({one.faults[fault] / one.texts:.1%})" for fault in FAULTS]
        start = (one.language_pair, one.system, str(one.texts), f"{one.length_ratio:.3f}")
        rows.append(tuple(map(Cell, (*start, *cells))))
    has_references = any(one.reference_characters for one in audits)
    compared = "the references'" if has_references else "the sources'"
    notes = (
        f"length: characters, for each of {compared}; off length: {OFF_LENGTH} times longer or "
        "shorter than usual for the source",
    )
    return Table("Audit", ("", names, "texts", "length", *FAULTS), rows, notes)
