"""Units of a translation memory in TMX, in one translation direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cpo_ds.prepare.memory.codes import CodeWriter, parts_of
from cpo_ds.prepare.memory.unit import EMPTY_SOURCE, EMPTY_TARGET, NO_LANGUAGE, Unit, fitness
from cpo_ds.prepare.memory.xml_units import Element, xml_units

_VARIANTS = "several variants of a language, of which the first was taken"


def tmx_units(
    path: Path, label: str, languages: tuple[str, str], seen: Counter[str], *, keeps_tags: bool
) -> Iterator[Unit]:
    """Yields a unit for each `<tu>`, with the text in both languages or the problem.

    Codes with a region serve for `languages` without one. `seen` counts the codes of the file.
    Raises `UserError` as `xml_units` does.
    """
    for found in xml_units(path, label, "tmx", ("tu",)):
        yield _unit(found.element, label, languages, seen, keeps_tags)


def _unit(
    element: Element,
    label: str,
    languages: tuple[str, str],
    seen: Counter[str],
    keeps_tags: bool,
) -> Unit:
    where = f"{label}, line {element.line}"
    variants = [(_language(variant), variant) for variant in element.all("tuv")]
    seen.update(code for code, _ in variants)
    if any(not code for code, _ in variants):
        return Unit(where, problem=NO_LANGUAGE)

    # Of each language, the text in the very code that was asked for, or else the first.
    segments, note = [], None
    for wanted in languages:
        fits = [(fitness(code, wanted), variant) for code, variant in variants]
        best = max((fit for fit, _ in fits), default=0)
        if not best:
            return Unit(where, problem=f"no text in {wanted}")
        chosen = [variant for fit, variant in fits if fit == best]
        note = _VARIANTS if len(chosen) > 1 else note
        segments.append(chosen[0].first("seg"))

    source, target = segments
    if source is None or target is None:
        return Unit(where, problem=EMPTY_SOURCE if source is None else EMPTY_TARGET)
    writer = CodeWriter(keeps_tags=keeps_tags)
    texts = [writer.write(parts_of(segment)) for segment in (source, target)]
    return Unit(where, "-".join(languages), texts[0], texts[1], note=note)


def _language(variant: Element) -> str:
    return variant.attributes.get("xml:lang") or variant.attributes.get("lang", "")
