"""Reads sources from rows or from plain text, and files whose lines belong to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cpo_ds.data.candidates import CandidateRow, read_candidates
from cpo_ds.data.prompts import LANGUAGES, Languages, parse_direction
from cpo_ds.data.sameness import is_blank
from cpo_ds.errors import UserError

_ROW_FILES = (".jsonl", ".jsonl.gz", ".parquet", ".tmx", ".tmx.gz")


@dataclass(frozen=True)
class Sources:
    """Rows to translate. Row `i` belongs to line `line_of_row[i]`, from 0, of aligned files."""

    path: Path
    rows: tuple[CandidateRow, ...]
    line_of_row: tuple[int, ...]
    num_lines: int | None  # of a file aligned with them; None if that is not clear
    skipped: Counter[str]  # rows that were left out, by reason
    languages: Languages = field(default_factory=LANGUAGES.copy)  # names by code


def read_sources(path: Path, language_pair: str | None, references: Path | None) -> Sources:
    """Reads rows, or with a language pair plain text, one sentence a line.

    Raises `UserError`, naming file and line, for files that are missing or malformed.
    """
    is_rows = path.name.endswith(_ROW_FILES)
    if language_pair is None:
        if not is_rows and path.is_file():
            raise UserError(
                f"{path} does not end in {', '.join(_ROW_FILES)}; if it is plain text, give its "
                "--language-pair, like en-de."
            )
        if references:
            raise UserError("--references belongs to plain text; rows hold their references.")
        return _from_rows(path)
    if is_rows:
        raise UserError(f"--language-pair belongs to plain text; each row of {path} names its own.")
    return _from_text(path, language_pair, references)


def _from_rows(path: Path) -> Sources:
    """Sources from rows. If a row was left out, it is not clear which line belongs to which row."""
    rows, skipped = read_candidates(str(path))
    num_lines = None if skipped["empty source"] else len(rows)
    return Sources(path, tuple(rows), tuple(range(len(rows))), num_lines, skipped)


def _from_text(path: Path, language_pair: str, references: Path | None) -> Sources:
    """Sources from plain text."""
    # Read both files.
    try:
        parse_direction(language_pair)
    except UserError as error:
        raise UserError(f"--language-pair: {error}") from None
    sources = read_lines(path)
    if references:
        translations = read_lines(references)
        _check_count(references, len(translations), path, len(sources))
    else:
        translations = [""] * len(sources)

    # Make a row of each line that is not blank.
    rows, line_of_row = [], []
    skipped: Counter[str] = Counter()
    for number, (source, reference) in enumerate(zip(sources, translations, strict=True)):
        if is_blank(source):
            skipped["empty source"] += 1
            continue
        if references and is_blank(reference):
            skipped["empty reference"] += 1
        known = None if is_blank(reference) else reference
        values = {"language_pair": language_pair, "source": source}
        values |= {"reference": known} if known else {}
        where = f"{path}, line {number + 1}"
        rows.append(CandidateRow(language_pair, source, known, {}, values, where))
        line_of_row.append(number)
    if not rows:
        raise UserError(f"{path} has no sentence; it needs at least one.")
    return Sources(path, tuple(rows), tuple(line_of_row), len(sources), skipped)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Raises `UserError`, naming line and byte, for any other file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the name.") from None
    if not lines[-1]:
        lines.pop()  # the last line ends with a newline, too
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not valid UTF-8 at byte {error.start + 1}; save the file "
                "as UTF-8."
            ) from None
        texts.append(text.removesuffix("\r"))
    return texts


def read_aligned(path: Path, sources: Sources) -> list[str]:
    """The line of a file that belongs to each row. Raises `UserError` if that is not clear."""
    lines = read_lines(path)
    if sources.num_lines is None:
        raise UserError(
            f"{sources.path} has rows with an empty source, so it is not clear which line of "
            f"{path} belongs to which row; remove them, and their lines."
        )
    _check_count(path, len(lines), sources.path, sources.num_lines)
    return [lines[number] for number in sources.line_of_row]


def _check_count(path: Path, lines: int, sources: Path, expected: int) -> None:
    """Raises `UserError` unless a file has a line for each source."""
    if lines != expected:
        raise UserError(
            f"{path} has {lines} lines, but {sources} has {expected}; each line must belong to the "
            "source in the same line, even if it is empty."
        )
