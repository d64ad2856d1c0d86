"""Reads preference rows in any format, and splits them into training and held-out rows."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from cpo_ds.config import DataConfig
from cpo_ds.data.chat import render_answers
from cpo_ds.data.formats import SAME_TEXTS, Format, Texts, format_of, rewrites_prompt
from cpo_ds.data.prompts import (
    LANGUAGES,
    Languages,
    Message,
    RenderChat,
    alma_prompt,
    check_names,
    parse_direction,
    source_of,
    with_names,
)
from cpo_ds.data.sameness import as_seen, same_text
from cpo_ds.data.sources import RawRow, read_folder, read_raw
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.schema import PreferenceRow

__all__ = ["Message", "RenderChat", "RowReport", "read_rows", "split_held_out"]

SAMPLE = Path(__file__).parent / "sample"


@dataclass
class RowReport:
    """Counts of reading: rows read, pairs dropped by reason, pairs kept by direction."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rewritten: int = 0  # pairs whose prompt a template writes otherwise before an answer

    def lines(self) -> list[str]:
        """A summary to print, largest counts first."""
        total = sum(self.kept.values())
        kept = [f"  {name or 'no direction'}: {n}" for name, n in self.kept.most_common()]
        dropped = [f"  dropped, {reason}: {n}" for reason, n in self.dropped.most_common()]
        rewritten = [
            "  with another prompt than a model gets later, because the chat template writes it "
            "otherwise before an answer (data.chat_template_kwargs may change that): "
            f"{self.rewritten}"
        ] * bool(self.rewritten)
        return [f"read {self.read} rows, kept {total} pairs", *kept, *dropped, *rewritten]


def read_rows(
    data: DataConfig,
    render_chat: RenderChat | None,
    path: str | None = None,
    plain: Callable[[str], str] = str,
) -> tuple[list[PreferenceRow], RowReport]:
    """Reads the preference pairs of `data.path`, or of `path` if given, in the order of the files.

    `render_chat` is the tokenizer's chat template, or None if it has none. Conversations and
    `data.prompt_style: chat` need it. `plain` marks what spells a special token in texts that no
    template renders. Raises `UserError` for a row that does not fit `data.format`, for a language
    without a name that a prompt needs, for a selected direction that no row has, and if no pair is
    left.
    """
    # Check the settings before any file is read.
    if data.prompt_style == "chat" and data.format != "pairs" and render_chat is None:
        raise UserError(
            "data.prompt_style is chat, but the tokenizer has no chat template; set it to alma, or "
            "use a model with a chat template."
        )
    languages = with_names(data.languages, "data.languages")
    for direction in data.directions or []:
        _check_selected(direction)

    # Make a pair of each row and direction; count those that are dropped.
    location = path or data.path
    raw_rows = read_raw(location, data.split) if location else read_folder(SAMPLE, "sample")
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
            row = _make_row(raw, direction, row_format, data, languages, render_chat, plain)
            if isinstance(row, str):
                report.dropped[row] += 1
                continue
            report.kept[direction] += 1
            rows.append(row)
            if data.format == "pairs" and row.is_chat and render_chat is not None:
                report.rewritten += rewrites_prompt(raw, row.prompt, render_chat)
    _check_result(report, offered, data, location or "the sample")
    return rows, report


def _check_selected(direction: str) -> None:
    """Raises `UserError` for an entry of `data.directions` that is no direction."""
    try:
        parse_direction(direction)
    except UserError as error:
        raise UserError(f"data.directions: {error}") from None


def _check_result(report: RowReport, offered: set[str], data: DataConfig, location: str) -> None:
    """Raises `UserError` if a selected direction is missing or no pair is left."""
    missing = [direction for direction in data.directions or [] if direction not in offered]
    if missing:
        raise UserError(
            f"data.directions: {missing[0]} is not in {location}; choose among its directions: "
            f"{', '.join(sorted(offered))}."
        )
    if not report.kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in report.dropped.most_common())
        raise UserError(
            f"{location}: no pair is left of {report.read} rows (dropped: {reasons}); check "
            "data.directions, and that chosen and rejected differ in the data."
        )


def _make_row(
    raw: RawRow,
    direction: str,
    row_format: Format,
    data: DataConfig,
    languages: Languages,
    render_chat: RenderChat | None,
    plain: Callable[[str], str],
) -> PreferenceRow | str:
    """The pair of a row in one direction, or the reason why there is none."""
    try:
        texts = row_format.pick(raw, direction)
        if isinstance(texts, str):
            return texts
        if same_text(texts.chosen, texts.rejected):
            return SAME_TEXTS
        if data.format != "pairs":
            check_names(direction, languages, raw.where, "data.languages: {{{}: Name}}")
        texts = _with_prompt(texts, direction, data, languages, render_chat)
    except TemplateError as error:
        raise UserError(
            f"{raw.where}: the tokenizer's chat template refuses this conversation ({error}); "
            "change the row to fit the template, or use plain strings (data.prompt_style: alma)."
        ) from None
    # A chat template has rendered the texts if the recipe or a conversation asks for it.
    is_chat = data.prompt_style == "chat" or isinstance(raw.values.get("chosen"), list)
    if not is_chat:
        texts = Texts(*map(plain, texts))
    return PreferenceRow(texts.source, texts.chosen, texts.rejected, direction, raw.origin, is_chat)


def _with_prompt(
    texts: Texts,
    direction: str,
    data: DataConfig,
    languages: Languages,
    render_chat: RenderChat | None,
) -> Texts:
    """The texts with the whole prompt in place of the source, rendered if the recipe says so."""
    if data.format == "pairs":
        return texts
    prompt = alma_prompt(texts.source, *parse_direction(direction), languages)
    if data.prompt_style == "chat" and render_chat is not None:
        rendered = render_answers(prompt, texts.chosen, texts.rejected, render_chat)
        return Texts(*rendered)
    return texts._replace(source=prompt)


def split_held_out(
    rows: Sequence[PreferenceRow], fraction: float, seed: int, languages: Languages = LANGUAGES
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """Splits rows into training and held-out rows, both in the given order.

    The same arguments always give the same split. Groups of rows stay together: rows with the same
    prompt, with the same source text (of ALMA prompts, in any direction), or from the same line of
    a file. Each direction gives its share if the groups allow it. `languages` are the names in the
    prompts. Raises `UserError` if either side would be empty.
    """
    if fraction == 0:
        return list(rows), []

    # Hold out groups in random order, as long as at least half of a group fits the quotas.
    quotas = _quotas(Counter(row.direction for row in rows), fraction)
    groups = _groups(rows, languages)
    random.Random(seed).shuffle(groups)
    held: set[int] = set()
    for group in groups:
        counts = Counter(rows[index].direction for index in group)
        wanted = sum(min(count, quotas[direction]) for direction, count in counts.items())
        if 2 * wanted >= len(group):
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


def _groups(rows: Sequence[PreferenceRow], languages: Languages) -> list[list[int]]:
    """Indices of the rows that must be on the same side, grouped, in order of first appearance."""
    # Union-find: rows of a group have the same root, the first row of the group.
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        text = source_of(row.prompt, row.direction, languages) or row.prompt
        for key in (("text", as_seen(text)), ("origin", row.origin)):
            low, high = sorted((root(first.setdefault(key, index)), root(index)))
            parents[high] = low
    groups: dict[int, list[int]] = {}
    for index in range(len(rows)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
