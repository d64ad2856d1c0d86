"""Text of the benchmarks' pages: tables, medians, ratios. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Line = dict[str, Any]

TRAININGS = {"full": "all parameters", "lora": "LoRA"}
ENVIRONMENT = ("processor", "GPU", "memory", "system", "load before", "versions", "commit",
               "command", "date")  # fmt: skip


def table(rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """A Markdown table; the first row is its head, columns from `text_columns` on align right."""
    rule = ["---"] * text_columns + ["--:"] * (len(rows[0]) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], rule, *rows[1:]])


def image(path: Path) -> str:
    """The Markdown that shows a chart on the page beside it."""
    return f"![{path.stem.replace('_', ' ')}]({path.name})"


def median_of(runs: Sequence[Line], name: str) -> float | None:
    """The median over the runs that have a value; None if none has."""
    values = [run[name] for run in runs if run.get(name) is not None]
    return median(values) if values else None


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the range if there are several values, like `2.00 [1.00 - 3.00]`."""
    ends = f" [{min(values):{form}} - {max(values):{form}}]" if len(values) > 1 else ""
    return f"{median(values):{form}}{ends}"


def speedup(ours: Sequence[Line], theirs: Sequence[Line], name: str = "pairs_per_second") -> str:
    """Ratio of the medians of a rate, and the range of the ratios of runs of the same repeat."""
    if not ours or not theirs:
        return ""
    ratio = median(run[name] for run in ours) / median(run[name] for run in theirs)
    by_repeat = {run["repeat"]: run[name] for run in ours}
    ratios = [by_repeat[r["repeat"]] / r[name] for r in theirs if r["repeat"] in by_repeat]
    ends = f" [{min(ratios):.2f} - {max(ratios):.2f}]" if len(ratios) > 1 else ""
    return f"{ratio:.2f}{ends}"


def difference(ours: Sequence[Line], theirs: Sequence[Line]) -> str:
    """The largest difference between losses of the same step, over runs of the same repeat."""
    by_repeat = {run["repeat"]: run["losses"] for run in ours}
    differences = [
        abs(one - other)
        for run in theirs
        for one, other in zip(by_repeat.get(run["repeat"], []), run["losses"], strict=False)
    ]
    return f"{max(differences):.1e}" if differences else ""


def typical(runs: Sequence[Line]) -> Line:
    """The run with the median peak of memory; its parts add up, which medians of parts do not."""
    return sorted(runs, key=lambda run: run["peak_memory_gib"])[(len(runs) - 1) // 2]


def grouped(lines: Sequence[Line], *names: str) -> dict[tuple[Any, ...], list[Line]]:
    """Lines by the values of these columns, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    return groups


def good(runs: Sequence[Line]) -> list[Line]:
    """The runs without an error."""
    return [run for run in runs if not run.get("error")]


def model_on_device(line: Line) -> str:
    """Model and device, for titles."""
    return f"{line['model']} in {line['dtype']} on {line['device']}"


def repeats(lines: list[Line]) -> int:
    """The number of repeats of each run."""
    return 1 + max(line["repeat"] for line in lines)


def settings_list(settings: Mapping[str, str], last: Line) -> str:
    """The settings and the environment, a line each."""
    environment = {name: str(last[name]) for name in ENVIRONMENT if name in last}
    return bullets(dict(settings) | environment)


def bullets(facts: Mapping[str, str]) -> str:
    """A Markdown list of named facts."""
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def write_page(stem: Path, parts: Sequence[str]) -> None:
    """Writes STEM.md; blank lines stand between its parts."""
    stem.with_name(stem.name + ".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
