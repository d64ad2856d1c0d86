"""Splits rows into training and held-out rows, so that no source text is on both sides."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from cpo_ds.data.prompts import LANGUAGES, Languages, source_of
from cpo_ds.data.sameness import as_seen
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow


def split_held_out(
    rows: Sequence[PreferenceRow], fraction: float, seed: int, languages: Languages = LANGUAGES
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """Splits rows into training and held-out rows, both in the given order.

    `languages` are the names in the prompts. Raises `UserError` as `held_out_indices` does.
    """
    if fraction == 0:
        return list(rows), []
    texts = _codes(seen_source(row, languages) for row in rows)
    origins = _codes(row.origin for row in rows)
    directions = [row.direction for row in rows]
    indices = held_out_indices(directions, texts, origins, fraction, seed)
    held = set(indices)
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [rows[index] for index in indices]


def seen_source(row: PreferenceRow, languages: Languages) -> str:
    """The text by which rows are grouped, as it looks: the source in an ALMA prompt, or the prompt.

    A chat template may surround the ALMA prompt.
    """
    return as_seen(source_of(row.prompt, row.direction, languages) or row.prompt)


def held_out_indices(
    directions: Sequence[str],
    texts: Sequence[int],
    origins: Sequence[int],
    fraction: float,
    seed: int,
) -> list[int]:
    """The indices of the rows to hold out, in ascending order.

    `texts` and `origins` are numbers from 0 on, the same for rows with the same source text and for
    rows of the same line of a file. The same arguments always give the same split. Groups of rows
    stay together: rows with the same text (of ALMA prompts, in any direction), or from the same
    line. Each direction gives its share if the groups allow it. Raises `UserError` if either side
    would be empty.
    """
    # Hold out groups in random order, as long as at least half of a group fits the quotas.
    quotas = _quotas(Counter(directions), fraction)
    groups = _groups(texts, origins)
    random.Random(seed).shuffle(groups)
    held: set[int] = set()
    for group in groups:
        counts = Counter(directions[index] for index in group)
        wanted = sum(min(count, quotas[direction]) for direction, count in counts.items())
        if 2 * wanted >= len(group):
            held.update(group)
            for direction, count in counts.items():
                quotas[direction] = max(0, quotas[direction] - count)

    if not 0 < len(held) < len(directions):
        raise UserError(
            f"data.eval_fraction: {fraction} of {len(directions)} pairs in {len(groups)} groups "
            "with the same source cannot be held out and leave pairs to train on; give more data, "
            "change the fraction, or set data.eval_path instead."
        )
    return sorted(held)


def _quotas(counts: Counter[str], fraction: float) -> dict[str, int]:
    """The number of rows to hold out of each direction, by the largest-remainder method.

    The total is the rounded share of all rows; at least one row is held out and one is left.
    """
    rows = sum(counts.values())
    total = min(max(1, round(fraction * rows)), rows - 1)
    quotas = {direction: math.floor(fraction * count) for direction, count in counts.items()}
    by_remainder = sorted(quotas, key=lambda name: (quotas[name] - fraction * counts[name], name))
    for direction in by_remainder[: max(0, total - sum(quotas.values()))]:
        quotas[direction] += 1
    return quotas


def _codes(values: Iterable[Hashable]) -> list[int]:
    """A number for each value, from 0 on, the same for equal values."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _groups(*columns: Sequence[int]) -> list[list[int]]:
    """Indices of the rows that must be on the same side, grouped, in order of first appearance.

    Rows with the same number in one of the columns belong together.
    """
    # Union-find: rows of a group have the same root, the first row of the group.
    parents = list(range(len(columns[0])))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for column in columns:
        first: dict[int, int] = {}
        for index, code in enumerate(column):
            low, high = sorted((root(first.setdefault(code, index)), root(index)))
            parents[high] = low
    groups: dict[int, list[int]] = {}
    for index in range(len(parents)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
