"""Preference rows from data in any format, and their split into training and held-out pairs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from cpo_ds.config import DataConfig
from cpo_ds.data.formats import Format, format_of
from cpo_ds.data.prompts import Message, RenderChat, alma_prompt, parse_direction, source_of
from cpo_ds.data.sources import RawRow, read_folder, read_raw
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.schema import PreferenceRow

__all__ = ["Message", "RenderChat", "RowReport", "read_rows", "split_held_out"]

SAMPLE = Path(__file__).parent / "sample"


@dataclass
class RowReport:
    """What reading came to: rows read, pairs dropped by reason, pairs kept by direction."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """A summary to print, largest counts first."""
        total = sum(self.kept.values())
        kept = [f"  {name or 'no direction'}: {n}" for name, n in self.kept.most_common()]
        dropped = [f"  dropped, {reason}: {n}" for reason, n in self.dropped.most_common()]
        return [f"read {self.read} rows, kept {total} pairs", *kept, *dropped]


def read_rows(
    data: DataConfig, render_chat: RenderChat | None, path: str | None = None
) -> tuple[list[PreferenceRow], RowReport]:
    """The preference pairs of `data.path` (or of `path`), in the order of the files.

    `render_chat` is the tokenizer's chat template, None if it has none; `data.prompt_style: chat`
    and conversations need it. Raises `UserError` for a row that is not as `data.format` says, for
    a selected direction that is not there, and where no pair is left.
    """
    if data.prompt_style == "chat" and data.format != "pairs" and render_chat is None:
        raise UserError(
            "data.prompt_style is chat, but the tokenizer has no chat template; set it to alma, or "
            "take a model with one."
        )
    for direction in data.directions or []:
        _check_selected(direction)
    place = path or data.path
    raw_rows = read_raw(place, data.split) if place else read_folder(SAMPLE, "sample")
    row_format = format_of(data, render_chat)
    rows: list[PreferenceRow] = []
    report, offered = RowReport(), set[str]()
    for raw in raw_rows:
        count_work()
        if raw is None:
            report.dropped["blank line"] += 1
            continue
        report.read += 1
        for direction in row_format.directions(raw):
            offered.add(direction)
            if data.directions is not None and direction not in data.directions:
                report.dropped["direction not selected"] += 1
                continue
            row = _make_row(raw, direction, row_format, data, render_chat)
            if isinstance(row, str):
                report.dropped[row] += 1
                continue
            report.kept[direction] += 1
            rows.append(row)
    _check_result(report, offered, data, place or "the sample")
    return rows, report


def _check_selected(direction: str) -> None:
    try:
        parse_direction(direction)
    except UserError as error:
        raise UserError(f"data.directions: {error}") from None


def _check_result(report: RowReport, offered: set[str], data: DataConfig, place: str) -> None:
    missing = [direction for direction in data.directions or [] if direction not in offered]
    if missing:
        raise UserError(
            f"data.directions: {missing[0]} is not in {place}; choose among those that are: "
            f"{', '.join(sorted(offered))}."
        )
    if not report.kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in report.dropped.most_common())
        raise UserError(
            f"{place}: no pair is left of {report.read} rows (dropped: {reasons}); check "
            "data.directions, and that the data prefers one of two different completions."
        )


def _make_row(
    raw: RawRow,
    direction: str,
    row_format: Format,
    data: DataConfig,
    render_chat: RenderChat | None,
) -> PreferenceRow | str:
    """The pair, or the reason why there is none."""
    try:
        texts = row_format.pick(raw, direction)
        if isinstance(texts, str):
            return texts
        if texts.chosen == texts.rejected:
            return "chosen equals rejected"
        prompt = _prompt(texts.source, direction, data, render_chat)
    except TemplateError as error:
        raise UserError(
            f"{raw.where}: the tokenizer's chat template refuses this conversation ({error}); "
            "change the row to what the template takes, or use plain strings."
        ) from None
    return PreferenceRow(prompt, texts.chosen, texts.rejected, direction, raw.origin)


def _prompt(source: str, direction: str, data: DataConfig, render_chat: RenderChat | None) -> str:
    if data.format == "pairs":
        return source
    prompt = alma_prompt(source, *parse_direction(direction))
    if data.prompt_style == "chat" and render_chat is not None:
        return render_chat([{"role": "user", "content": prompt}], True)
    return prompt


def split_held_out(
    rows: Sequence[PreferenceRow], fraction: float, seed: int
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """Training and held-out rows, both in the order given; a pure function of its arguments.

    Rows with the same prompt, the same source text (of ALMA prompts, in any direction) or from the
    same line of a file stay together. Each direction gives its share where such groups allow it,
    and groups are taken whole or not at all. Raises `UserError` where either side would be empty.
    """
    if fraction == 0:
        return list(rows), []
    quotas = _quotas(Counter(row.direction for row in rows), fraction)
    groups = _groups(rows)
    random.Random(seed).shuffle(groups)
    held: set[int] = set()
    for group in groups:
        counts = Counter(rows[index].direction for index in group)
        wanted = sum(min(count, quotas[direction]) for direction, count in counts.items())
        if 2 * wanted >= len(group):  # at least half of it fits
            held.update(group)
            for direction, count in counts.items():
                quotas[direction] = max(0, quotas[direction] - count)
    if not 0 < len(held) < len(rows):
        raise UserError(
            f"data.eval_fraction: {fraction} of {len(rows)} pairs in {len(groups)} groups with the "
            "same source cannot be held out and leave pairs to train on; give more data, change "
            "the fraction, or set data.eval_path instead."
        )
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [rows[index] for index in sorted(held)]


def _quotas(counts: Counter[str], fraction: float) -> dict[str, int]:
    """Rows to hold out of each direction: in all the rounded share, at least 1 (largest remainder).

    The total also leaves at least one row to train on.
    """
    rows = sum(counts.values())
    total = min(max(1, round(fraction * rows)), rows - 1)
    quotas = {direction: math.floor(fraction * count) for direction, count in counts.items()}
    by_remainder = sorted(quotas, key=lambda name: (quotas[name] - fraction * counts[name], name))
    for direction in by_remainder[: max(0, total - sum(quotas.values()))]:
        quotas[direction] += 1
    return quotas


def _groups(rows: Sequence[PreferenceRow]) -> list[list[int]]:
    """Row indices, grouped by what must not be on both sides; in order of first appearance."""
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        text = source_of(row.prompt, row.direction) or row.prompt
        for key in (("text", text), ("origin", row.origin)):
            low, high = sorted((root(first.setdefault(key, index)), root(index)))
            parents[high] = low
    groups: dict[int, list[int]] = {}
    for index in range(len(rows)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
