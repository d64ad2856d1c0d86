"""A picture of scores: for each metric a panel, with a dot for each system and direction."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.evaluate.report import Report
from cpo_ds.storage.files import writing

# Okabe and Ito's colours: people with colour blindness can tell them apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F4F9B")
_MARKERS = "os^Dv<>P"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8F98",
    "text.parse_math": False,  # names may hold dollar signs
}


def draw(report: Report, path: Path) -> None:
    """Writes the picture as PNG. Raises `UserError` if it cannot be written."""
    import matplotlib  # here, since it takes a second and tables need none of it
    from matplotlib.figure import Figure

    pairs = report.lines(report.metrics[0])
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on letters that the font lacks
        height = 1.5 + 0.3 * len(pairs) + 0.22 * (len(report.systems) // 4 + 1)
        width = 1.2 + 3.4 * len(report.metrics)
        figure = Figure(figsize=(max(width, 5.5), height), layout="constrained")
        panels = figure.subplots(1, len(report.metrics), sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, report.metrics, strict=True):
            _draw_panel(panel, report, metric, pairs)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False
        )
        with writing(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")


def _draw_panel(panel: Any, report: Report, metric: str, pairs: list[str]) -> None:
    """Draws the scores of a metric; the means stand below a line."""
    # A dot for each system; if two scores are equal, both can be seen.
    scores, facts = report.scores(metric), facts_of(metric)
    for number, system in enumerate(report.systems):
        lines = [line for line, pair in enumerate(pairs) if (system, pair) in scores]
        panel.plot(
            [scores[system, pairs[line]].score * facts.scale for line in lines],
            lines,
            _MARKERS[number % len(_MARKERS)],
            label=system,
            color=_COLOURS[number % len(_COLOURS)],
            markersize=6,
            alpha=0.85,
        )

    # Names of the lines, and what the numbers are.
    if len(report.directions) > 1:
        panel.axhline(len(report.directions) - 0.5, color="#8A8F98", linewidth=0.8)
    panel.set_yticks(range(len(pairs)), pairs)
    panel.set_ylim(len(pairs) - 0.5, -0.5)
    panel.grid(color="#E3E5E8")
    panel.set_axisbelow(True)
    title = metric + " (lower is better)" * facts.lower_is_better
    panel.set_title(title + " x 100" * (facts.scale == 100), fontsize=10)
    if flattered := dict.fromkeys(r.system for r in scores.values() if r.interferes):
        panel.set_xlabel(f"(!) flatters {', '.join(flattered)}", color="#B03A2E")
