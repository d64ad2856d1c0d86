"""Units of an XLIFF file, versions 1.2 and 2, with the machine's drafts that it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cpo_ds.prepare.memory.codes import CodeWriter, Part, parts_of
from cpo_ds.prepare.memory.unit import (
    EMPTY_SOURCE,
    EMPTY_TARGET,
    NO_LANGUAGE,
    Unit,
    fitness,
    numbered,
)
from cpo_ds.prepare.memory.xml_units import Element, XmlUnit, xml_units

UNTRANSLATED, IN_REVIEW = "state says not translated", "state says needs review"
NOT_APPROVED, NOT_TO_TRANSLATE = "not approved", "not to be translated"
_DONE = ("translated", "signed-off", "final", "reviewed")
_NO_DRAFT_TYPES = ("reference", "accepted")  # of alt-trans: other languages, finished texts
_MACHINES = ("mt", "am", "")  # types of matches of XLIFF 2: by a machine, assembled, unknown


def xliff_units(
    path: Path, label: str, languages: tuple[str, str], seen: Counter[str], *, keeps_tags: bool
) -> Iterator[Unit]:
    """Yields a unit for each `<trans-unit>`, or for each `<segment>` of XLIFF 2, or the problem.

    `seen` counts the codes of the file. Raises `UserError` as `xml_units` does.
    """
    for found in xml_units(path, label, "xliff", ("trans-unit", "unit")):
        about = found.around.get("file", {}) | found.around.get("xliff", {})
        codes = [
            about.get(name, about.get(name_1, ""))
            for name, name_1 in (("srcLang", "source-language"), ("trgLang", "target-language"))
        ]
        seen.update(codes)
        asked = zip(codes, languages, strict=True)
        wrong = [wanted for code, wanted in asked if not fitness(code, wanted)]
        if wrong:
            problem = f"no text in {wrong[0]}" if all(codes) else NO_LANGUAGE
            yield Unit(f"{label}, line {found.element.line}", problem=problem)
        elif found.element.name == "trans-unit":
            yield _trans_unit(found.element, label, languages, keeps_tags)
        else:
            yield from _segments(found, label, languages, keeps_tags)


# XLIFF 1.2.


def _trans_unit(unit: Element, label: str, languages: tuple[str, str], keeps_tags: bool) -> Unit:
    where = f"{label}, line {unit.line}"
    source, target = unit.first("source"), unit.first("target")
    problem = _problem(unit, source, target) or _problem_of_state(
        target.attributes.get("state", "") if target else "", unit.attributes.get("approved", "")
    )
    if problem or source is None or target is None:
        return Unit(where, problem=problem)
    writer = CodeWriter(keeps_tags=keeps_tags)
    texts = [writer.write(parts_of(part)) for part in (source, target)]
    drafts = [
        writer.write(parts_of(draft))
        for other in unit.all("alt-trans")
        if (draft := _draft(other, source, languages[1])) is not None
    ]
    return Unit(where, "-".join(languages), texts[0], texts[1], numbered(drafts))


def _draft(other: Element, source: Element, language: str) -> Element | None:
    """The translation of an `<alt-trans>`; None if it is of another source or language."""
    target, of = other.first("target"), other.first("source")
    if target is None or not target.text().strip():
        return None
    if other.attributes.get("alttranstype", "proposal") in _NO_DRAFT_TYPES:
        return None
    if of is not None and of.text().split() != source.text().split():
        return None  # of a similar text: what a memory found, and no draft of this one
    code = target.attributes.get("xml:lang") or other.attributes.get("xml:lang", "")
    return target if not code or fitness(code, language) else None


def _problem(unit: Element, source: Element | None, target: Element | None) -> str | None:
    """The reason to drop a unit, whatever its state."""
    if unit.attributes.get("translate") == "no":
        return NOT_TO_TRANSLATE
    if source is None:
        return EMPTY_SOURCE
    return EMPTY_TARGET if target is None else None


def _problem_of_state(state: str, approved: str = "") -> str | None:
    """The reason to drop a unit whose `state` or `approved` says that it is not finished."""
    if state in ("new", "initial", "needs-translation"):
        return UNTRANSLATED
    if state.startswith("needs-"):
        return IN_REVIEW
    return NOT_APPROVED if approved == "no" and state not in _DONE else None


# XLIFF 2.


def _segments(
    found: XmlUnit, label: str, languages: tuple[str, str], keeps_tags: bool
) -> Iterator[Unit]:
    unit = found.element
    data = {
        item.attributes.get("id", ""): item.text()
        for holder in unit.all("originalData")
        for item in holder.all("data")
    }
    segments = unit.all("segment")
    matches = [match for holder in unit.all("matches") for match in holder.all("match")]
    for segment in segments:
        where = f"{label}, line {segment.line}"
        source, target = segment.first("source"), segment.first("target")
        problem = _problem(unit, source, target) or _problem_of_state(
            segment.attributes.get("state", "")
        )
        if problem or source is None or target is None:
            yield Unit(where, problem=problem)
            continue
        writer = CodeWriter(keeps_tags=keeps_tags)
        texts = [writer.write(_with_data(part, data)) for part in (source, target)]
        drafts = [
            writer.write(_with_data(draft, data))
            for match in matches
            if (draft := _match(match, segment, source, is_only=len(segments) == 1)) is not None
        ]
        yield Unit(where, "-".join(languages), texts[0], texts[1], numbered(drafts))


def _match(match: Element, segment: Element, source: Element, *, is_only: bool) -> Element | None:
    """The machine's translation in a `<mtc:match>`; None if it belongs to another segment."""
    target, of = match.first("target"), match.first("source")
    if target is None or not target.text().strip():
        return None
    if match.attributes.get("type", "") not in _MACHINES:
        return None
    if of is not None and of.text().split() != source.text().split():
        return None
    named = match.attributes.get("ref", "").rpartition("#")[2].rpartition("=")[2]
    return target if is_only or named == segment.attributes.get("id", "-") else None


def _with_data(segment: Element, data: dict[str, str]) -> list[Part]:
    """The parts of a segment, whose codes may keep their text in the unit's `originalData`."""
    _spell(segment, data)
    return parts_of(segment)


def _spell(element: Element, data: dict[str, str]) -> None:
    """Gives codes the texts that they name, as if they were displayed."""
    names = {"dataRef": "disp", "dataRefStart": "dispStart", "dataRefEnd": "dispEnd"}
    for part in element.parts:
        if isinstance(part, Element):
            for name, shown in names.items():
                if part.attributes.get(name) in data:
                    part.attributes.setdefault(shown, data[part.attributes[name]])
            _spell(part, data)
