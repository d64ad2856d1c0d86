"""The charts of `memory_vs_dpo.py`: bars, or lines over the length if several were measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from pages import charts
from pages.memory_lines import NAMES, PARTS, Groups, has_part, measured, size_of
from pages.text import TRAININGS, Line, typical


def draw(groups: Groups, stem: Path, title: str) -> list[Path]:
    """Draws the charts of a file: bars, or lines over the length if several were measured."""
    paths = []

    def named(chart: str) -> Path:
        paths.append(stem.with_name(f"{stem.name}_{chart}.png"))
        return paths[-1]

    good = {key: measured(runs) for key, runs in groups.items() if measured(runs)}
    # Several lengths: lines over the length, for each training.
    if len({length for length, _, _ in good}) > 1:
        for training in dict.fromkeys(training for _, training, _ in good):
            for chart_kind, name, column, axis in (
                ("memory", "Peak memory", "peak_memory_gib", "peak memory, GiB"),
                ("throughput", "Throughput", "pairs_per_second", "pairs per second"),
            ):
                series: dict[str, list[tuple[float, float]]] = {}
                for (length, trained, method), runs in good.items():
                    if trained == training:
                        series.setdefault(method, []).append((length or 0, size_of(runs, column)))
                charts.lines(
                    named(f"{chart_kind}_by_length_{training}"),
                    f"{name}: {title}, {TRAININGS[training]}", series,
                    "tokens of a sequence, prompt and completion", axis,
                    labels=NAMES, log_x=True, log_y=chart_kind == "throughput",
                )  # fmt: skip
        return paths
    # One length: a bar for each method.
    legend = PARTS | {"activations and head": PARTS["activations_and_head"]}
    memory, rates = map(_memory_bar, good.items()), map(_throughput_bar, good.items())
    charts.bars(named("memory"), f"Peak memory: {title}", list(memory), "GiB", legend=legend)
    axis = "preference pairs per second"
    charts.bars(named("throughput"), f"Throughput: {title}", list(rates), axis, legend=None)
    return paths


def _memory_bar(item: tuple[tuple[int | None, str, str], list[Line]]) -> charts.Bar:
    (_, training, method), runs = item
    run = typical(runs)
    sizes = {part: run[f"{part}_gib"] for part in PARTS if has_part(run, part)}
    parts = {part.replace("_", " "): max(0.0, size) for part, size in sizes.items()}
    peak = f"{run['peak_memory_gib']:.2f} GiB"
    return charts.Bar(NAMES[method], parts, peak, group=TRAININGS[training])


def _throughput_bar(item: tuple[tuple[int | None, str, str], list[Line]]) -> charts.Bar:
    (_, training, method), runs = item
    rates = [run["pairs_per_second"] for run in runs]
    ends = (min(rates), max(rates)) if len(rates) > 1 else None
    text = f"{median(rates):.3g}"
    return charts.Bar(NAMES[method], {method: median(rates)}, text, ends, TRAININGS[training])
