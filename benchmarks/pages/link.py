"""Lines of `link_speed.py` -> a page of tables, and a chart."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from hosts.link_model import CONFIGURATIONS, Link, delay_seconds, link_seconds

from pages.charts import Panel, draw_panels
from pages.text import Line, grouped, image, repeats, settings_list, spread, table, write_page

_SHORT = CONFIGURATIONS | {"zero3-kept": "ZeRO-3, weights kept", "hierarchical": "hierarchical"}
_COLOURS = {"zero2": "#0072B2", "zero3": "#D55E00", "zero3-kept": "#E69F00",
            "hierarchical": "#009E73"}  # fmt: skip
MB = 1e6


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its chart."""
    first = lines[0]
    ranks = f"{first['hosts']} hosts of {first['ranks_per_host']} ranks"
    title = f"{first['model']} on {ranks}"
    parts = [f"# Training over a slow link: {title}, {first['device']}"]
    if len({line["rate_mbit"] for line in lines if not line["delay_ms"]} - {None}) > 1:
        path = stem.with_name(f"{stem.name}_steps.png")
        draw(lines, path, title)
        parts.append(image(path))
    parts += ["## Bytes between the hosts", bytes_table(lines), BYTES_NOTES]
    parts += ["## Seconds of a step", seconds_table(lines), SECONDS_NOTES]
    parts += ["## Collectives of a step", collectives_table(lines), COLLECTIVES_NOTES]
    settings = {
        "weights": f"{first['weights']}, {first['num_weights']:,}, all of them trained, float32",
        "step": f"{first['pairs_per_step']} pairs of 48 tokens",
        "losses": f"equal to {loss_difference(lines):.1e} (relative) in all runs on the same pairs",
        "repeats": f"{repeats(lines)} launches of each configuration, "
        f"{len(first['step_seconds'])} steps for each link, and one before them to warm up",
    }
    parts += ["## How it was measured", NOTES, settings_list(settings, lines[-1])]
    write_page(stem, parts)


def link_of(line: Line) -> Link:
    """The link of a line."""
    return Link(line["rate_mbit"], line["delay_ms"])


def steps_of(runs: list[Line], name: str) -> list[float]:
    """The values of all steps of some lines."""
    return [value for run in runs for value in run[f"step_{name}"]]


def bytes_table(lines: list[Line]) -> str:
    """Megabytes of a step in each direction, counted and predicted."""
    rows: list[tuple[str, ...]] = [
        ("configuration", "micro-batches", "planner", "with Gloo's reduce-scatter", "sent",
         "received", "error")
    ]  # fmt: skip
    for (name, count), runs in grouped(lines, "configuration", "micro_batches").items():
        sent, received = (median(steps_of(runs, which)) for which in ("sent", "received"))
        expected = runs[0]["predicted_gloo_bytes"]
        rows.append((
            CONFIGURATIONS[name], str(count), f"{runs[0]['predicted_planner_bytes'] / MB:.2f}",
            f"{expected / MB:.2f}", f"{sent / MB:.2f}", f"{received / MB:.2f}",
            f"{2 * expected / (sent + received) - 1:+.1%}",
        ))  # fmt: skip
    return table(rows, text_columns=1)


def predicted_seconds(line: Line, without_limit: float) -> tuple[float, float]:
    """Predicts a step: no limit, plus the planner's bytes, or plus Gloo's and the delay."""
    link, ranks = link_of(line), line["hosts"] * line["ranks_per_host"]
    planner, gloo = (
        without_limit + link_seconds(line[f"predicted_{name}_bytes"], link)
        for name in ("planner", "gloo")
    )
    return planner, gloo + delay_seconds(line["collectives"], ranks, link)


def without_limit(lines: list[Line], name: str, count: int) -> float:
    """Seconds of a step without any limit on the link; 0 if that was not measured."""
    runs = [
        line
        for line in lines
        if (line["configuration"], line["micro_batches"]) == (name, count)
        if link_of(line) == Link()
    ]
    return median(steps_of(runs, "seconds")) if runs else 0.0


def seconds_table(lines: list[Line]) -> str:
    """A table of measured and predicted seconds, by link and configuration."""
    rows: list[tuple[str, ...]] = [
        ("link", "configuration", "micro-batches", "measured", "planner", "Gloo and delay",
         "error")
    ]  # fmt: skip
    groups = grouped(lines, "rate_mbit", "delay_ms", "configuration", "micro_batches")
    for (_, _, name, count), runs in groups.items():
        link, seconds = link_of(runs[0]), steps_of(runs, "seconds")
        base = without_limit(lines, name, count)
        planner, gloo = predicted_seconds(runs[0], base)
        predictions = ("", "", "")
        if link != Link() and base:
            predictions = (f"{planner:.2f}", f"{gloo:.2f}", f"{gloo / median(seconds) - 1:+.0%}")
        rows.append((link.name, CONFIGURATIONS[name], str(count), spread(seconds), *predictions))
    return table(rows, text_columns=2)


def collectives_table(lines: list[Line]) -> str:
    """A table of collectives by kind and span, with megabytes, for the most micro-batches."""
    rows: list[tuple[str, ...]] = [("configuration", "micro-batches", "collective", "count", "MB")]
    for (name, count), runs in grouped(lines, "configuration", "micro_batches").items():
        if count == max(line["micro_batches"] for line in lines):
            rows += [
                (CONFIGURATIONS[name], str(count), kind, str(seen["count"]),
                 f"{seen['bytes'] / MB:.2f}")
                for kind, seen in runs[0]["collectives"].items()
            ]  # fmt: skip
    return table(rows, text_columns=3)


def loss_difference(lines: list[Line]) -> float:
    """The largest relative difference of a step's loss between runs on the same pairs."""
    largest = 0.0
    for micro_batches in {line["micro_batches"] for line in lines}:
        alike = [line["losses"] for line in lines if line["micro_batches"] == micro_batches]
        losses = np.array([run_losses[: min(map(len, alike))] for run_losses in alike])
        largest = max(largest, float((losses.max(0) / losses.min(0) - 1).max()))
    return largest


def draw(lines: list[Line], path: Path, title: str) -> None:
    """Seconds of a step against the rate of the link: measured, and predicted from the bytes."""
    most = max(line["micro_batches"] for line in lines)
    timed = [line for line in lines if line["micro_batches"] == most]
    series: dict[str, list[tuple[float, float]]] = {}
    colours: dict[str, str] = {}
    for (name, rate, delay), runs in grouped(
        timed, "configuration", "rate_mbit", "delay_ms"
    ).items():
        if rate is None or delay:
            continue
        _, gloo = predicted_seconds(runs[0], without_limit(lines, name, most))
        measured = _SHORT[name]
        for label, value in (
            (measured, median(steps_of(runs, "seconds"))),
            (f"{measured}: predicted", gloo),
        ):
            series.setdefault(label, []).append((rate, value))
            colours[label] = _COLOURS[name]
    dashed = [label for label in series if label.endswith("predicted")]
    panel = Panel("link, Mbit/s", "seconds of a step", series, log_y=True)
    draw_panels(path, f"Training over a slow link: {title}", [panel], colours, columns=1,
                dashed=dashed)  # fmt: skip


BYTES_NOTES = """\
MB (1e6 bytes) of one step in each direction, medians over all steps and links. Headers of the
network (66 bytes a frame) are subtracted. "planner" is the count of `cpo-ds plan`: a reduce-scatter
sends each part once, as NCCL's does. Gloo's reduce-scatter is an all-reduce of which each rank
keeps its part, so under ZeRO-3 gradients cross twice here. The next column counts them so, and the
error compares that column with the mean of sent and received bytes. ZeRO-2 reduces by an all-reduce
in DeepSpeed itself, with NCCL too. Weights under stage3_param_persistence_threshold, in this model
the norms, are counted like the others."""

SECONDS_NOTES = """\
"planner" is the step without a limit plus the planner's bytes at the rate of the link. "Gloo and
delay" takes Gloo's bytes instead, and adds the delay once for each round of each collective between
the hosts (3 in a gather of 4 ranks, 6 in an all-reduce), as if none of them overlapped. The planner
itself knows no delay. It assumes that links reach 70% of their rate; nothing is subtracted here.
No communication is assumed to hide behind computation: on a CPU hardly any does."""

COLLECTIVES_NOTES = """\
Collectives of one rank, counted in a step of its own that is not timed. MB are those of the whole
tensors."""

NOTES = """\
ZeRO-2 is ds_configs/zero2.json. "Weights kept between the passes" is ds_configs/zero3.json as it
is. It keeps up to a billion weights whole from forward to backward pass: all of a small model. The
other two have its sizes scaled down to this model from one of 7 billion weights. Hierarchical
partitioning has zero_hpz_partition_size set to the ranks of a host. These runs have limits: four
ranks share the cores of one machine, and a switch in its kernel joins them. So times without a
limit show its processors and memory, not a network. GPUs, NCCL and their overlap are not seen."""
