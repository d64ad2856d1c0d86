"""The section with curves: a chart for each metric, with the lines of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cpo_ds.report.drawings import COLOURS, Line, line_chart
from cpo_ds.report.page import Drawing, Drawings, Section
from cpo_ds.report.run_folder import RunFolder
from cpo_ds.report.scale import short
from cpo_ds.report.series import quantile, reach_of, series_of, smoothed, spaced, thinned

_MANY = 300  # logged steps, beyond which a chart may cut off the highest and lowest raw values


class Metric(NamedTuple):
    """A chart: the metric's name in the log, its title, its note, and ends of its axis."""

    key: str
    title: str
    note: str = ""
    low: float | None = None  # the lowest end of the axis at most
    high: float | None = None
    smooths: bool = True


METRICS = (
    Metric("loss", "Loss"),
    Metric(
        "reward_accuracy",
        "Reward accuracy",
        "share of comparisons with chosen above rejected",
        0,
        1,
    ),
    Metric(
        "reward_margin",
        "Reward margin",
        "reward of chosen minus reward of rejected, mean of comparisons",
        0,
        0,
    ),
    Metric("preference_loss", "Preference loss", "the part that separates chosen and rejected"),
    Metric("nll_loss", "NLL of chosen", "the part that keeps chosen likely"),
    Metric("logp_chosen", "Log-prob of chosen", "of a whole translation, mean of pairs"),
    Metric("logp_rejected", "Log-prob of rejected", "of a whole one, mean of comparisons"),
    Metric("learning_rate", "Learning rate", "not smoothed", 0, smooths=False),
    Metric("grad_norm", "Gradient norm", "before it is limited by optim.max_grad_norm", 0),
    Metric("pairs_per_second", "Pairs a second", "of all ranks together", 0),
    Metric("tokens_per_second", "Tokens a second", "of all ranks; shared tokens count once", 0),
    Metric(
        "peak_memory_gib", "Peak memory, GiB", "of the rank that uses most so far", 0, smooths=False
    ),
    *(
        Metric(f"sample_{name}{ending}", f"{says} of sample translations", f"against {texts}", 0)
        for ending, texts in (("", "references"), ("_to_chosen", "chosen texts, not references"))
        for name, says in (("chrf", "chrF"), ("bleu", "BLEU"))
    ),
)


def curves_section(runs: Sequence[RunFolder]) -> Section:
    """The curves of all runs over each other; with one run, held-out points have their colour."""
    alone = len(runs) == 1
    drawings = [drawing for metric in METRICS if (drawing := _drawing(metric, runs, alone=alone))]
    title = "Curves"
    if not drawings:
        return Section("curves", title, explanation=("No step is logged so far.",))
    legend = [(colour_of(index), run.name) for index, run in enumerate(runs)]
    if alone:
        legend = [(1, "training")] + [(2, "held-out pairs")] * bool(runs[0].held_out)
    reaches = [reach_of(len(run.training)) for run in runs if run.training] or [0]
    around = " to ".join(str(reach) for reach in sorted({min(reaches), max(reaches)}))
    smoothing = (
        f"Bold lines are smoothed: a point is the mean of its step and {around} logged ones on "
        "either side, fewer near the ends. The raw values are behind, paler. "
    )
    explanation = (
        smoothing * (max(reaches) > 0)
        + "Dashed lines connect evaluations of the held-out pairs. "
        * any(run.held_out for run in runs)
        + "The horizontal axis has the optimizer steps.",
    )
    part = Drawings(tuple(drawings), legend=tuple(legend))
    return Section("curves", title, explanation=explanation, parts=(part,))


def colour_of(index: int) -> int:
    """The colour of a run by its place."""
    return index % COLOURS + 1


def _drawing(metric: Metric, runs: Sequence[RunFolder], *, alone: bool) -> Drawing | None:
    """The chart of a metric; None if no run has it."""
    # The curves of each run, and all values that the axes must span.
    lines, steps, spanned, raw_values = [], [0.0], list[float](), list[float]()
    for index, run in enumerate(runs):
        raw, held_out = (
            series_of(run.training, metric.key),
            series_of(run.held_out, f"eval_{metric.key}"),
        )
        smooth = smoothed(raw) if metric.smooths else raw
        steps += raw.steps + held_out.steps
        spanned += smooth.values + held_out.values
        raw_values += raw.values
        colour = colour_of(index)
        lines.append(
            Line(
                run.name,
                colour,
                thinned(raw),
                spaced(smooth),
                spaced(held_out),
                2 if alone else colour,
            )
        )
    if not spanned:
        return None
    # Among many values, a few spikes must not press the rest flat.
    is_long = max(len(run.training) for run in runs) > _MANY
    shares = (0.01, 0.99) if is_long else (0.0, 1.0)
    ends = [quantile(raw_values, share) for share in shares] if raw_values else []
    bounds = [bound for bound in (metric.low, metric.high) if bound is not None]
    low, high = min(spanned + ends + bounds), max(spanned + ends + bounds)
    room = 0.04 * (high - low)
    y_range = (low - room * (low not in bounds), high + room * (high not in bounds))
    note = metric.note
    if raw_values and (max(raw_values) > y_range[1] or min(raw_values) < y_range[0]):
        reach = f"raw values from {short(min(raw_values))} to {short(max(raw_values))}"
        note = "; ".join([note] * bool(note) + [f"{reach}, cut off at the frame"])
    last = [f"{line.name} {short(line.smooth.values[-1])}" for line in lines if line.smooth.values]
    text = f"{metric.title} over steps. Newest smoothed values: {', '.join(last) or 'none'}."
    svg = line_chart(lines, (min(steps), max(steps)), y_range, text)
    return Drawing(metric.title, svg, note)
