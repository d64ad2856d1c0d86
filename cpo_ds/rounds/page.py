"""The report over all rounds, as text and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cpo_ds.report.drawings import COLOURS, Line, line_chart
from cpo_ds.report.page import (
    Drawing,
    Drawings,
    Part,
    Section,
    Table,
    Tiles,
    decimal,
    render,
    share,
)
from cpo_ds.report.series import Series
from cpo_ds.rounds.checks import Inputs
from cpo_ds.rounds.child import duration
from cpo_ds.rounds.layout import system_of
from cpo_ds.rounds.results import Course, Trained, best_model
from cpo_ds.rounds.verdict import Watched
from cpo_ds.scoring.metrics import Metric

_STAGES = ("sample", "score", "select", "train", "translate", "evaluate")
Times = Mapping[tuple[int, str], float]


def findings(inputs: Inputs, course: Course) -> list[str]:
    """Sentences on the outcome, for the console and the head of the page."""
    first = inputs.deciding[0]
    best = course.verdicts[course.best].watched[first.name]
    start = course.verdicts[0].watched[first.name]
    if course.best:
        gained = f"{first.name} {start.score:#.4g} at the start, {best.score:#.4g}"
        said = [f"the best is round {course.best} ({gained}): {best_model(inputs, course.best)}"]
    else:
        said = [f"no round is better than the start ({first.name} {start.score:#.4g})"]
    if course.stopped:
        said.append(f"stopped, since a watched metric fell: {course.stopped}")
    elif course.is_over:
        said.append(f"all {course.planned} rounds are done")
    return said


def console_table(inputs: Inputs, course: Course) -> str:
    """The watched and selecting metrics of all rounds, as text."""
    names = list(course.verdicts[0].watched)
    head = ["policy", *(_titled(name, inputs) for name in names), "pairs", "accuracy"]
    lines = [head]
    for verdict in course.verdicts:
        trained = course.trained[verdict.round - 1] if verdict.round else None
        lines.append(
            [
                system_of(verdict.round) + (" (best)" if verdict.round == course.best else ""),
                *(_score(verdict.watched[name]) for name in names),
                f"{trained.pairs:,}" if trained else "",
                _accuracy(trained),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def page(inputs: Inputs, course: Course, times: Times) -> str:
    """The page as HTML."""
    sections = (
        _overview(inputs, course),
        _scores(inputs, course),
        _pairs(inputs, course),
        _times(course, times),
    )
    return render(f"Rounds in {inputs.layout.folder}", sections, hovers=True)


def _overview(inputs: Inputs, course: Course) -> Section:
    first = inputs.deciding[0].name
    best, start = course.verdicts[course.best].watched[first], course.verdicts[0].watched[first]
    tiles = (
        ("Best", system_of(course.best), f"by {first}"),
        (first, f"{best.score:#.4g}", f"from {start.score:#.4g} at the start"),
        ("Rounds", f"{course.last}", f"of {course.planned} at most"),
    )
    allowed = inputs.settings.watch.stop_if_falls_by
    rule = (
        "Each round is compared with the best of all before it, the start among them, on the same "
        "watched texts. "
        + (
            "No result stops the rounds (watch.stop_if_falls_by: none)."
            if allowed is None
            else f"If a deciding metric falls by more than {allowed:g} and paired bootstrap "
            "resampling finds the round worse in a direction (p below 0.05 divided by the number "
            "of directions), no further round begins."
        ),
        f"Deciding: {', '.join(metric.name for metric in inputs.deciding)}. The first names the "
        "best round. Selecting metrics reward the policy, so they and their relatives flatter it "
        "and decide nothing.",
    )
    notes = (*inputs.warnings,)
    return Section(
        "overview", "Overview", tuple(map(_sentence, findings(inputs, course))), rule,
        (Tiles(tiles),), notes,
    )  # fmt: skip


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _scores(inputs: Inputs, course: Course) -> Section:
    """Scores of all policies on the watched texts, as a table and as charts."""
    names = list(course.verdicts[0].watched)
    lines = tuple(
        tuple(cell for name in names for cell in _cells(verdict.watched[name]))
        for verdict in course.verdicts
    )
    columns = tuple(
        column
        for name in names
        for column in (_titled(name, inputs), "± (95%)", "gain over best before", "p")
    )
    table = Table(
        "Scores on the watched texts: the mean of directions",
        ("policy", *columns),
        tuple(
            (system_of(verdict.round), (line,))
            for verdict, line in zip(course.verdicts, lines, strict=True)
        ),
    )
    explanation = (
        "A metric that selects, rising while a watched one of another family falls, is a policy "
        "that learned to please its reward. The first chart shows each metric's change since the "
        "start, in percent of its score there and positive if better; the others show the scores. "
        "Dashed lines are metrics that decide nothing.",
    )
    return Section(
        "scores", "Watched and selecting metrics", (), explanation,
        (table, *_charts(inputs, course)),
    )  # fmt: skip


def _charts(inputs: Inputs, course: Course) -> list[Part]:
    if len(course.verdicts) < 2:
        return []
    names = list(course.verdicts[0].watched)
    rounds = [float(verdict.round) for verdict in course.verdicts]
    colours = {name: index % COLOURS + 1 for index, name in enumerate(names)}
    changes, drawings = [], []
    for name in names:
        values = [verdict.watched[name] for verdict in course.verdicts]
        start = values[0].quality
        scale = 100 / abs(start) if start else math.nan
        change = [(value.quality - start) * scale for value in values]
        if not any(map(math.isnan, change)):
            changes.append(_line(name, Series(rounds, change), colours, inputs))
        scores = Series(rounds, [value.score for value in values])
        drawings.append(_drawing(_titled(name, inputs), [_line(name, scores, colours, inputs)]))
    together = [_drawing("Change since the start, %", changes)] if changes else []
    legend = tuple((colour, _titled(name, inputs)) for name, colour in colours.items())
    return [Drawings((*together, *drawings), legend=legend)]


def _line(name: str, series: Series, colours: Mapping[str, int], inputs: Inputs) -> Line:
    """A metric's line: full if it decides, dashed if not."""
    none, colour = Series([], []), colours[name]
    decides = name in {metric.name for metric in inputs.deciding}
    return Line(
        name, colour, none, series if decides else none, none if decides else series, colour
    )


def _drawing(title: str, lines: list[Line]) -> Drawing:
    series = [line.smooth if line.smooth.values else line.held_out for line in lines]
    values = [value for one in series for value in one.values]
    room = 0.05 * (max(values) - min(values))
    ends = (min(values) - room, max(values) + room)
    steps = series[0].steps
    text = f"{title} over rounds, round 0 being the start."
    return Drawing(title, line_chart(lines, (steps[0], steps[-1]), ends, text))


def _pairs(inputs: Inputs, course: Course) -> Section:
    """What each round sampled, kept and dropped."""
    metrics = [metric.name for metric in inputs.selecting]
    columns = ("sources", "samples", "distinct", "pairs", "comparisons", "reward accuracy")
    means = tuple(f"{name}, {kind}" for name in metrics for kind in ("all samples", "best sample"))
    lines = tuple(
        (
            system_of(number),
            (
                (
                    *(f"{n:,}" for n in (t.sources, t.sampled, t.distinct, t.pairs, t.comparisons)),
                    _accuracy(t),
                    *(
                        f"{values[name]:#.4g}".replace("-", "−")
                        for name in metrics
                        for values in (t.sample_means, t.best_means)
                    ),
                ),
            ),
        )
        for number, t in enumerate(course.trained, start=1)
    )
    parts: list[Part] = []
    if lines:
        parts.append(Table("Samples, pairs and rewards", ("round", *columns, *means), lines))
    reasons = list(dict.fromkeys(reason for t in course.trained for reason in t.dropped))
    if reasons:
        dropped = tuple(
            (system_of(number), (tuple(f"{t.dropped.get(reason, 0):,}" for reason in reasons),))
            for number, t in enumerate(course.trained, start=1)
        )
        parts.append(Table("Rows and pairs dropped, by reason", ("round", *reasons), dropped))
    notes = (
        "Samples of a round are by the policy before it. Reward accuracy is that of held-out pairs "
        "if the recipe holds some out, else of the last step.",
    )
    return Section("pairs", "Samples and pairs", (), (), tuple(parts), notes)


def _times(course: Course, times: Times) -> Section:
    lines = tuple(
        (
            system_of(verdict.round),
            (
                tuple(
                    duration(times[verdict.round, stage])
                    if (verdict.round, stage) in times
                    else "–"
                    for stage in _STAGES
                ),
            ),
        )
        for verdict in course.verdicts
    )
    table = Table("Time of each stage", ("round", *_STAGES), lines, texts=_STAGES)
    notes = ("A stage that was interrupted has the time of its last start alone.",)
    return Section("times", "Times", (), (), (table,), notes)


def _titled(name: str, inputs: Inputs) -> str:
    """A metric's name with its part: it decides, selects, or is only shown."""

    def has(metrics: tuple[Metric, ...]) -> bool:
        return name in {metric.name for metric in metrics}

    if has(inputs.selecting):
        return f"{name} (selects)"
    return name if has(inputs.deciding) else f"{name} (a relative)"


def _score(one: Watched) -> str:
    half = f" ±{one.half_width:.2g}" if one.half_width is not None else ""
    return f"{one.score:#.4g}{half}"


def _cells(one: Watched) -> tuple[str, str, str, str]:
    gain = "–" if one.gain is None else decimal(one.gain, 4, sign=True)
    half = "–" if one.half_width is None else f"{one.half_width:.2g}"
    return (
        f"{one.score:#.4g}".replace("-", "−"),
        half,
        gain,
        "–" if one.p_value is None else f"{one.p_value:.3g}",
    )


def _accuracy(trained: Trained | None) -> str:
    if trained is None or trained.accuracy is None:
        return ""
    return share(trained.accuracy)
