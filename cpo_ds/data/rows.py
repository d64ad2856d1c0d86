"""Reads preference rows in any format, and counts those that are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from cpo_ds.data.chat import render_answers
from cpo_ds.data.columns import missing_field, other_format
from cpo_ds.data.formats import Format, format_of
from cpo_ds.data.pair_rows import Texts, comparisons, rewrites_prompt
from cpo_ds.data.pair_scores import ABOVE, unscored_row
from cpo_ds.data.prompts import (
    Languages,
    Message,
    RenderChat,
    alma_prompt,
    check_names,
    parse_direction,
    with_names,
)
from cpo_ds.data.sources import MissingField, RawRow, read_folder, read_raw
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.schema import PreferenceRow
from cpo_ds.settings.data import DataConfig

__all__ = ["Message", "RenderChat", "RowReader", "RowReport", "read_rows"]

SAMPLE, SAMPLE_LABEL = Path(__file__).parent / "sample", "sample"


@dataclass
class RowReport:
    """Counts of reading: rows read, pairs dropped by reason, pairs kept by direction."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # rejected completions of kept pairs that equal the chosen one or another
    above: int = 0  # rejected completions of kept pairs that score above the chosen one
    tied: int = 0  # comparisons of kept pairs whose scores are equal
    unscored: int = 0  # kept pairs without the scores that were asked for
    first_unscored: str = ""  # see `unscored_row`
    rewritten: int = 0  # pairs whose prompt a template writes otherwise before an answer
    offered: set[str] = field(default_factory=set)  # directions of all rows

    def add(self, later: RowReport) -> None:
        """Adds the counts of rows that come after these."""
        self.read += later.read
        self.dropped.update(later.dropped)
        self.kept.update(later.kept)
        self.lost += later.lost
        self.above += later.above
        self.tied += later.tied
        self.unscored += later.unscored
        self.first_unscored = self.first_unscored or later.first_unscored
        self.rewritten += later.rewritten
        self.offered |= later.offered

    def lines(self) -> list[str]:
        """A summary to print, largest counts first."""
        total = sum(self.kept.values())
        kept = [f"  {name or 'no direction'}: {n}" for name, n in self.kept.most_common()]
        dropped = [f"  dropped, {reason}: {n}" for reason, n in self.dropped.most_common()]
        if self.lost:
            dropped.append(
                "  rejected completions dropped from pairs, equal to chosen or to another one: "
                f"{self.lost}"
            )
        if self.above:
            dropped.append(
                "  rejected completions dropped from pairs, scored above the chosen one: "
                f"{self.above}"
            )
        if self.tied:
            dropped.append(
                "  comparisons with equal scores, which have no margin and no order in a ranking: "
                f"{self.tied}"
            )
        rewritten = [
            "  with another prompt than a model gets later, because the chat template writes it "
            "otherwise before an answer (data.chat_template_kwargs may change that): "
            f"{self.rewritten}"
        ] * bool(self.rewritten)
        return [f"read {self.read} rows, kept {total} pairs", *kept, *dropped, *rewritten]


class RowReader:
    """Makes preference rows of raw rows, as the `data` section says.

    `render_chat` is the tokenizer's chat template, or None if it has none. Conversations and
    `data.prompt_style: chat` need it. `plain` marks what spells a special token in texts that no
    template renders. `with_scores` says that the objective needs scores.
    """

    def __init__(
        self,
        data: DataConfig,
        render_chat: RenderChat | None,
        plain: Callable[[str], str] = str,
        *,
        with_scores: bool = False,
    ) -> None:
        """Checks the settings. Raises `UserError` for one that no row could satisfy."""
        if data.prompt_style == "chat" and data.format != "pairs" and render_chat is None:
            raise UserError(
                "data.prompt_style is chat, but the tokenizer has no chat template; set it to "
                "alma, or use a model with a chat template."
            )
        self.languages = with_names(data.languages, "data.languages")
        for direction in data.directions or []:
            _check_selected(direction)
        self._data, self._render_chat, self._plain = data, render_chat, plain
        self._with_scores = with_scores
        self._format = format_of(data, render_chat, with_scores=with_scores)

    def rows(self, raw_rows: Iterable[RawRow | None], report: RowReport) -> Iterator[PreferenceRow]:
        """Yields the pair of each row and direction; counts all rows, and dropped pairs.

        Raises `UserError` for a row that does not fit `data.format`, and for a language without a
        name that a prompt needs.
        """
        for raw in raw_rows:
            count_work()
            if raw is None:
                report.dropped["blank line"] += 1
                continue
            report.read += 1
            try:
                yield from self._pairs_of(raw, report)
            except MissingField as error:
                wanted = self._data.format
                if missing_field(raw.values, wanted) is None:  # it is inside of another field
                    raise
                raise UserError(f"{error} {other_format(raw.values, wanted)}") from None

    def _pairs_of(self, raw: RawRow, report: RowReport) -> Iterator[PreferenceRow]:
        data, render_chat = self._data, self._render_chat
        for direction in self._format.directions(raw):
            report.offered.add(direction)
            if data.directions is not None and direction not in data.directions:
                report.dropped["direction not selected"] += 1
                continue
            made = _make_row(
                raw, direction, self._format, data, self.languages, render_chat, self._plain
            )
            if isinstance(made, str):
                report.dropped[made] += 1
                continue
            row, lost, above = made
            report.kept[direction] += 1
            report.lost += lost
            report.above += above
            if row.scores is not None:
                report.tied += row.scores[1:].count(row.scores[0])
            elif self._with_scores:
                report.unscored += 1
                report.first_unscored = report.first_unscored or unscored_row(raw)
            yield row
            if data.format == "pairs" and row.is_chat and render_chat is not None:
                report.rewritten += rewrites_prompt(raw, row.prompt, render_chat)


def raw_rows_of(data: DataConfig, path: str | None = None) -> Iterator[RawRow | None]:
    """The raw rows of `data.path`, or of `path` if given, in the order of the files.

    Raises `UserError` if they cannot be read.
    """
    location = path or data.path
    return read_raw(location, data.split) if location else read_folder(SAMPLE, SAMPLE_LABEL)


def read_rows(
    data: DataConfig,
    render_chat: RenderChat | None,
    path: str | None = None,
    plain: Callable[[str], str] = str,
    *,
    with_scores: bool = False,
) -> tuple[list[PreferenceRow], RowReport]:
    """Reads the preference pairs of `data.path`, or of `path` if given, in the order of the files.

    Raises `UserError` as `RowReader` does, for a selected direction that no row has, if no pair is
    left, and if some have no scores where `with_scores` asks for them.
    """
    reader = RowReader(data, render_chat, plain, with_scores=with_scores)
    report = RowReport()
    rows = list(reader.rows(raw_rows_of(data, path), report))
    check_rows(report, data, path)
    return rows, report


def _check_selected(direction: str) -> None:
    """Raises `UserError` for an entry of `data.directions` that is no direction."""
    try:
        parse_direction(direction)
    except UserError as error:
        raise UserError(f"data.directions: {error}") from None


def check_rows(report: RowReport, data: DataConfig, path: str | None = None) -> None:
    """Raises `UserError` if a direction or scores are missing, or no pair is left of all rows."""
    location = path or data.path or "the sample"
    missing = [direction for direction in data.directions or [] if direction not in report.offered]
    if missing:
        raise UserError(
            f"data.directions: {missing[0]} is not in {location}; choose among its directions: "
            f"{', '.join(sorted(report.offered))}."
        )
    if not report.kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in report.dropped.most_common())
        raise UserError(
            f"{location}: no pair is left of {report.read} rows (dropped: {reasons}); check "
            "data.directions, and that chosen and rejected differ in the data."
            f"{' Of scores, higher ones must be better.' if ABOVE in report.dropped else ''}"
        )
    if report.unscored:
        wanted = (
            "chosen_score and rejected_score in every row, as cpo-ds prepare select writes them"
        )
        if data.format == "alma-r":
            wanted = f"the scores of data.scorer ({data.scorer}) in rows with a human verdict too"
        raise UserError(
            f"{location}: {report.unscored} of {report.kept.total()} pairs have no scores, the "
            f"first {report.first_unscored}. loss.name: plackett-luce and loss.score_margin need "
            f"{wanted}."
        )


def _make_row(
    raw: RawRow,
    direction: str,
    row_format: Format,
    data: DataConfig,
    languages: Languages,
    render_chat: RenderChat | None,
    plain: Callable[[str], str],
) -> tuple[PreferenceRow, int, int] | str:
    """The pair of a row in one direction, or the reason why there is none.

    With it come the numbers of rejected completions that are no comparison: those with a text that
    is there already, and those that score above the chosen one.
    """
    try:
        texts = row_format.pick(raw, direction)
        if isinstance(texts, str):
            return texts
        compared = comparisons(texts)
        if isinstance(compared, str):
            return compared
        texts, lost, above = compared
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
        rejected = tuple(map(plain, texts.rejected))
        texts = Texts(plain(texts.source), plain(texts.chosen), rejected, texts.scores)
    source, chosen, rejected, scores = texts
    row = PreferenceRow(source, chosen, rejected, direction, raw.origin, is_chat, scores)
    return row, lost, above


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
        rendered = render_answers(prompt, (texts.chosen, *texts.rejected), render_chat)
        opening, chosen, *rejected = rendered
        return Texts(opening, chosen, tuple(rejected))
    return texts._replace(source=prompt)
