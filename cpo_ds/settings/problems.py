"""Faults of recipes in words for people: of their values, and of YAML itself."""

from __future__ import annotations

import re
import reprlib

import yaml
from pydantic import ValidationError

from cpo_ds.errors import did_you_mean
from cpo_ds.settings.other_names import OTHER_NAMES, OtherName

_LIKE = 0.65  # likeness of choices, as difflib measures it

# By pydantic's types of errors; any other keeps pydantic's own sentence.
_WORDS = {
    "list_type": "must be a list, as in [{given}, ...]",
    "string_type": "must be a text",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping, as in {{key: value}}",
    "extra_forbidden": "is no setting",
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
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field, value = ".".join(path), first["input"]
    shown = reprlib.repr(value)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{field} is missing; add it to the recipe"
    if first["type"] == "value_error":  # of a check of ours, which may name the field itself
        return message if not field or f"{path[0]}." in message else f"{field}: {message}"

    if first["type"] == "model_type":
        message = _section_problem(field)
    elif first["type"] == "literal_error":
        message = _choice_problem(value, str(first.get("ctx", {}).get("expected", "")))
    elif first["type"] in _WORDS:
        message = _WORDS[first["type"]].format(given=value if isinstance(value, str) else "a")
    return f"{field}: {message} (it is {shown})"


def _section_problem(field: str) -> str:
    """The fault of a section that has a single value, with a field that the value may be for."""
    meant = OTHER_NAMES.get(field, OtherName(_FIRST_FIELDS.get(field))).field
    return f"must be a section of fields{f', like {meant}' if meant else ''}"


def _choice_problem(value: object, expected: str) -> str:
    """The fault of a value that is none of a field's choices, with the closest of them."""
    choices = re.findall(r"'([^']*)'", expected)
    hint = did_you_mean(str(value), choices, _LIKE)
    if str(value).lower() in OTHER_NAMES:  # fp16, which resembles bfloat16
        *_, note = OTHER_NAMES[str(value).lower()].note.split(": ")
        hint = f" (did you mean {note}?)" if note in choices else hint
    return f"must be one of {', '.join(choices)}{hint}"


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
