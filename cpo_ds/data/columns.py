"""The fields that each format of preference data needs, and which format would fit a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

COLUMNS: dict[str, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "x-alma": ("source", "chosen", "reject", "directions"),
    "alma-r": ("translation",),
    "triplets": ("language_pair", "source", "candidates", "scores"),
}
# Other names that such fields have elsewhere, in lower case.
_OTHER_NAMES = {
    "prompt": {"instruction", "question", "query", "input", "prompts"},
    "source": {"src", "source_text", "sentence", "original", "input"},
    "chosen": {"preferred", "better", "good", "accepted", "winner", "response_chosen", "best"},
    "rejected": {"reject", "worse", "bad", "dispreferred", "loser", "response_rejected", "worst"},
    "directions": {"direction", "language_pair", "lang_pair", "langpair", "lp", "languages"},
}
_OTHER_NAMES["reject"] = _OTHER_NAMES["rejected"] | {"rejected"}
_OTHER_NAMES["language_pair"] = _OTHER_NAMES["directions"] | {"directions"}
_TRANSLATIONS = {"target", "tgt", "reference", "ref", "translation", "chosen", "hypothesis", "mt"}


def missing_field(values: Mapping[str, Any], wanted: str) -> str | None:
    """The first field that a row needs in the format `wanted` and does not have; None if none.

    A row of conversations needs no prompt.
    """
    is_chat = isinstance(values.get("chosen"), list)
    return next(
        (
            name
            for name in COLUMNS.get(wanted, ())
            if values.get(name) is None and not (is_chat and name == "prompt")
        ),
        None,
    )


def other_format(values: Mapping[str, Any], wanted: str) -> str:
    """A sentence on what to do with a row that has not all fields of the format `wanted`."""
    names = [name for name, value in values.items() if value is not None]
    for fits in COLUMNS:
        if missing_field(values, fits) is None:
            return f"Its fields fit data.format: {fits}, so set that."
    # With other names for its fields the row may fit; the wanted format goes first.
    for name in sorted(COLUMNS, key=lambda name: name != wanted):
        renamed = _renamed(names, COLUMNS[name])
        if renamed:
            changes = " and ".join(f"{old} to {new}" for old, new in renamed.items())
            setting = "" if name == wanted else f", and set data.format: {name}"
            return f"Rename {changes}{setting}."
    lower = {name.lower() for name in names}
    has_worse = lower & _OTHER_NAMES["reject"]
    if lower & {"source", *_OTHER_NAMES["source"]} and lower & _TRANSLATIONS and not has_worse:
        return (
            "The row has a source and one translation, but CPO learns from a better and a worse "
            "one: let a model translate the sources (cpo-ds prepare candidates --input FILE), "
            "score and select, as docs/own-data.md shows."
        )
    listed = ", ".join(repr(name[:30]) for name in names[:6]) + ", ..." * (len(names) > 6)
    *others, last = COLUMNS[wanted]
    needs = f"{', '.join(others)} and {last}" if others else last
    has = f"the fields {listed}" if names else "no fields"
    return (
        f"The row has {has}, and data.format: {wanted} needs {needs} (in a csv or tsv the first "
        "line names them); docs/own-data.md shows every format."
    )


def _renamed(names: Collection[str], columns: tuple[str, ...]) -> dict[str, str]:
    """The fields to rename so that all columns are there; empty if that is not clear."""
    changes = {}
    for column in columns:
        if column in names:
            continue
        accepted = {column, *_OTHER_NAMES.get(column, ())}
        old = [name for name in names if _plain(name) in accepted and name not in columns]
        if len(old) != 1 or old[0] in changes:
            return {}
        changes[old[0]] = column
    return changes


def _plain(name: str) -> str:
    """`"Source Text"` -> `"source_text"`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
