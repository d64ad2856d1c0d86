"""Rows to evaluate, by direction: sources, references, and whole translations by each system."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.data.sameness import is_blank
from cpo_ds.data.sources import RawRow, read_raw
from cpo_ds.errors import UserError, did_you_mean

# Codes of countries that are taken for those of languages, which would get the wrong tokenizer.
_ANY_LANGUAGE = "xx"  # in the names of means
_COUNTRIES = {"jp": "ja", "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "ua": "uk"}
ENGLISH = ("en", "eng")


@dataclass(frozen=True)
class EvaluationRow:
    """A source text, its reference and its translations; a translation may be empty."""

    language_pair: str
    source: str
    reference: str | None
    candidates: dict[str, str]
    values: dict[str, Any]  # the row as it was read, with all of its fields
    where: str  # like "test.jsonl, line 12"


@dataclass(frozen=True)
class Direction:
    """All rows of a translation direction, and the systems that translated every one of them."""

    language_pair: str
    rows: list[EvaluationRow]
    systems: tuple[str, ...]

    @property
    def target(self) -> str:
        """The target language's code, without script and region."""
        return base_code(parse_direction(self.language_pair)[1])

    @property
    def sources(self) -> list[str]:
        """The source texts."""
        return [row.source for row in self.rows]

    @property
    def references(self) -> list[str]:
        """The references, of a direction that has them."""
        return [row.reference or "" for row in self.rows]

    @property
    def test_set(self) -> str | None:
        """The name in the field `test_set` of all rows; None if they have none, or several."""
        names = {str(row.values.get("test_set") or "") for row in self.rows}
        return (names.pop() or None) if len(names) == 1 else None

    def translations(self, system: str) -> list[str]:
        """A system's translations, in the order of the rows."""
        return [row.candidates[system] for row in self.rows]


def read_directions(path: str, systems: Sequence[str] | None = None) -> list[Direction]:
    """Reads rows with candidates, and groups them by direction, those from English first.

    `systems` names the systems to keep; None keeps all. An empty translation counts, since a system
    that gives none must not gain by it. Raises `UserError`, with file and line, for bad values and
    for a system that translated only some of a direction's rows.
    """
    rows = [_row(raw) for raw in read_raw(path, "train") if raw is not None]
    known = list(dict.fromkeys(name for row in rows for name in row.candidates))
    if not known:
        raise UserError(
            f"{path} has no translations; add them to each row as "
            '"candidates": {SYSTEM: TEXT}, for example by cpo-ds translate.'
        )
    for name in systems or ():
        if name not in known:
            raise UserError(
                f"--system {name}: {path} has no translations by it{did_you_mean(name, known)}; "
                f"it has {', '.join(known)}."
            )
    kept = [name for name in known if systems is None or name in systems]
    groups: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault(row.language_pair, []).append(row)
    directions = [_direction(pair, group, kept) for pair, group in groups.items()]
    return sorted((direction for direction in directions if direction.systems), key=_order)


def _order(direction: Direction) -> int:
    """Directions from English come first, then those into English."""
    source, target = map(base_code, parse_direction(direction.language_pair))
    return 0 if source in ENGLISH else 1 if target in ENGLISH else 2


def _row(raw: RawRow) -> EvaluationRow:
    language_pair = raw.text("language_pair")
    try:
        codes = parse_direction(language_pair)
    except UserError as error:
        raise raw.error("language_pair", f"has an {error}") from None
    if _ANY_LANGUAGE in codes:
        raise raw.error(
            "language_pair",
            f"is {language_pair!r}, but xx is no language: it stands for all of them in the names "
            "of means; write the language's own code",
        )
    for code in codes:
        if code in _COUNTRIES:
            raise raw.error(
                "language_pair",
                f"is {language_pair!r}, but {code} is the code of a country; did you mean "
                f"{_COUNTRIES[code]}?",
            )

    # A blank reference is none; a blank translation is an empty one, and null is a missing one.
    reference = raw.values.get("reference")
    if isinstance(reference, str) and is_blank(reference):
        reference = None
    named = raw.mapping("candidates") if raw.values.get("candidates") is not None else {}
    return EvaluationRow(
        language_pair,
        raw.text("source"),
        None if reference is None else raw.text("reference"),
        {
            name: "" if isinstance(text, str) and is_blank(text) else _text(raw, name, text)
            for name, text in named.items()
            if text is not None
        },
        raw.values,
        raw.where,
    )


def _text(raw: RawRow, name: str, text: Any) -> str:
    return raw.checked_text(text, f"candidates.{name}")


def _direction(pair: str, rows: list[EvaluationRow], kept: Sequence[str]) -> Direction:
    """The direction of rows. Raises `UserError` for a system with too few translations."""
    counts = Counter(name for row in rows for name in row.candidates if name in kept)
    for name, count in counts.items():
        if count < len(rows):
            first = next(row for row in rows if name not in row.candidates)
            raise UserError(
                f"{first.where}: field candidates.{name} is missing; {name} has translations of "
                f'{count} of the {len(rows)} rows of {pair}. Add the others ("" for an empty one), '
                "or name the systems to evaluate by --system."
            )
    return Direction(pair, rows, tuple(name for name in kept if name in counts))
