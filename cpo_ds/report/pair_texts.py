"""Finds the texts of held-out pairs in a run's data, by their file and line."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from cpo_ds.errors import UserError
from cpo_ds.settings.data import DataConfig

Key = tuple[str, str]  # origin and direction of a pair
PairTexts = tuple[str, ...]  # source or prompt, chosen, rejected completions


def find_texts(settings: Any, wanted: Collection[Key]) -> tuple[dict[Key, PairTexts], str]:
    """The texts of pairs, read from the data of a run's `data` section, and why some are missing.

    The data is read where the run read it, seen from the working folder. Nothing is downloaded.
    """
    if not wanted:
        return {}, ""
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    if not isinstance(settings, Mapping):
        return {}, "the run's configuration is not known, and so neither is its data"
    try:
        data = DataConfig.model_validate(settings)
        texts: dict[Key, PairTexts] = {}
        for path in dict.fromkeys([data.path, data.eval_path]):
            if len(texts) < len(set(wanted)) and (path or data.format == "sample"):
                texts |= _texts_in(data, path, set(wanted) - texts.keys())
    except (UserError, ValidationError) as error:
        return {}, " ".join(str(error).split())
    missing = len(set(wanted)) - len(texts)
    return texts, f"{missing} of the pairs are not in the data any more" if missing else ""


def _texts_in(data: DataConfig, path: str | None, wanted: Collection[Key]) -> dict[Key, PairTexts]:
    """The wanted pairs of a path. Raises `UserError` if it cannot be read."""
    # Imported late: reading data takes pyarrow, half a second.
    from cpo_ds.data.formats import format_of
    from cpo_ds.data.prompts import source_of, with_names
    from cpo_ds.data.rows import raw_rows_of

    row_format, languages = format_of(data, _plainly), with_names(data.languages, "data.languages")
    origins = {origin for origin, _ in wanted}
    texts: dict[Key, PairTexts] = {}
    for raw in raw_rows_of(data, path):
        if raw is None or raw.origin not in origins:
            continue
        for direction in row_format.directions(raw):
            picked = row_format.pick(raw, direction)
            if (raw.origin, direction) in wanted and not isinstance(picked, str):
                source = source_of(picked.source, direction, languages) or picked.source
                texts[raw.origin, direction] = (source, picked.chosen, *picked.rejected)
        if len(texts) == len(wanted):
            break
    return texts


def _plainly(messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    """A conversation as plain text, for people to read."""
    return "\n".join(str(message.get("content") or "") for message in messages) + "\n"
