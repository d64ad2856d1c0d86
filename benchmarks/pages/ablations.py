"""Lines of `ablations.py` -> a page of tables, and charts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import charts
from pages.text import (
    TRAININGS,
    Line,
    difference,
    good,
    grouped,
    image,
    median_of,
    model_on_device,
    repeats,
    settings_list,
    spread,
    table,
    typical,
    write_page,
)

VARIANTS = {
    "padded": "padded, logits of all positions",
    "packed": "packed, logits of scored positions",
    "shared prompt": "+ shared prompt",
    "chunked head": "+ chunked head",
    "longest common prefix": "+ longest common prefix",
}
PARTS = ("weights", "gradients", "optimizer", "activations", "head", "libraries", "other")


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its charts."""
    groups = grouped(lines, "training", "variant")
    parts = [f"# From padded pairs to shared prefixes: {model_on_device(lines[0])}"]
    if any(good(runs) for runs in groups.values()):
        parts += [image(path) for path in draw_ablations(groups, stem, model_on_device(lines[0]))]
    first = lines[0]
    settings = {
        "weights": first["weights"],
        "pairs": first["data"],
        "step": f"{first['pairs_per_step']} pairs in one micro-batch; {first['warmup_steps']} "
        f"steps of warm-up, {first['timed_steps']} timed, {repeats(lines)} repeats",
        "DeepSpeed": f"{first['deepspeed']}, {first['threads']} thread(s)",
    }
    parts += [ablations_table(groups), NOTES, settings_list(settings, lines[-1])]
    write_page(stem, parts)


def ablations_table(groups: Mapping[tuple[Any, ...], list[Line]]) -> str:
    """A row per variant."""
    rows = [("", "trains", "pairs/s", "times the row above", "times padded", "tokens per pair",
             "logits per pair", "step, s", "peak, GiB", "of which activations and head",
             "loss differs by")]  # fmt: skip
    for (training, variant), all_runs in groups.items():
        runs, names = good(all_runs), list(VARIANTS)
        name = (VARIANTS[variant], TRAININGS[training])
        if not runs:
            rows.append((*name, all_runs[0]["error"], *[""] * 8))
            continue
        above = names[max(0, names.index(variant) - 1)]
        one_up, padded = (good(groups.get((training, v), [])) for v in (above, "padded"))
        run = typical(runs)
        is_first = variant == "padded"
        rows.append((
            *name, spread([run["pairs_per_second"] for run in runs]),
            "" if is_first else _ratio(runs, one_up), "" if is_first else _ratio(runs, padded),
            f"{median_of(runs, 'tokens_per_pair'):.1f}",
            f"{median_of(runs, 'logits_per_pair'):.1f}",
            f"{median_of(runs, 'step_seconds_p50'):.3g}",
            f"{run['peak_memory_gib']:.2f}", f"{run['activations_gib'] + run['head_gib']:.2f}",
            "" if is_first else difference(runs, padded),
        ))  # fmt: skip
    return table(rows, text_columns=2)


def draw_ablations(
    groups: Mapping[tuple[Any, ...], list[Line]], stem: Path, title: str
) -> list[Path]:
    """Bars of throughput and of memory by part."""
    memory, rates = [], []
    for (training, variant), all_runs in groups.items():
        if not (runs := good(all_runs)):
            continue
        name, group = VARIANTS[variant], TRAININGS[training]
        run = typical(runs)
        sizes = {part: max(0.0, run[f"{part}_gib"]) for part in PARTS}
        peak = f"{run['peak_memory_gib']:.2f} GiB"
        memory.append(charts.Bar(name, sizes, peak, group=group))
        values = [run["pairs_per_second"] for run in runs]
        ends = (min(values), max(values)) if len(values) > 1 else None
        rate = median_of(runs, "pairs_per_second") or 0.0
        rates.append(charts.Bar(name, {"cpo": rate}, f"{rate:.3g}", ends, group))
    paths = [stem.with_name(f"{stem.name}_{chart}.png") for chart in ("throughput", "memory")]
    axis = "preference pairs per second"
    charts.bars(paths[0], f"Throughput: {title}", rates, axis, legend=None)
    legend = {part: part for part in PARTS} | {"optimizer": "optimizer states",
              "other": "everything else"}  # fmt: skip
    charts.bars(paths[1], f"Peak memory: {title}", memory, "GiB", legend=legend)
    return paths


def _ratio(ours: list[Line], theirs: list[Line]) -> str:
    one, other = median_of(ours, "pairs_per_second"), median_of(theirs, "pairs_per_second")
    return f"{one / other:.2f}" if one and other else ""


NOTES = """\
Figures are medians over repeats, [least - most]. All rows run this trainer's loop, loss (CPO) and
optimizer on the same pairs in the same steps. Each step is one micro-batch. Padded: chosen and
rejected sequences are padded to the step's longest, with torch's own attention. Tokens per pair are
the tokens that the body computes. Logits per pair are the positions that the head computes. Without
the chunked head all logits exist at once, and autograd keeps the inputs of log_softmax. Loss
differs by: the largest difference from padded, over all steps. The parts of memory are those at the
moment of the peak, measured in one more step that is not timed."""
