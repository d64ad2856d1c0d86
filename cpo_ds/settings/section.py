"""The base of the configuration's sections: immutable, strict, and `none` for no value."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, without unknown keys, nan or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _none_is_no_value(cls, values: Any) -> Any:
        """Reads the word `none` as no value, unless it is one of the field's choices."""
        if not isinstance(values, dict):
            return values
        return {
            key: None if value == "none" and not cls._has_choice(key, "none") else value
            for key, value in values.items()
        }

    @classmethod
    def _has_choice(cls, key: str, word: str) -> bool:
        return key in cls.model_fields and word in get_args(cls.model_fields[key].annotation)
