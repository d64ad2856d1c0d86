"""Lines of `methods.py` -> a page: scores, tests, the loss in parts, the guard; and a chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from cpo_ds.evaluate.results import MEANS
from pages.charts import Bar, bars
from pages.method_scores import (
    BASE,
    directions,
    facts,
    gains,
    gains_over,
    is_marked,
    label,
    mean_spread,
    methods,
    metrics,
    scores,
)
from pages.text import Line, good, image, settings_list, table, write_page

# The parts of CPO's loss -> the method that trains by them.
PARTS = {
    "NLL alone": "sft",
    "preference alone": "cpo-without-nll",
    "both (CPO)": "cpo",
}
_VERDICTS = ("better", "tie", "worse")


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its chart."""
    first, runs = lines[0], good(lines)
    title = f"{first['model']}, {first['device']}"
    parts = [f"# SFT, DPO and CPO on the same pairs: {title}"]
    if runs:
        path = stem.with_name(f"{stem.name}_scores.png")
        draw(runs, path, f"Scores by method: {title}")
        parts.append(image(path))
    parts += [f"**{problem}.**" for problem in problems(lines)]
    if runs:
        parts += ["## Scores", overall_table(runs), SCORES_NOTE]
        parts += ["## Differences from the base", gain_table(runs), GAINS_NOTE]
        parts += ["## Paired tests against the base", tests_table(runs), tests_note(runs)]
        parts += ["## The parts of the loss", parts_table(runs), PARTS_NOTE]
        parts += ["## Metrics that selected the pairs", guard_text(runs)]
        if len(directions(runs)) > 1:
            parts.append("## By direction")
            for metric in metrics(runs):
                parts += [f"### {label(first, metric)}", direction_table(runs, metric)]
    parts += ["## How it was measured", settings_list(settings_of(lines), lines[-1])]
    write_page(stem, parts)


def problems(lines: Sequence[Line]) -> list[str]:
    """The runs that failed, a sentence each."""
    return [
        f"{line['method']}, seed {line['seed']}: failed: {line['error'].partition(';')[0]}"
        for line in lines
        if "error" in line
    ]


def settings_of(lines: Sequence[Line]) -> dict[str, str]:
    """What all runs share, in words."""
    first = lines[0]
    files = {
        name: f"{first[name]['name']}, {first[name]['lines']} lines, "
        f"sha256 {first[name]['sha256']}..."
        for name in ("pairs", "test")
    }
    seconds = [line["seconds"]["train"] for line in good(lines) if line["seed"] is not None]
    more = {
        "recipe": f"{first['config']} {' '.join(first['settings'])}".strip(),
        "translating": " ".join(first["decoding"]),
        "ranks": str(first["ranks"]),
    }
    if seconds:
        more["training a run"] = f"{min(seconds):.0f} to {max(seconds):.0f} s, start included"
    return files | more


def overall_table(runs: Sequence[Line]) -> str:
    """A row for each method: means over directions, marked metrics last."""
    names = metrics(runs)
    rows = [("method", "seeds", *(_head(runs, name) for name in names))]
    for method in (BASE, *methods(runs)):
        cells = [mean_spread(scores(runs, method, name)) for name in names]
        rows.append((method, _seeds(runs, method), *cells))
    return table(rows, text_columns=1)


def gain_table(runs: Sequence[Line]) -> str:
    """A row for each method: gains over the base."""
    names = metrics(runs)
    rows = [("method", "seeds", *(_head(runs, name) for name in names))]
    for method in methods(runs):
        cells = [mean_spread(gains(runs, method, name), "+.2f") for name in names]
        rows.append((method, _seeds(runs, method), *cells))
    return table(rows, text_columns=1)


def tests_table(runs: Sequence[Line]) -> str:
    """A row for each method: in how many directions and runs it is better, a tie, or worse."""
    names = metrics(runs)
    rows = [("method", *(_head(runs, name) for name in names))]
    for method in methods(runs):
        rows.append((method, *(" / ".join(map(str, verdicts(runs, method, n))) for n in names)))
    return table(rows, text_columns=1)


def verdicts(runs: Sequence[Line], method: str, metric: str) -> list[int]:
    """How often a method is better, a tie, and worse, over its seeds and all directions."""
    counts = Counter(
        "tie" if test["verdict"] == "same texts" else test["verdict"]
        for run in runs
        if run["method"] == method
        for test in run["tests"]
        if test["metric"] == metric
    )
    return [counts[verdict] for verdict in _VERDICTS]


def parts_table(runs: Sequence[Line]) -> str:
    """A row for each part of CPO's loss: the gain over the base by it."""
    names = metrics(runs)
    rows = [("trained by", "method", *(_head(runs, name) for name in names))]
    for part, method in PARTS.items():
        cells = [mean_spread(gains(runs, method, name), "+.2f") or "not run" for name in names]
        rows.append((part, method, *cells))
    for part, method in list(PARTS.items())[:2]:
        cells = [mean_spread(gains_over(runs, "cpo", method, name), "+.2f") for name in names]
        rows.append((f"both, minus {part}", "", *cells))
    return table(rows, text_columns=2)


def guard_text(runs: Sequence[Line]) -> str:
    """The metric-bias view: gains by selecting metrics and relatives beside those by others."""
    selected = list(dict.fromkeys(name for run in runs for name in run.get("selected_by", ())))
    if not selected:
        return (
            "No metric is known to have selected the pairs: neither the pairs nor `--selected-by` "
            "name one, so no score is marked."
        )
    names = metrics(runs)
    rows = [("metric", "family", "role", *methods(runs))]
    for name in names:
        gain = [mean_spread(gains(runs, method, name), "+.2f") for method in methods(runs)]
        role = "selected, or a relative" if is_marked(runs, name) else "unrelated"
        rows.append((name, facts(runs[0], name).family, role, *gain))
    said = [doubt for method in methods(runs) if (doubt := doubt_of(runs, method))]
    if all(is_marked(runs, name) for name in names):
        said.append(
            "Every metric here selected the pairs or is a relative of one that did: none of these "
            "gains can be believed by itself. Add an unrelated one by `--metric`."
        )
    intro = f"The pairs were selected by {', '.join(selected)}. Gains over the base:"
    return "\n\n".join([intro, table(rows, text_columns=3), *said, GUARD_NOTE])


def doubt_of(runs: Sequence[Line], method: str) -> str | None:
    """A warning if a method gains by marked metrics, and by no unrelated one."""
    mean = {name: fmean(g) for name in metrics(runs) if (g := gains(runs, method, name))}
    marked = [name for name, gain in mean.items() if is_marked(runs, name) and gain > 0]
    others = {name: gain for name, gain in mean.items() if not is_marked(runs, name)}
    if not marked or not others or max(others.values()) > 0:
        return None
    return (
        f"**{method} gains by {', '.join(marked)}, and by none of {', '.join(others)}: the gain "
        "may be the metric's and not the translations'.**"
    )


def direction_table(runs: Sequence[Line], metric: str) -> str:
    """A row for each direction and mean, a column for each method."""
    names = [BASE, *methods(runs)]
    scored = {r["language_pair"] for run in runs for r in run["results"]}
    rows = [("direction", *names)]
    for pair in [*directions(runs), *(mean for mean in MEANS if mean in scored)]:
        rows.append((pair, *(mean_spread(scores(runs, name, metric, pair)) for name in names)))
    return table(rows, text_columns=1)


def _head(runs: Sequence[Line], metric: str) -> str:
    return label(runs[0], metric) + (" †" if is_marked(runs, metric) else "")


def _seeds(runs: Sequence[Line], method: str) -> str:
    return "" if method == BASE else str(sum(run["method"] == method for run in runs))


def tests_note(runs: Sequence[Line]) -> str:
    """What the numbers of the table of tests are."""
    samples = next((test["samples"] for run in runs for test in run["tests"]), 1000)
    return (
        "Better / tie / worse than the base, over seeds and directions: paired bootstrap with "
        f"{samples} resamples, p < 0.05, each test by itself. Seeds share the test rows, so their "
        "tests are not independent."
    )


SCORES_NOTE = """\
Means over directions; mean and standard deviation over seeds. † a metric that selected the pairs,
or a relative of one: no headline. All methods have the same pairs, recipe and learning rate, which
need not be the best for each of them. The base is the model before training."""
GAINS_NOTE = "Points above the base; a plus is better, for metrics of errors too."
PARTS_NOTE = """\
Points above the base; the last rows are differences of runs with the same seed. CPO's loss is the
preference term plus the NLL of the chosen texts."""
GUARD_NOTE = """\
If training taught the taste of a metric, then gains by it and its family exceed those by unrelated
metrics. Points of different metrics are not comparable; signs and tests are."""


def draw(runs: Sequence[Line], path: Path, title: str) -> None:
    """Draws a bar for each method, in a group for each metric; its range is that over seeds."""
    rows = []
    for metric in metrics(runs):
        for method in (BASE, *methods(runs)):
            if values := scores(runs, method, metric):
                ends = (min(values), max(values)) if len(values) > 1 else None
                parts = {method: max(0.0, fmean(values))}
                bar = Bar(method, parts, mean_spread(values), ends, _head(runs, metric))
                rows.append(bar)
    bars(path, title, rows, "mean over directions", legend=None)
