"""Reads results of human evaluation, whichever of the three tools made them, and the key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError, one_line
from cpo_ds.evaluate.human.appraise import read_scores
from cpo_ds.evaluate.human.judgements import Judgement, Key, latest
from cpo_ds.evaluate.human.page import FORMAT, read_saved
from cpo_ds.evaluate.human.pearmut import read_log


def read_key(path: Path) -> Key:
    """Reads the key that `sample` wrote. Raises `UserError` if it is missing or no key."""
    values = _parse(_text(path), str(path))
    try:
        return Key(values)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is no key; give the file that `cpo-ds evaluate human sample` wrote to --key."
        ) from None


def read_results(paths: Sequence[Path], key: Key) -> list[Judgement]:
    """Reads files of results; of two judgements of the same by the same annotator the later counts.

    Raises `UserError` for a file of no known kind, a damaged one, or one of another sample.
    """
    judgements = [judgement for path in paths for judgement in _read(path, key)]
    if not judgements:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: no judgement; give results that annotators made.")
    return latest(judgements)


def _read(path: Path, key: Key) -> list[Judgement]:
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with results.")
    if not text.lstrip().startswith("{"):
        return read_scores(path, key)

    # A file of the page is one object. Pearmut's log has one on each line; its export has all
    # campaigns' logs in one object.
    if path.suffix != ".jsonl":
        values = _parse(text, str(path))
        if values.get("format") == FORMAT:
            return read_saved(path, values, key)
        if "user_id" not in values:
            lines = [
                (f"{path}, {campaign}, entry {number}", entry)
                for campaign, entries in values.items()
                if str(campaign).startswith(key.sample) and isinstance(entries, list)
                for number, entry in enumerate(entries, start=1)
            ]
            if not lines:
                raise UserError(
                    f"{path}: not a file of results of the sample {key.sample}; give a file saved "
                    "from the page, Pearmut's annotations or Appraise's scores."
                )
            return read_log(lines, key)
    lines = [
        (f"{path}, line {number}", _parse(line, f"{path}, line {number}"))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    return read_log(lines, key)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not valid UTF-8; give a file with results as it is.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check it.") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises `UserError` for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({one_line(error)}); copy the file again, whole."
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; give the file unchanged.")
    return values
