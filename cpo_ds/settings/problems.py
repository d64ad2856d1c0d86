"""Faults of recipes in words for people: of their values, and of YAML itself."""

from __future__ import annotations

import re
import reprlib
from typing import Any

import yaml
from pydantic import ValidationError

from cpo_ds.errors import did_you_mean
from cpo_ds.settings.other_names import OTHER_NAMES, OtherName

_LIKE = 0.65  # likeness of choices, as difflib measures it

# What a value must be, by pydantic's types of errors; any other keeps pydantic's own words.
_WORDS = {
    "list_type": "a list, as in [{given}, ...]",
    "string_type": "a text",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping, as in {{key: value}}",
}
# The field of a section that people mean who give the section one value.
_FIRST_FIELDS = {
    "data": "data.path",
    "loss": "loss.name",
    "lora": "lora.rank",
    "optim": "optim.learning_rate",
    "batch": "batch.pairs",
    "train": "train.epochs",
    "checkpoint": "checkpoint.every_steps",
    "logging": "logging.every_steps",
}


def value_problem(error: ValidationError) -> str:
    """The first fault of a recipe's values, without a full stop, with the name of the field."""
    first, *more = error.errors()
    path = _path(first["loc"])
    field = ".".join(path)
    if first["type"] == "missing":
        return f"{field} is missing; add it to the recipe"
    if first["type"] == "value_error":  # of a check of ours, which may name the field itself
        message = first["msg"].removeprefix("Value error, ")
        return message if not field or f"{path[0]}." in message else f"{field}: {message}"

    # A field that takes values of several types has an error for each of them.
    same = [first, *(other for other in more if _path(other["loc"]) == path)]
    wishes = list(dict.fromkeys(_wish(one["type"], one, field) for one in same))
    return f"{field}: must be {' or '.join(wishes)} (it is {reprlib.repr(first['input'])})"


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The names of a field's location, without the types that pydantic tried."""
    parts = [str(part) for part in location]
    return [p for p in parts if re.fullmatch(r"\w+", p) and p not in ("str", "int", "bool")]


def _wish(kind: str, error: Any, field: str) -> str:
    """What a value must be, to follow "must be", by an error of pydantic."""
    value = error["input"]
    if kind == "model_type":
        return _section_wish(field)
    if kind == "literal_error":
        return _choice_wish(value, str(error.get("ctx", {}).get("expected", "")))
    if kind in _WORDS:
        return _WORDS[kind].format(given=value if isinstance(value, str) else "a")
    return str(error["msg"]).removeprefix("Input should be ")


def _section_wish(field: str) -> str:
    """The wish for a section, with the field that a single value may be for."""
    meant = OTHER_NAMES.get(field, OtherName(_FIRST_FIELDS.get(field))).field
    return f"a section of fields{f', like {meant}' if meant else ''}"


def _choice_wish(value: object, expected: str) -> str:
    """The wish for one of a field's choices, with the closest to the value."""
    choices = re.findall(r"'([^']*)'", expected)
    hint = did_you_mean(str(value), choices, _LIKE)
    if str(value).lower() in OTHER_NAMES:  # fp16, which resembles bfloat16
        *_, note = OTHER_NAMES[str(value).lower()].note.split(": ")
        hint = f" (did you mean {note}?)" if note in choices else hint
    return f"{'one of ' * (len(choices) > 1)}{', '.join(choices)}{hint}"


def yaml_problem(error: Exception) -> str:
    """The fault of a file that is no YAML, with its line if that is known, and the way out."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return f"is not valid YAML: {' '.join(str(error).split())}"
    problem = " ".join(str(error.problem).split())
    way_out = ""
    if "\\t" in problem:
        way_out = "; indent by spaces, not by tabs"
    elif "block mapping" in problem or "mapping values" in problem:
        way_out = (
            "; fields of one section start in the same column, and each has a colon and a space"
        )
    return f"is not valid YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}{way_out}"
