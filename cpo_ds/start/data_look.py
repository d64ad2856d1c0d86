"""Looks at the first rows of preference data, and says which format they have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cpo_ds.data.formats import Format, format_of
from cpo_ds.data.sources import RawRow, local_path, read_raw
from cpo_ds.errors import UserError
from cpo_ds.settings.data import DataConfig

_ROWS = 100  # to look at
_MOST_ROWS = 200_000  # to count, which takes seconds
# Formats that fit one row alone, each with the fields that a row needs, for messages.
NEEDS = {
    "pairs": "prompt, chosen, rejected",
    "x-alma": "source, chosen, reject, directions",
    "alma-r": "translation (with language_pair, the texts and their scores)",
    "triplets": "language_pair, source, candidates, scores",
}
PUBLISHED = {"haoranxu/alma-r-preference": "alma-r", "haoranxu/x-alma-preference": "x-alma"}


@dataclass(frozen=True)
class Look:
    """The format of preference data, and what its first rows show.

    `rows` is None if the data was not read, since only its name on the hub is known. Counting ends
    after 200,000 rows.
    """

    format: str
    rows: int | None = None
    directions: tuple[str, ...] = ()
    scorer: str | None = None  # for data.scorer, if the default does not fit

    @property
    def is_counted(self) -> bool:
        """Whether `rows` are all rows."""
        return self.rows is not None and self.rows <= _MOST_ROWS

    @property
    def size(self) -> str:
        """The number of rows, in words."""
        if self.rows is None:
            return "rows that are not counted"
        if not self.is_counted:
            return f"more than {_MOST_ROWS:,} rows"
        return f"{self.rows:,} row{'s' * (self.rows > 1)}"


def look(path: str, wanted: str | None = None) -> Look:
    """Reads the first rows of a file or folder, and counts all.

    `wanted` is a format that must fit; without one the format that fits is taken. Raises
    `UserError` if the data cannot be read, or no format fits.
    """
    if local_path(path) is None and "/" in path and not path.startswith((".", "/", "~")):
        return _by_name(path, wanted)
    rows = (row for row in read_raw(path, "train") if row is not None)
    first = list(itertools.islice(rows, _ROWS))
    if not first:
        raise UserError(f"{path} holds no rows; it needs at least one.")
    problems: dict[str, str] = {}
    for name in [wanted] if wanted else NEEDS:
        for scorer in _scorers(name, first[0]):
            try:
                directions = _directions(first, name, scorer)
            except UserError as error:
                problems.setdefault(name, str(error))
                continue
            more = itertools.islice(rows, _MOST_ROWS - len(first) + 1)
            return Look(name, len(first) + sum(1 for _ in more), directions, scorer)
    if wanted:
        raise UserError(problems[wanted])
    raise _no_format(first[0], problems)


def _by_name(path: str, wanted: str | None) -> Look:
    """The format of data on the hub, which is not downloaded. Raises `UserError`."""
    known = PUBLISHED.get(path.lower())
    if wanted or known:
        return Look(wanted or str(known))
    raise UserError(
        f"there is no file or folder {path}. If it is a name on the Hugging Face hub, say its "
        f"format by --format, one of {', '.join(NEEDS)}; else correct the path."
    )


def _scorers(name: str, row: RawRow) -> list[str | None]:
    """Values of data.scorer to try: the default, then the mean of a row's own scores."""
    scores = row.values.get("scores") if name == "triplets" else None
    if not isinstance(scores, dict):
        return [None]
    return [None, "+".join(metric for metric, values in scores.items() if values)]


def _directions(rows: Sequence[RawRow], name: str, scorer: str | None) -> tuple[str, ...]:
    """The directions of rows in a format. Raises `UserError` for a row that does not fit it."""
    settings = {"format": name, "path": "rows"} | ({"scorer": scorer} if scorer else {})
    # A tokenizer renders conversations later; for now any text will do.
    reader: Format = format_of(
        DataConfig.model_validate(settings), lambda messages, _: "".join(map(str, messages))
    )
    directions: dict[str, None] = {}
    for row in rows:
        for direction in reader.directions(row):
            reader.pick(row, direction)
            directions[direction] = None
    return tuple(direction for direction in directions if direction)


def _no_format(row: RawRow, problems: dict[str, str]) -> UserError:
    """The error for rows that no format fits, with the fault of the one that comes closest."""
    fields = [name for name, value in row.values.items() if value is not None]
    matches = {name: len(set(NEEDS[name].split(", ")) & set(fields)) for name in NEEDS}
    closest = max(matches, key=lambda name: matches[name])
    if matches[closest] > 1:
        return UserError(f"as data.format: {closest}, {problems[closest]}")
    needs = "; ".join(f"{name} needs {needed}" for name, needed in NEEDS.items())
    return UserError(
        f"{row.where}: no format fits the fields {', '.join(fields)}: {needs}. Rename the fields, "
        "or see docs/data.md; if there is no worse translation yet, cpo-ds prepare makes pairs."
    )
