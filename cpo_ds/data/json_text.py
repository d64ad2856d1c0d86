"""JSON from outside and for files, with each key once and any text that Python can hold."""

from __future__ import annotations

import json
import math
from typing import Any

# How files of JSON write half of a surrogate pair, for which UTF-8 has no form: as JSON's own
# escape, like \ud800.
UNPAIRED = "backslashreplace"


def parse_json(text: str) -> Any:
    """Parses a JSON text. Raises `ValueError` or `RecursionError` for a malformed one.

    A key that is given twice is malformed too: the last value would win without a word.
    """
    return _DECODER.decode(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its keys and values. Raises `ValueError` for a key given twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r:.40} is given twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 has a form for a text; half of a surrogate pair has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value for messages, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def finite(value: object) -> float | None:
    """A value as a float; None unless it is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None
