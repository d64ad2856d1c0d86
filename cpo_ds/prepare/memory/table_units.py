"""Units of tables and of JSON rows: a source, a target, and drafts, in columns."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cpo_ds.data.prompts import LANGUAGES, base_code, parse_direction
from cpo_ds.data.sources import RawRow, read_raw
from cpo_ds.errors import UserError
from cpo_ds.prepare.memory.unit import Unit, fitness

COLUMNS = ("source", "target", "draft")  # what a column can be
_SPELLINGS = {
    "source": ("source", "src"),
    "target": ("target", "tgt", "trg", "reference", "translation", "post_edit", "post-edit", "pe"),
    "draft": ("draft", "mt", "machine_translation", "hypothesis"),
}


def table_units(
    path: str, pair: str | None, columns: Mapping[str, str], seen: Counter[str]
) -> Iterator[Unit]:
    """Yields a unit for each row of a csv, tsv, jsonl, json or parquet file.

    A row's `language_pair`, if it has one, is its direction; rows of another one than `pair` have a
    problem. Each of its `candidates` is a draft. `columns` names columns that are called otherwise.
    `seen` counts the codes of the rows. Raises `UserError`, with file and line, for rows without
    a source or a target column, or with another value than a text.
    """
    names: dict[str, str] = {}
    for raw in read_raw(path, "train"):
        if raw is not None:
            _direction(raw, pair)  # without one, columns cannot be named by languages
            names = names or dict(_named_columns(raw, pair, columns))
            yield _unit(raw, pair, names, seen)


def _unit(raw: RawRow, pair: str | None, names: Mapping[str, str], seen: Counter[str]) -> Unit:
    direction = _direction(raw, pair)
    if pair is not None and not _fits(direction, pair):
        seen.update(parse_direction(direction))
        return Unit(raw.where, problem=f"another direction than {pair}")
    direction = pair or direction
    seen.update(parse_direction(direction))
    source, target = (_text(raw, names[name]) for name in ("source", "target"))
    return Unit(raw.where, direction, source, target, _drafts(raw, names.get("draft")))


def _drafts(raw: RawRow, column: str | None) -> dict[str, str]:
    """The texts of the draft's column and of the row's candidates that are not blank, by name."""
    column = column or _column(list(raw.values), "draft", None)
    drafts = {column: _text(raw, column)} if column else {}
    if raw.values.get("candidates") is not None:
        for name, text in raw.mapping("candidates").items():
            is_blank = text is None or (isinstance(text, str) and not text.strip())
            drafts[name] = "" if is_blank else raw.checked_text(text, f"candidates.{name}")
    return {name: text for name, text in drafts.items() if text}


def _direction(raw: RawRow, pair: str | None) -> str:
    """The row's direction, or `pair` if the row names none. Raises `UserError` without either."""
    if raw.values.get("language_pair") is None:
        if pair is None:
            raise UserError(
                f"{raw.file}: the rows do not name their languages; give --language-pair, like "
                "en-de."
            )
        return pair
    direction = raw.text("language_pair")
    try:
        parse_direction(direction)
    except UserError as error:
        raise raw.error("language_pair", f"has an {error}") from None
    return direction


def _fits(direction: str, pair: str) -> bool:
    codes = zip(parse_direction(direction), parse_direction(pair), strict=True)
    return all(fitness(code, wanted) for code, wanted in codes)


def _text(raw: RawRow, column: str) -> str:
    """The text of a column without spaces around it; "" if it is null or blank."""
    value = raw.values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if not isinstance(value, str):
        return raw.checked_text(value, column)  # which refuses it
    return raw.checked_text(value.strip(), column)


def _named_columns(
    raw: RawRow, pair: str | None, given: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """The columns of source, target and draft. Raises `UserError` without the first two."""
    there = list(raw.values)
    listed = ", ".join(there)
    for what, name in given.items():
        if name not in there:
            closest = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {closest[0]}?" if closest else f"its columns: {listed}."
            raise UserError(f"--columns: {raw.file} has no column {name!r}; {hint}")
        yield what, name
    codes = dict(zip(("source", "target"), parse_direction(pair), strict=True)) if pair else {}
    for what in COLUMNS:
        if what in given:
            continue
        column = _column(there, what, codes.get(what))
        if column is not None:
            yield what, column
        elif what != "draft":  # rows of JSON may have one although the first has none
            code = codes.get(what, "en" if what == "source" else "de")
            raise UserError(
                f"{raw.file} has no column for the {what}; name it {what} or {code}, or say which "
                f"it is: --columns {what}=NAME. Its columns: {listed}."
            )


def _column(there: Sequence[str], what: str, code: str | None) -> str | None:
    """The column for a source, a target or a draft, by its name or its language."""
    lower = {str(name).strip().lower(): name for name in reversed(there)}
    for spelling in _SPELLINGS[what]:
        if spelling in lower:
            return lower[spelling]
    if code is None:
        return None
    fits = [name for name in there if fitness(str(name), code)]
    language = LANGUAGES.get(base_code(code), code).lower()
    return fits[0] if fits else lower.get(language)
