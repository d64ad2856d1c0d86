"""Tables of scores as plain text, Markdown and LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.evaluate.report import Report
from cpo_ds.evaluate.results import Result
from cpo_ds.ranks.console import escaped

NO_SCORE = "-"


@dataclass(frozen=True)
class Cell:
    """A number or a word of a table; the best number of its group is strong."""

    text: str
    is_strong: bool = False


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows whose first cell names them."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()


def tables_of(report: Report) -> list[Table]:
    """The headline's table, then one of each metric with its directions and means."""
    tables = [_headline(report)] if report.headline else []
    return tables + [_metric_table(report, metric) for metric in report.metrics]


def _headline(report: Report) -> Table:
    columns = [(metric, group) for group in report.groups for metric in report.headline]
    scores = {metric: report.scores(metric) for metric in report.headline}
    rows = []
    for system in report.systems:
        cells = [_cell(scores[m], system, g, report.systems) for m, g in columns]
        rows.append((Cell(system), *cells))
    header = ("system", *(f"{group} {_title(metric)}" for metric, group in columns))
    return Table("Headline", header, rows)


def _metric_table(report: Report, metric: str) -> Table:
    scores = report.scores(metric)
    pairs = report.lines(metric)
    rows = [
        (Cell(pair), *(_cell(scores, system, pair, report.systems) for system in report.systems))
        for pair in pairs
    ]
    title = _title(metric)
    notes = []
    if any(result.interferes for result in scores.values()):
        title += " (!)"
        marked = dict.fromkeys(result.system for result in scores.values() if result.interferes)
        notes.append(
            f"(!) it selected training pairs or translations of {', '.join(marked)}, or is a "
            "relative of a metric that did: do not judge by it"
        )
    return Table(title, ("", *report.systems), rows, tuple(notes))


def _title(metric: str) -> str:
    facts = facts_of(metric)
    parts = [" x 100"] * (facts.scale == 100) + [", lower is better"] * facts.lower_is_better
    return metric + "".join(parts)


def _cell(
    scores: dict[tuple[str, str], Result], system: str, pair: str, systems: Sequence[str]
) -> Cell:
    result = scores.get((system, pair))
    if result is None:
        return Cell(NO_SCORE)
    others = [scores[s, pair].score for s in systems if (s, pair) in scores]
    facts = facts_of(result.metric)
    best = min(others) if facts.lower_is_better else max(others)
    mark = "!" if result.interferes else ""
    is_best = len(others) > 1 and result.score == best and not result.interferes
    return Cell(f"{result.score * facts.scale:.2f}{mark}", is_best)


def as_text(table: Table) -> str:
    """A table for the console, with `*` after the best number and columns lined up."""
    rows = [
        [escaped(cell.text.replace("\n", " ")) + " *"[cell.is_strong] for cell in row]
        for row in table.rows
    ]
    lines = [[escaped(name) + " " for name in table.header], *rows]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(table.header))]
    body = []
    for line in lines:
        first, *others = line
        cells = [first + " " * (widths[0] - _width(first))]
        cells += [" " * (w - _width(c)) + c for c, w in zip(others, widths[1:], strict=True)]
        body.append(" ".join(cells).rstrip())
    return "\n".join([escaped(table.title), *(f"  {line}" for line in [*body, *table.notes])])


def _width(text: str) -> int:
    """The columns that a text takes on a console: two for East Asian letters."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def as_markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables for Markdown, the best numbers in bold."""
    parts = []
    for table in tables:
        ruler = [":--", *["--:"] * (len(table.header) - 1)]
        lines = [[_plain(name) for name in table.header], ruler]
        lines += [
            [f"**{_plain(c.text)}**" if c.is_strong else _plain(c.text) for c in row]
            for row in table.rows
        ]
        parts.append(f"### {_plain(table.title)}\n")
        parts += [f"| {' | '.join(line)} |" for line in lines]
        parts += ["", *(f"{_plain(note)}\n" for note in table.notes)]
    return "\n".join([*parts, *(f"- {_plain(note)}" for note in notes)]).rstrip() + "\n"


def _plain(text: str) -> str:
    """A text in which Markdown finds nothing to mark up."""
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", " ".join(text.split()))


def as_latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables for LaTeX, with the package booktabs; the best numbers in bold."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        spec = "l" + "r" * (len(table.header) - 1)
        parts += ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{spec}}}", "\\toprule"]
        parts += [_latex_line([_latex(name) for name in table.header]), "\\midrule"]
        for row in table.rows:
            parts.append(_latex_line([_strong(cell, "\\textbf{{{}}}".format) for cell in row]))
        caption = ". ".join([table.title, *table.notes])
        parts += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{_latex(caption)}.}}"]
        parts += ["\\end{table}", ""]
    return "\n".join([*parts, *(f"% {' '.join(note.split())}" for note in notes)]).rstrip() + "\n"


def _strong(cell: Cell, bold: Callable[[str], str]) -> str:
    return bold(_latex(cell.text)) if cell.is_strong else _latex(cell.text)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
