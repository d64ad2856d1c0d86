"""Lines of `scaling.py` -> a page of tables, and a chart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pages import charts
from pages.charts import Panel, draw_panels
from pages.text import (
    TRAININGS,
    Line,
    good,
    grouped,
    image,
    median_of,
    model_on_device,
    repeats,
    settings_list,
    spread,
    table,
    write_page,
)

FACTORS = {
    "prompt_tokens": "prompt, tokens",
    "completion_tokens": "each completion, tokens",
    "vocabulary": "vocabulary",
    "micro_batch_pairs": "micro-batch, pairs",
}
METHODS = {
    "cpo": "CPO",
    "dpo-reference": "DPO, reference model",
    "dpo-adapter": "DPO, reference by adapter off",
    "dpo-precomputed": "DPO, reference precomputed",
}


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its charts."""
    first = lines[0]
    parts = [f"# The cost of a pair: {model_on_device(first)}"]
    if good(lines):
        path = stem.with_name(f"{stem.name}_factors.png")
        draw_scaling(good(lines), path, model_on_device(first))
        parts.append(image(path))
    base = next((line for line in lines if len(line["varies"]) > 1), first)
    point = ", ".join(f"{name}: {base[factor]}" for factor, name in FACTORS.items())
    for factor, name in FACTORS.items():
        parts += [f"## By {name}", scaling_table(lines, factor)]
    settings = {
        "weights": first["weights"],
        "base point": point,
        "trained": TRAININGS[first["training"]],
        "step": f"{first['pairs_per_step']} pairs; {first['warmup_steps']} steps of warm-up, "
        f"{first['timed_steps']} timed, {repeats(lines)} repeats",
        "DeepSpeed": f"{first['deepspeed']}, {first['threads']} thread(s)",
    }
    parts += ["## How it was measured", NOTES, settings_list(settings, lines[-1])]
    write_page(stem, parts)


def scaling_table(lines: list[Line], factor: str) -> str:
    """A row per value of one factor and method."""
    rows = [(FACTORS[factor], "method", "pairs/s", "unique tokens/s", "ms per pair", "peak, GiB")]
    of_factor = [line for line in lines if factor in line["varies"]]
    groups = grouped(sorted(of_factor, key=lambda line: line[factor]), factor, "method")
    for (value, method), all_runs in groups.items():
        name = (str(value), METHODS[method])
        if not (runs := good(all_runs)):
            rows.append((*name, all_runs[0]["error"], "", "", ""))
            continue
        rows.append((
            *name, spread([run["pairs_per_second"] for run in runs]),
            f"{median_of(runs, 'tokens_per_second'):.0f}",
            f"{1000 / (median_of(runs, 'pairs_per_second') or 1.0):.0f}",
            f"{median_of(runs, 'peak_memory_gib'):.2f}",
        ))  # fmt: skip
    return table(rows, text_columns=2)


def draw_scaling(lines: list[Line], path: Path, title: str) -> None:
    """Time and memory, one above the other, for each factor."""

    def time_of(runs: list[Line]) -> float:
        return 1000 / (median_of(runs, "pairs_per_second") or 1.0)

    def memory_of(runs: list[Line]) -> float:
        return median_of(runs, "peak_memory_gib") or 0.0

    measures: list[tuple[str, Callable[[list[Line]], float]]] = [
        ("milliseconds per pair", time_of),
        ("peak memory, GiB", memory_of),
    ]
    panels = []
    for y_axis, value_of in measures:
        for factor, name in FACTORS.items():
            groups = grouped([line for line in lines if factor in line["varies"]], factor, "method")
            series: dict[str, list[tuple[float, float]]] = {}
            for (value, method), runs in groups.items():
                series.setdefault(METHODS[method], []).append((value, value_of(runs)))
            panels.append(Panel(name, y_axis, series))
    colours = {name: charts.COLOURS[method] for method, name in METHODS.items()}
    draw_panels(path, f"The cost of a pair: {title}", panels, colours, columns=len(FACTORS))


NOTES = """\
One factor is varied at a time from the base point. All pairs of a run are of one length. The two
completions of a pair share the prompt and nothing else, so a pair is prompt + 2 completions unique
tokens. A step has as many micro-batches as its pairs need. Peak: the whole process or GPU,
libraries and model states included."""
