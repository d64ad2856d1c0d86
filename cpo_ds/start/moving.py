"""Moves settings of another trainer into a recipe, and keeps account of every difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.settings.other_names import OTHER_NAMES
from cpo_ds.start.recipe_text import Value, as_yaml

_ON = ("use_fast_tokenizer",)  # settings without a counterpart that are on here
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

# The kinds of differences, in the order in which they are told.
OTHERWISE = "Means something else in cpo_ds"
LOST = "Has no counterpart, and the result may change"
UNKNOWN = "Not known or not read, so left out"
ASSUMED = "Assumed"
DEFAULTS = "Not in the file, so taken from the other trainer's defaults"
EQUAL = "Has no counterpart, but the result does not depend on it"
KINDS = (OTHERWISE, LOST, UNKNOWN, ASSUMED, DEFAULTS, EQUAL)


class Moving:
    """The settings of one file on their way into a recipe.

    A setting that `take` or a sibling has read counts as moved. `finish` lists the others by name.
    """

    def __init__(self, settings: Mapping[str, Any], defaults: Mapping[str, Any], trainer: str):
        self.settings, self.defaults, self.trainer = settings, defaults, trainer
        self.values: dict[str, Value] = {}  # of the recipe's fields, by dotted names
        self.differences: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file sets a value."""
        return self.settings.get(name) is not None

    def take(self, name: str, default: Any = None) -> Any:
        """The value of a setting, else the trainer's default, else the given one."""
        self._taken.add(name)
        value = self.settings.get(name)
        return self.defaults.get(name, default) if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        """A setting that is a number. Raises `UserError` for any other value."""
        value = self.take(name, default)
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{name} must be a number, but is {value!r}; correct it.") from None
        if number != number or abs(number) == float("inf"):
            raise UserError(f"{name} must be a finite number, but is {value!r}; correct it.")
        return number

    def whole(self, name: str, default: int | None = None) -> int:
        """A setting that is a whole number. Raises `UserError` for any other value."""
        number = self.number(name, default)
        if number != int(number):
            raise UserError(f"{name} must be a whole number, but is {number}; correct it.")
        return int(number)

    def flag(self, name: str, default: bool = False) -> bool:
        """A setting that is true or false; `--no_NAME` is false. Raises `UserError`."""
        if self.take(f"no_{name}") is True:
            return False
        word = str(self.take(name, default)).lower()
        if word not in _TRUE + _FALSE:
            raise UserError(f"{name} must be true or false, but is {word!r}; correct it.")
        return word in _TRUE

    def names(self, name: str) -> list[str]:
        """A setting that is a list, or names with commas or spaces between them."""
        value = self.take(name)
        parts = value if isinstance(value, list) else str(value or "").replace(",", " ").split()
        return [str(part).strip(" ,") for part in parts if str(part).strip(" ,")]

    def put(self, field: str, value: Any, origin: str, comment: str = "") -> None:
        """Sets a field of the recipe to a value that comes from the setting `origin`."""
        if self.has(origin):
            given = self.settings[origin]
            text = origin if given is True else f"{origin} {_shown(given)}"
        else:
            text = f"{self.trainer}'s default of {origin}"
            self.differences[DEFAULTS].append(f"{field}: {as_yaml(value)} (of {origin})")
        self.values[field] = Value(value, f"{text}; {comment}" if comment else text)

    def assume(self, field: str, value: Any, reason: str) -> None:
        """Sets a field of the recipe to a value that no setting gives."""
        self.values[field] = Value(value, f"assumed: {reason}")
        self.differences[ASSUMED].append(f"{field}: {as_yaml(value)}: {reason}")

    def tell(self, kind: str, name: str, text: str) -> None:
        """Adds a difference on a setting, and counts the setting as moved."""
        self._taken.add(name)
        value = f" {_shown(self.settings[name])}" if self.has(name) else ""
        self.differences[kind].append(f"{name}{value}: {text}")

    def finish(self, lost: Mapping[str, str], equal: Mapping[str, str]) -> None:
        """Lists every setting that was not taken, by the tables of those without counterparts."""
        by_reason: dict[str, list[str]] = {}
        for name, value in self.settings.items():
            if name in self._taken:
                continue
            known = name.removeprefix("no_") if value is True else name
            is_off = known != name or value in (None, False, "false", "False", "none", "")
            if known in equal:
                by_reason.setdefault(equal[known], []).append(name)
            elif known in lost and is_off and known not in _ON:
                by_reason.setdefault("switched off, as it is here", []).append(name)
            elif known in lost:
                self.tell(LOST, name, lost[known])
            else:
                self.tell(UNKNOWN, name, _hint(name))
        for reason, names in by_reason.items():
            self.differences[EQUAL].append(f"{', '.join(names)}: {reason}")

    def recipe(self, head: str) -> str:
        """The text of a recipe, with the origin of each value behind it."""
        lines = [f"# {line}" for line in head.splitlines()]
        fields = sorted(self.values, key=lambda name: _ORDER.index(name.partition(".")[0]))
        section = ""
        for field in fields:
            first, _, leaf = field.partition(".")
            if leaf and first != section:
                lines.append(f"{first}:")
            section = first
            value, comment = self.values[field]
            comment = " ".join(comment.split())
            indent = "  " if leaf else ""
            lines.append(f"{indent}{leaf or first}: {as_yaml(value)} # {comment}")
        return "\n".join(lines) + "\n"


_ORDER = list(Config.model_fields)


def _shown(value: Any) -> str:
    """A value of another trainer in at most 80 characters of one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(name: str) -> str:
    """The words of the table of other trainers' names, for a name that only this table has."""
    if name not in OTHER_NAMES:
        return "no setting of this name is known; docs/configuration.md has every field"
    field, note = OTHER_NAMES[name]
    return f"see {field}{f', {note}' if note else ''}" if field else note
