"""Writes a recipe from another one's text: new values, kept comments."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import yaml


class Value(NamedTuple):
    """A value of a field, and a comment that stands behind it."""

    value: Any
    comment: str = ""


_LINE = re.compile(r"( *)([a-z_]+):(?: ([^#]*?))?(?: *# (.*))?$")


def rewritten(
    text: str, head: str, changes: Mapping[str, Value], without: Collection[str] = ()
) -> str:
    """The recipe of a text with another comment at its head, and with other values of fields.

    `changes` are values by dotted names. A field that the text lacks is added to its section, which
    the text must have. A comment of "" keeps the old one. `without` are sections to leave out.
    """
    lines = [f"# {line}" for line in head.splitlines()]
    section, missing = "", dict(changes)
    body = [line for line in text.splitlines() if not line.startswith("#")]
    for line in [*body, ""]:
        indent, key, *_ = _parts(line)
        if not indent:  # the section ends
            lines += _added(section, missing)
            section = key
        dotted = f"{section}.{key}" if indent else key
        if section in without or not line:
            continue
        lines.append(_changed(line, missing.pop(dotted)) if dotted in missing else line)
    return "\n".join(lines) + "\n"


def _parts(line: str) -> list[str]:
    match = _LINE.match(line)
    return [part or "" for part in match.groups()] if match else ["", "", "", ""]


def _changed(line: str, new: Value) -> str:
    indent, key, _, comment = _parts(line)
    return _line(indent, key, Value(new.value, new.comment or comment))


def _added(section: str, missing: dict[str, Value]) -> list[str]:
    """Lines for the fields of a section that are not in the text; takes them out of `missing`."""
    names = [name for name in missing if section and name.rpartition(".")[0] == section]
    return [_line("  ", name.rpartition(".")[2], missing.pop(name)) for name in names]


def _line(indent: str, key: str, new: Value) -> str:
    return f"{indent}{key}: {as_yaml(new.value)}" + (f" # {new.comment}" if new.comment else "")


def as_yaml(value: Any) -> str:
    """A value in YAML's short form, which reads as the same value again."""
    if isinstance(value, float):
        if not 0 < abs(value) < 1e-3:
            return repr(value)
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = mantissa.rstrip("0")  # a dot stays: without one YAML reads 1e-4 as a text
        return f"{mantissa}{'0' * mantissa.endswith('.')}e{int(exponent)}"
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[\w./~-][\w./~ -]*", value) and yaml.safe_load(value) == value
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).splitlines()[0]
