"""Sources for `cpo-ds translate`: rows, plain text, one sentence, ALMA's folders, test sets."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import parse_direction
from cpo_ds.data.sameness import is_blank
from cpo_ds.errors import UserError
from cpo_ds.translate.lines import Sources, read_sources
from cpo_ds.translate.test_sets import read_test_set

PAIR = "--pair"
_ALMA_FILE = re.compile(r"test[.-]([a-z]{2,3}-[a-z]{2,3})\.json")


def read_input(
    *,
    path: Path | None,
    text: str | None,
    test_set: str | None,
    pair: str | None,
    references: Path | None,
) -> Sources:
    """Reads the sources of one of the inputs, which the caller has checked to be the only one.

    Raises `UserError` if they are missing, malformed or empty.
    """
    if test_set is not None:
        return read_test_set(test_set)
    if text is not None:
        return _one_sentence(text, pair)
    assert path is not None
    if path.is_dir():
        return _alma_folder(path, pair)
    if _ALMA_FILE.fullmatch(path.name):
        return _alma_files(path, [path])
    return read_sources(path, pair, references)


def _one_sentence(text: str, pair: str | None) -> Sources:
    """A single source from the command line."""
    if pair is None:
        raise UserError(f"--text needs {PAIR}, the direction, like de-en.")
    try:
        parse_direction(pair)
    except UserError as error:
        raise UserError(f"{PAIR}: {error}") from None
    if is_blank(text):
        raise UserError("--text is empty; give a sentence.")
    values = {"language_pair": pair, "source": text}
    row = CandidateRow(pair, text, None, {}, values, "--text")
    return Sources(Path("--text"), (row,), (0,), 1, Counter())


def _alma_folder(folder: Path, pair: str | None) -> Sources:
    """All test files below a folder of ALMA's layout, or those of one direction.

    They are named test.de-en.json. Raises `UserError` if there is none.
    """
    files = sorted(path for path in folder.rglob("test*.json") if _ALMA_FILE.fullmatch(path.name))
    if not files:
        raise UserError(
            f"{folder} holds no file like test.de-en.json, as ALMA's folders do; give such a "
            "folder, a .jsonl file, or a plain text."
        )
    wanted = [path for path in files if pair is None or _direction(path) == pair]
    if not wanted:
        names = ", ".join(sorted({_direction(path) for path in files}))
        raise UserError(f"{folder} has no test file of {PAIR} {pair}; it has {names}.")
    return _alma_files(folder, wanted)


def _direction(path: Path) -> str:
    """`test.de-en.json` -> `de-en`."""
    match = _ALMA_FILE.fullmatch(path.name)
    assert match is not None
    return match[1]


def _alma_files(path: Path, files: list[Path]) -> Sources:
    """Rows of files with `{"translation": {"de": ..., "en": ...}}`, one a line or in a list."""
    rows: list[CandidateRow] = []
    skipped: Counter[str] = Counter()
    for file in files:
        direction = _direction(file)
        source_code, target_code = parse_direction(direction)
        for where, value in _objects(file):
            texts = value.get("translation") if isinstance(value, dict) else None
            texts = texts if isinstance(texts, dict) else {}
            source, reference = texts.get(source_code), texts.get(target_code, "")
            if not isinstance(source, str) or not isinstance(reference, str):
                raise UserError(
                    f"{where}: needs translation.{source_code} and translation.{target_code}, "
                    "both text."
                )
            if is_blank(source):
                skipped["empty source"] += 1
                continue
            values = {"language_pair": direction, "source": source}
            known = None if is_blank(reference) else reference
            values |= {"reference": known} if known else {}
            rows.append(CandidateRow(direction, source, known, {}, values, where))
    if not rows:
        raise UserError(f"{path} has no sentence; it needs at least one.")
    return Sources(path, tuple(rows), tuple(range(len(rows))), None, skipped)


def _objects(file: Path) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file and where each is. Raises `UserError` for one that is malformed."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check the file.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not valid UTF-8 at byte {error.start + 1}; save the file as UTF-8."
        ) from None
    try:
        if text.lstrip().startswith("["):
            values = json.loads(text)
            yield from ((f"{file}, row {i}", value) for i, value in enumerate(values, start=1))
            return
        for number, line in enumerate(text.split("\n"), start=1):
            where = f"{file}, line {number}"
            if line.strip():
                yield where, json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); write one object per line.") from None
