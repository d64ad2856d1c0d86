"""Draws a blinded sample of translations that people are to judge, and its key.

Annotators see letters instead of systems, in another order for each source. The key says which
letter is which system.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.candidates import REFERENCE, CandidateRow
from cpo_ds.data.sameness import as_seen, is_blank
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.storage.results import content_key

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EMPTY = "[empty]"  # shown for a translation without text
_MEDIA = ("<audio ", "<video ", "<img ", "<iframe ")  # Pearmut loads what such texts name


@dataclass(frozen=True)
class Span:
    """An error in a translation, from character `start` to before `end`."""

    start: int
    end: int
    severity: str  # minor or major


@dataclass(frozen=True)
class Translation:
    """A translation under its letter, with errors that are marked beforehand."""

    letter: str
    system: str
    text: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Item:
    """A source with the translations of all systems, in the order of their letters."""

    id: str
    direction: str
    source: str
    reference: str | None  # None if annotators must not see one
    translations: tuple[Translation, ...]
    where: str  # the row's file and line


@dataclass(frozen=True)
class Options:
    """Options of drawing, as on the command line."""

    segments: int = 400
    seed: int = 12345
    spans: str | None = None  # the metric whose error spans are filled in
    show_reference: bool = False


@dataclass(frozen=True)
class Sample:
    """The drawn items, direction by direction, and counts of rows that could not be drawn."""

    id: str
    systems: tuple[str, ...]
    items: tuple[Item, ...]
    left_out: Counter[str]

    @property
    def by_direction(self) -> dict[str, list[Item]]:
        """The items of each direction."""
        directions: dict[str, list[Item]] = {}
        for item in self.items:
            directions.setdefault(item.direction, []).append(item)
        return directions


def choose_systems(rows: Sequence[CandidateRow], given: Sequence[str]) -> tuple[str, ...]:
    """The systems to compare: those `given`, or all that have candidates.

    Raises `UserError` for an unknown or repeated one, for fewer than two, or more than 26.
    """
    known = list(dict.fromkeys(name for row in rows for name in row.values.get("candidates") or {}))
    for name in given:
        if name not in [*known, REFERENCE]:
            hint = did_you_mean(name, known)
            raise UserError(f"--system {name}: no row has a candidate of that name{hint}.")
        if given.count(name) > 1:
            raise UserError(f"--system {name} is given twice; name each system once.")
    systems = tuple(given or known)
    if not 2 <= len(systems) <= len(LETTERS):
        raise UserError(
            f"people compare 2 to {len(LETTERS)} systems, and there are {len(systems)} "
            f"({', '.join(systems) or 'no row has candidates'}); name them by --system NAME."
        )
    return systems


def draw(rows: Sequence[CandidateRow], systems: Sequence[str], options: Options) -> Sample:
    """Draws items, the same number from each direction as far as there are rows.

    The same rows and seed give the same sample. Raises `UserError` if no row can be drawn.
    """
    # Rows of each direction that all systems translated, each source once.
    left_out: Counter[str] = Counter()
    usable: dict[str, list[tuple[CandidateRow, dict[str, str]]]] = {}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        texts = _texts(row, systems)
        source = (row.language_pair, as_seen(row.source))
        if reason := _why_not(texts, row.source, is_repeated=source in seen):
            left_out[reason] += 1
        else:
            seen.add(source)
            usable.setdefault(row.language_pair, []).append((row, texts))
    if not usable:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.most_common())
        raise UserError(f"no row can be drawn of {len(rows)} ({reasons}); correct the rows.")

    # Draw. Each direction has its own random numbers, so that another one changes nothing in it.
    drawn = []
    sizes = share_out({pair: len(own) for pair, own in usable.items()}, options.segments)
    for direction, size in sizes.items():
        rng = random.Random(f"{options.seed} {direction}")
        for row, texts in rng.sample(usable[direction], size):
            drawn.append((row, texts, rng.sample(list(systems), len(systems))))

    # Name the items after their content, so that results of another sample are told apart.
    sample_id = content_key(
        *(part for row, texts, order in drawn for part in (row.source, *order, *texts.values()))
    )[:8]
    items = tuple(
        _item(f"{sample_id}-{number:04d}", row, texts, order, options)
        for number, (row, texts, order) in enumerate(drawn, start=1)
    )
    return Sample(sample_id, tuple(systems), items, left_out)


def share_out(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Divides `total` equally; a direction with too few rows leaves the rest to the others."""
    shares: dict[str, int] = {}
    for number, name in enumerate(sorted(available, key=lambda name: (available[name], name))):
        equal = (total - sum(shares.values())) // (len(available) - number)
        shares[name] = min(available[name], equal)
    return {name: shares[name] for name in available if shares[name]}


def assigned(items: Sequence[Item], annotators: int, shared: int | None) -> list[list[Item]]:
    """The items of each annotator: the first `shared` for all (None: all), the rest dealt out."""
    number = len(items) if shared is None else shared
    return [[*items[:number], *items[number:][turn::annotators]] for turn in range(annotators)]


def units(
    items: Sequence[Item], *, contrastive: bool
) -> list[tuple[Item, tuple[Translation, ...]]]:
    """What an annotator sees at once: all translations of a source, or a single one.

    Single ones come in rounds, each with one translation of every source, so that those of one
    source are far apart.
    """
    if contrastive:
        return [(item, item.translations) for item in items]
    rounds = max((len(item.translations) for item in items), default=0)
    return [(item, (item.translations[turn],)) for turn in range(rounds) for item in items]


def key_of(sample: Sample, options: Options, *, contrastive: bool) -> dict[str, Any]:
    """The key as JSON: which letter of which item is which system."""
    return {
        "sample": sample.id,
        "protocol": "contrastive ESA" if contrastive else "ESA",
        "seed": options.seed,
        "spans": options.spans,
        "systems": list(sample.systems),
        "items": {
            item.id: {
                "direction": item.direction,
                "row": item.where,
                "source": item.source,
                "systems": {t.letter: t.system for t in item.translations},
            }
            for item in sample.items
        },
    }


def utf16_span(text: str, span: Span) -> tuple[int, int]:
    """A span as browsers count: in units of UTF-16, the last one included."""

    def units_before(position: int) -> int:
        return len(text[:position].encode("utf-16-le")) // 2

    return units_before(span.start), units_before(span.end) - 1


def _named(row: CandidateRow) -> dict[str, Any]:
    """All texts of a row by name, as they were read."""
    return {**(row.values.get("candidates") or {}), REFERENCE: row.reference}


def _texts(row: CandidateRow, systems: Sequence[str]) -> dict[str, str]:
    """The systems' texts without spaces around them; nothing if one is missing.

    An empty translation is a result: leaving it out would spare its system a bad mark.
    """
    texts = [_named(row).get(system) for system in systems]
    shown = [EMPTY if is_blank(text) else text.strip() for text in texts if text is not None]
    return dict(zip(systems, shown, strict=True)) if len(shown) == len(systems) else {}


def _why_not(texts: Mapping[str, str], source: str, *, is_repeated: bool) -> str:
    """Why a row cannot be drawn; "" if it can."""
    if not texts:
        return "no translation by one of the systems"
    if is_repeated:
        return "source of an earlier row"
    if any(text.startswith(_MEDIA) for text in (source, *texts.values())):
        return "text that begins like a picture, a sound or a video in HTML"
    return ""


def _item(
    item_id: str, row: CandidateRow, texts: Mapping[str, str], order: list[str], options: Options
) -> Item:
    translations = []
    for letter, system in zip(LETTERS, order, strict=False):
        spans = _spans(row, system, texts[system], options.spans)
        translations.append(Translation(letter, system, texts[system], spans))
    reference = row.reference if options.show_reference else None
    source = row.source.strip()
    return Item(item_id, row.language_pair, source, reference, tuple(translations), row.where)


def _spans(row: CandidateRow, system: str, text: str, metric: str | None) -> tuple[Span, ...]:
    """The errors that a metric marked in a system's text, which lost the spaces before it.

    People mark minor and major errors, so a critical one becomes major.
    """
    original = _named(row)[system]
    shift = len(original) - len(original.lstrip())
    spans = []
    try:
        marked = (row.values.get("error_spans") or {}).get(metric) or {}
        for span in marked.get(system) or []:
            start, end = max(0, span["start"] - shift), min(len(text), span["end"] - shift)
            if start < end and text != EMPTY:
                spans.append(Span(start, end, "minor" if span["severity"] == "minor" else "major"))
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{row.where}: field error_spans.{metric}.{system} does not hold spans as `prepare "
            "score --spans` writes them; score the rows again, or leave out --spans."
        ) from None
    return tuple(spans)
