"""Reads raw rows from files, folders and datasets, and checks their fields."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.file_kinds import SUFFIXES, is_in_folder, no_rows_in, unit_and_rows
from cpo_ds.data.json_text import finite, shown
from cpo_ds.data.sameness import is_blank
from cpo_ds.errors import UserError, one_line
from cpo_ds.storage.hub_names import is_unreachable, why_not_provided

_DATASET_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


class MissingField(UserError):
    """A row has no value for a field that it needs."""


@dataclass(frozen=True)
class RawRow:
    """One row as it was read, with its origin, and checked access to its fields."""

    file: str
    unit: str  # of `number`: "line" or "row"
    number: int  # counted from 1
    values: dict[str, Any]

    @property
    def origin(self) -> str:
        """The row's file and number, like `"pairs.jsonl:12"`."""
        return f"{self.file}:{self.number}"

    @property
    def where(self) -> str:
        """The row's file and number for messages, like `"pairs.jsonl, line 12"`."""
        return f"{self.file}, {self.unit} {self.number}"

    def error(self, field: str, problem: str) -> UserError:
        """Makes an error that names the file, the line and the field."""
        end = "" if problem.endswith(("?", ".")) else "."
        return UserError(f"{self.where}: field {field} {problem}{end}")

    def get(self, *path: str) -> Any:
        """The value at a path of keys. Raises `MissingField` if it is missing or null."""
        value: Any = self.values
        for depth, key in enumerate(path):
            if not isinstance(value, dict):
                raise self.error(".".join(path[:depth]), f"is not an object but {shown(value)}")
            value = value.get(key)
            if value is None:
                field = ".".join(path[: depth + 1])
                raise MissingField(str(self.error(field, "is missing; every row needs it")))
        return value

    def text(self, *path: str) -> str:
        """The string at a path of keys. Raises `UserError` if it is missing, blank or no string."""
        return self.checked_text(self.get(*path), ".".join(path))

    def checked_text(self, value: Any, field: str) -> str:
        """Returns `value`. Raises `UserError` unless it is a valid string that is not blank.

        A text of invisible characters only is blank.
        """
        if not isinstance(value, str):
            raise self.error(field, f"is not a string but {shown(value)}")
        if is_blank(value):
            raise self.error(field, "is empty; fill it in or remove the row")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.error(field, "has half of a surrogate pair; correct the text") from None
        return value

    def mapping(self, *path: str) -> dict[str, Any]:
        """The JSON object at a path of keys. Raises `UserError` if it is missing or no object."""
        value = self.get(*path)
        if not isinstance(value, dict):
            raise self.error(".".join(path), f"is not an object but {shown(value)}")
        return value

    def number_at(self, *path: str) -> float:
        """The number at a path of keys. Raises `UserError` if it is missing or not finite."""
        value, field = self.get(*path), ".".join(path)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(field, f"is not a number but {shown(value)}")
        if (number := finite(value)) is None:
            raise self.error(field, f"is {shown(value)}; give it a number or remove the row")
        return number


def read_raw(path: str, split: str) -> Iterator[RawRow | None]:
    """Reads a file, a folder of files (sorted by name) or a dataset; yields None for a blank line.

    `split` applies to datasets. Raises `UserError` if the data does not exist, cannot be read or is
    empty.
    """
    local = local_path(path)
    if local is not None:
        yield from _read_local(local, split)
    elif _looks_like_path(path):
        raise UserError(f"data path {path!r} does not exist; correct it, or create the file.")
    else:
        yield from _read_dataset(path, split)


def read_folder(folder: Path, label: str) -> Iterator[RawRow | None]:
    """Reads every file below `folder` that holds rows (see `data_files`).

    `label` is the name of the folder in messages. Raises `UserError` if there is no such file.
    """
    files = data_files(folder)
    if not files:
        raise UserError(no_rows_in([name for name, _ in _inside(folder)], label))
    for name, path in files:
        yield from _read_file(path, f"{label}/{name}")


def data_files(folder: Path) -> list[tuple[str, Path]]:
    """The files that `read_folder` reads, in order, each with its name below the folder."""
    return [(name, path) for name, path in _inside(folder) if is_in_folder(name)]


def _inside(folder: Path) -> list[tuple[str, Path]]:
    inside = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*"))
    return [(name, path) for name, path in inside if path.is_file()]


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` of the datasets library wrote."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def local_path(path: str) -> Path | None:
    """The file or folder at a path; None if there is none."""
    local = Path(os.path.expanduser(path))
    return local if path and local.exists() else None


def _looks_like_path(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) or _DATASET_NAME.fullmatch(path) is None


def _read_local(path: Path, split: str) -> Iterator[RawRow | None]:
    if path.is_file():
        yield from _read_file(path, str(path))
    elif is_saved_dataset(path):
        yield from _read_saved_dataset(path, split)
    else:
        yield from read_folder(path, str(path))


def _read_file(path: Path, label: str) -> Iterator[RawRow | None]:
    unit, numbered = unit_and_rows(path, label)
    rows = (
        None if values is None else RawRow(label, unit, number, values)
        for number, values in numbered
    )
    try:
        yield from _not_empty(rows, label)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{label} cannot be read ({reason}); check the file.") from None


def _not_empty(rows: Iterator[RawRow | None], label: str) -> Iterator[RawRow | None]:
    """Passes rows through. Raises `UserError` at the end if there was none."""
    is_empty = True
    for row in rows:
        is_empty = is_empty and row is None
        yield row
    if is_empty:
        raise UserError(f"{label} is empty; it needs at least one row.")


def _read_saved_dataset(path: Path, split: str) -> Iterator[RawRow | None]:
    """Reads a folder that `save_to_disk` of the datasets library wrote."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises errors of many types for a damaged folder
        raise UserError(f"{path} is not a whole saved dataset ({error}); save it again.") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise UserError(
                f"{path} has no split {split!r}; set data.split to one of: {', '.join(dataset)}."
            )
        dataset = dataset[split]
    yield from _not_empty(_dataset_rows(dataset, str(path)), str(path))


def _read_dataset(name: str, split: str) -> Iterator[RawRow | None]:
    for label, part in load_parts(name, split):
        yield from _not_empty(_dataset_rows(part, label), label)


def load_parts(name: str, split: str) -> list[tuple[str, Any]]:
    """Loads a dataset by name: its default configuration, or all of them if it has no default.

    Returns their labels and contents. Raises `UserError` if it cannot be loaded.
    """
    import datasets

    try:
        default = datasets.get_dataset_default_config_name(name)
        configs = [default] if default else sorted(datasets.get_dataset_config_names(name))
        parts = [datasets.load_dataset(name, config, split=split) for config in configs]
    except Exception as error:  # one type each for offline, unknown, gated, no such split
        reason = " ".join(str(error).split())
        if is_unreachable(error):
            problem = why_not_provided(error, "HF_DATASETS_OFFLINE")
            raise UserError(
                f"dataset {name!r}, split {split!r}, cannot be loaded; check data.path: there is "
                f"no such file or folder, and {problem}."
            ) from None
        raise UserError(
            f"dataset {name!r}, split {split!r}, cannot be loaded ({type(error).__name__}: "
            f"{reason}); check data.path (a name on the Hugging Face hub, or a file or folder that "
            "exists) and data.split, log in with `hf auth login` if it is private, or download it "
            "and give the folder."
        ) from None
    labels = [name if len(configs) == 1 else f"{name}/{config}" for config in configs]
    return list(zip(labels, parts, strict=True))


def _dataset_rows(dataset: Any, label: str) -> Iterator[RawRow | None]:
    number = 0
    try:
        for number, values in enumerate(dataset, start=1):
            yield RawRow(label, "row", number, values)
    except (ValueError, OverflowError) as error:  # such as a date in the year 10000
        raise UserError(
            f"{label}, row {number + 1}: a value cannot be read ({one_line(error)}); correct it, "
            "or remove its column."
        ) from None
