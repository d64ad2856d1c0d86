"""Lines of `rank_scaling.py` -> a page of tables, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np

from pages.charts import Panel, draw_panels
from pages.text import (
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

SCALINGS = {
    "strong": "the same batch on all numbers of ranks",
    "weak": "as many pairs on each rank",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_IDEAL = "nothing lost on these processors"
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of a step's loss, relative


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its chart."""
    first = lines[0]
    most = max(line["ranks"] for line in lines)
    parts = [f"# Scaling over 1 to {most} ranks: {model_on_device(first)}"]
    if good(lines):
        path = stem.with_name(f"{stem.name}_rates.png")
        draw(good(lines), path, model_on_device(first))
        parts.append(image(path))
    parts += [cores_note(lines)] if first["GPU"] == "none" else []
    for scaling, name in SCALINGS.items():
        parts += [f"## {scaling.capitalize()} scaling: {name}", scaling_table(lines, scaling)]
    parts += [NOTES, "## Losses", losses_text(lines)]
    settings = {
        "weights": f"{first['weights']}, all of them trained",
        "step": f"pairs of 160 tokens, micro-batches of up to {first['tokens_per_rank'] // 160} "
        f"pairs; {first['warmup_steps']} steps of warm-up, {first['timed_steps']} timed, "
        f"{repeats(lines)} repeats",
        "threads": f"{first['threads']} for each rank",
    }
    parts += ["## How it was measured", settings_list(settings, lines[-1])]
    write_page(stem, parts)


def name_of(deepspeed: str) -> str:
    """The name of a DeepSpeed file in tables and charts."""
    return Path(deepspeed).stem


def processors(line: Line) -> int:
    """The number of ranks that can compute at once: one on each GPU, or on each core."""
    return line["ranks"] if line["GPU"] != "none" else min(line["ranks"], line["cores"])


def efficiency(runs: Sequence[Line], alone: Sequence[Line]) -> float:
    """Pairs a second of each rank over those of one rank by itself."""
    rate, single = (median_of(group, "pairs_per_second") or 0.0 for group in (runs, alone))
    return rate / runs[0]["ranks"] / single


def scaling_table(lines: list[Line], scaling: str) -> str:
    """A row for each configuration and number of ranks."""
    rows: list[tuple[str, ...]] = [
        ("DeepSpeed file", "ranks", "pairs a step", "pairs/s", "efficiency", "possible here",
         "not computing", "peak of a rank, GiB", "of which states")
    ]  # fmt: skip
    groups = grouped([run for run in lines if run["scaling"] == scaling], "deepspeed", "ranks")
    for (deepspeed, ranks), all_runs in groups.items():
        head = (name_of(deepspeed), str(ranks), str(all_runs[0]["pairs_per_step"]))
        if not (runs := good(all_runs)):
            rows.append((*head, all_runs[0]["error"], "", "", "", "", ""))
            continue
        alone = good(groups.get((deepspeed, 1), []))
        shares = [mean(run["waiting"]) for run in runs if run.get("waiting")]
        states = median(
            run["weights_gib"] + run["gradients_whole_gib"] + run["optimizer_gib"] for run in runs
        )
        rows.append((
            *head, spread([run["pairs_per_second"] for run in runs]),
            f"{efficiency(runs, alone):.0%}" if alone else "",
            f"{processors(runs[0]) / ranks:.0%}",
            f"{median(shares):.0%}" if shares else "",
            f"{median_of(runs, 'peak_memory_gib'):.2f}", f"{states:.2f}",
        ))  # fmt: skip
    return table(rows, text_columns=1)


def same_pairs(lines: list[Line]) -> list[list[Line]]:
    """Runs that trained on the same pairs in the same steps, however many ranks they had."""
    return [runs for runs in grouped(good(lines), "pairs_per_step").values() if len(runs) > 1]


def loss_difference(runs: Sequence[Line]) -> float:
    """The largest relative difference of a step's loss between runs."""
    losses = np.array([run["losses"] for run in runs])
    return float((losses.max(0) / losses.min(0) - 1).max())  # NaN if one is not finite


def different_losses(lines: list[Line]) -> list[str]:
    """A sentence on runs whose losses must be equal and are not; empty if there are none."""
    return [
        f"losses of runs of {runs[0]['pairs_per_step']} pairs a step differ by {by:.1e} (relative)"
        for runs in same_pairs(lines)
        if not (by := loss_difference(runs)) <= TOLERANCE[runs[0]["dtype"]]
    ]


def losses_text(lines: list[Line]) -> str:
    """A sentence on how equal the losses are."""
    most = max((loss_difference(runs) for runs in same_pairs(lines)), default=0.0)
    count = sum(len(runs) for runs in same_pairs(lines))
    wrong = different_losses(lines)
    return (
        f"{count} rows above share their pairs with another row, of other ranks or another ZeRO "
        f"stage. Their losses differ by {most:.1e} at most (relative, any step); allowed are "
        f"{TOLERANCE[lines[0]['dtype']]:.0e}, or the command fails."
        + "".join(f" **{text.capitalize()}.**" for text in wrong)
    )


def draw(lines: list[Line], path: Path, title: str) -> None:
    """Draws pairs a second against ranks, beside the limit that the processors set."""
    panels = []
    names = list(dict.fromkeys(name_of(line["deepspeed"]) for line in lines))
    for scaling, about_it in SCALINGS.items():
        series: dict[str, list[tuple[float, float]]] = {}
        groups = grouped([run for run in lines if run["scaling"] == scaling], "deepspeed", "ranks")
        for (deepspeed, ranks), runs in groups.items():
            rate = median_of(runs, "pairs_per_second") or 0.0
            series.setdefault(name_of(deepspeed), []).append((ranks, rate))
        alone = [rate for points in series.values() for ranks, rate in points if ranks == 1]
        if alone:
            counts = {run["ranks"]: processors(run) for run in lines}
            series[_IDEAL] = [(ranks, max(alone) * count) for ranks, count in counts.items()]
        if series:
            panels.append(Panel("ranks", "pairs/s", series, title=f"{scaling}: {about_it}"))
    colours = dict(zip(names, _COLOURS, strict=False)) | {_IDEAL: "#777777"}
    draw_panels(
        path, f"Scaling over ranks: {title}", panels, colours, columns=len(panels), dashed=[_IDEAL]
    )


def cores_note(lines: list[Line]) -> str:
    """A note on how far ranks on the cores of one machine can show scaling."""
    cores = lines[0]["cores"]
    return (
        "**This page shows** that any number of ranks trains the same model, the memory that each "
        f"rank has to hold, and the cost of this trainer's own work. **Its limits:** {cores} cores "
        f"serve all ranks. More than {cores} ranks only take turns, so the pairs a second cannot "
        'grow further ("possible here" is the efficiency of ranks that lose nothing else). Ranks '
        "share caches and memory bandwidth too. They exchange by Gloo over the loopback, whose "
        "copies take processor time that GPUs with NVLink or InfiniBand would not take. So none of "
        "the rates says how GPUs scale. The same command measures that on a host with GPUs."
    )


NOTES = """\
Efficiency: pairs a second of each rank over those of one rank by itself with the same file. "Not
computing" is the share of the timed steps in which the thread that trains had no processor, mean
over the ranks. It waited for a collective and the slowest rank, or for a core that another rank or
program had. It is an upper bound of communication's share, and is not known on a GPU. Peak:
resident in a process, or allocated on a GPU, of the rank that needed most, libraries included.
States: weights, gradients and optimizer. A run that belongs to both scalings, on the same pairs and
ranks, was made once and stands in both tables."""
