"""Lines of `memory_vs_dpo.py` -> a page of tables, charts beside it, and the README's table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pages.memory_charts import draw
from pages.memory_lines import NAMES, PARTS, Groups, grouped, has_part, measured
from pages.text import (
    ENVIRONMENT,
    TRAININGS,
    Line,
    bullets,
    difference,
    image,
    median_of,
    model_on_device,
    speedup,
    spread,
    table,
    typical,
    write_page,
)

_ALIKE = {"cpo": ("trl-cpo", "liger-cpo"), "dpo-reference": ("dpo-adapter", "dpo-precomputed",
          "trl-dpo")}  # fmt: skip

Rows = list[tuple[str, ...]]


def render(lines: list[Line], stem: Path) -> None:
    """Writes STEM.md and STEM_*.png."""
    groups = grouped(line for line in lines if "largest_micro_batch_pairs" not in line)
    limits = [line for line in lines if "largest_micro_batch_pairs" in line]
    drawn = draw(groups, stem, title_of(lines[0])) if any(map(measured, groups.values())) else []
    write_page(stem, page(groups, limits, lines[-1], drawn))


def title_of(line: Line) -> str:
    """Model, device and, if there are several, ranks."""
    return model_on_device(line) + (f", {line['ranks']} ranks" if line["ranks"] > 1 else "")


def page(groups: Groups, limits: list[Line], last: Line, drawn: Sequence[Path]) -> list[str]:
    """The parts of the whole page."""
    parts = [f"# CPO beside DPO: {title_of(last)}", *map(image, drawn)]
    lengths = list(dict.fromkeys(length for length, _, _ in groups))
    for length in lengths:
        of_length = {key: runs for key, runs in groups.items() if key[0] == length}
        if length is not None:
            parts.append(f"## Sequences of {length} tokens")
        parts += [
            "### Throughput",
            throughput_table(of_length),
            "### Memory, GiB",
            memory_table(of_length),
        ]
        if losses := loss_table(of_length):
            parts += ["### Losses", losses]
    if limits:
        parts += ["## Largest micro-batch", limit_table(limits)]
    notes = NOTES.format(memory=_memory(last)).split("\n\n")
    parts += ["## The columns", *(textwrap.fill(note, 100) for note in notes)]
    return [*parts, "## How it was measured", facts_of(groups, last)]


def throughput_table(groups: Groups) -> str:
    """A row per training and method; a run that was not measured shows its reason."""
    rows: Rows = [("method", "trains", "pairs/s", "CPO is faster by", "unique tokens/s",
             "padded tokens/s", "scored tokens/s", "step, s: p20 / p50 / p80", "TFLOP/s",
             "utilization")]  # fmt: skip
    for (length, training, method), runs in groups.items():
        good = measured(runs)
        name = (NAMES[method], TRAININGS[training])
        if not good:
            rows.append((*name, runs[0]["error"], *[""] * 7))
            continue
        ours = measured(groups.get((length, training, "cpo"), []))
        steps = np.percentile([s for run in good for s in run["step_seconds"]], [20, 50, 80])
        rates = [f"{median_of(good, n):.0f}" for n in _TOKENS]
        speed, highest = median_of(good, "model_tflops"), ceiling(groups)
        rows.append((
            *name, spread([run["pairs_per_second"] for run in good]),
            "" if method == "cpo" else speedup(ours, good), *rates,
            " / ".join(f"{s:.3g}" for s in steps), f"{speed:.3g}",
            f"{speed / highest:.0%}" if speed and highest else "",
        ))  # fmt: skip
    return table(rows, text_columns=2)


def ceiling(groups: Groups) -> float | None:
    """The highest measured ceiling in TFLOP/s: a busy machine measures a lower one."""
    measured_tflops = [run.get("ceiling_tflops") for runs in groups.values() for run in runs]
    return max((tflops for tflops in measured_tflops if tflops), default=None)


_TOKENS = ("tokens_per_second", "padded_tokens_per_second", "scored_tokens_per_second")


def memory_table(groups: Groups) -> str:
    """Peaks and their parts; only the columns that some row fills."""
    shown = {key: typical(good) for key, runs in groups.items() if (good := measured(runs))}
    kept = [part for part in PARTS if any(has_part(run, part) for run in shown.values())]
    reserved = any(run.get("peak_reserved_gib") for run in shown.values())
    head = ["method", "trains", "peak", *(["reserved"] if reserved else [])]
    rows: Rows = [(*head, *(PARTS[part] for part in kept))]
    for key, runs in groups.items():
        cells = [NAMES[key[2]], TRAININGS[key[1]]]
        if run := shown.get(key):
            names = ["peak_memory_gib", *(["peak_reserved_gib"] if reserved else [])]
            cells += [f"{run[name]:.2f}" for name in names]
            cells += [_gib(run.get(f"{part}_gib")) for part in kept]
        else:
            cells += [runs[0]["error"], *[""] * (len(rows[0]) - 3)]
        rows.append(tuple(cells))
    return table(rows, text_columns=2)


def loss_table(groups: Groups) -> str:
    """First losses, and by how much the losses of equal objectives differ; empty without pairs."""
    rows: Rows = [("trains", "method", "first loss", "beside", "first loss", "largest difference")]
    for (length, training, method), runs in groups.items():
        for other in _ALIKE.get(method, ()):
            others = measured(groups.get((length, training, other), []))
            if measured(runs) and others:
                ours, theirs = measured(runs), others
                rows.append((
                    TRAININGS[training], NAMES[method], f"{ours[0]['losses'][0]:.6f}",
                    NAMES[other], f"{theirs[0]['losses'][0]:.6f}", difference(ours, theirs),
                ))  # fmt: skip
    return table(rows, text_columns=2) if len(rows) > 1 else ""


def limit_table(limits: list[Line]) -> str:
    """A table of the largest micro-batches that fit."""
    rows: Rows = [("method", "trains", "sequences", "memory limit, GiB", "pairs", "unique tokens")]
    for line in limits:
        pairs = line["largest_micro_batch_pairs"]
        more = " or more" if line.get("search_ended_early") else ""
        rows.append((
            NAMES[line["method"]], TRAININGS[line["training"]], line["data"],
            f"{line['memory_limit_gib']:g}" if line["memory_limit_gib"] else "all there is",
            f"{pairs}{more}" if pairs or not line.get("error") else line["error"],
            str(line["largest_micro_batch_tokens"] or ""),
        ))  # fmt: skip
    return table(rows, text_columns=3)


def headline(lines: list[Line]) -> str:
    """The README's table: pairs a second and peak memory of each method, CPO's speed beside it.

    Lines of several precisions have their columns side by side.
    """
    columns = {
        precision: grouped(measured([line for line in lines if line["dtype"] == precision]))
        for precision in dict.fromkeys(line["dtype"] for line in lines)
    }
    names = [
        f"{precision}: {name}" if len(columns) > 1 else name
        for precision in columns
        for name in ("pairs/s", "CPO is faster by", "peak memory, GiB")
    ]
    rows: Rows = [("method", "trains", *names)]
    for case in dict.fromkeys(case for groups in columns.values() for case in groups):
        cells = [cell for groups in columns.values() for cell in _headline_cells(groups, case)]
        rows.append((NAMES[case[2]], TRAININGS[case[1]], *cells))
    return table(rows, text_columns=2)


def _headline_cells(groups: Groups, case: tuple[Any, ...]) -> tuple[str, str, str]:
    """The cells of a method in one precision; empty if it has no runs."""
    if case not in groups:
        return "", "", ""
    length, training, method = case
    runs, ours = groups[case], groups.get((length, training, "cpo"), [])
    factor = speedup(ours, runs).split(" ")[0] if method != "cpo" and ours else ""
    return (
        f"{median_of(runs, 'pairs_per_second'):.2f}",
        f"{factor} times" if factor else "",
        f"{typical(runs)['peak_memory_gib']:.1f}",
    )


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size:.2f}" if abs(size) >= 0.1 else f"{size:.4f}"


def _memory(line: Line) -> str:
    if line["GPU"] != "none":
        return (
            "the most memory allocated on a GPU, of the rank that needed most; reserved: all "
            "memory of torch's allocator"
        )
    return (
        "the most resident memory of a process, of the rank that needed most, libraries and "
        "loading included"
    )


NOTES = """\
Figures are medians over repeats, [least - most]. CPO is faster by: its pairs/s divided by that
row's. The range is over repeats, each compared with the run of the same turn. Unique tokens/s are
the tokens that this trainer computes, each shared token once. Padded tokens/s count the same pairs
as a padded concatenation, which TRL and Liger compute. Scored tokens/s are the completions' tokens.
TFLOP/s are of the products that the pairs need, each shared token once and logits of scored tokens
alone, whatever a method computes. A reference pass in the step counts. A reference pass before
training does not count, and neither does its time. Utilization is the share of a ceiling measured
in the same call (the highest of several): the model's own matrix products back to back.

TRL and Liger hold trained weights in float32 at every precision, as TRL's trainers do by default,
and compute under autocast in bfloat16. Liger's loss runs without torch.compile.

Peak: {memory}. The run with the median peak is shown. The parts are those at the moment of the
peak, measured in one more step that is not timed. In this trainer the peak is mostly inside the
head, before the gradients exist. If it comes later, the head has given its memory back already and
shows none.
Everything else: temporary tensors, freed memory that the allocator kept, buffers of libraries and
for communication. TRL and Liger are not looked into: all but model states and libraries is one part
of theirs. TRL's DPOTrainer with LoRA takes the reference from the model with its adapter switched
off."""


def facts_of(groups: Groups, last: Line) -> str:
    """Settings and environment, a line each."""
    first = next((runs[0] for runs in groups.values() if measured(runs)), last)
    tokens = "" if "unique_tokens_per_pair" not in first else (
        f"; per pair {first['unique_tokens_per_pair']:.1f} unique tokens and "
        f"{first['padded_tokens_per_pair']:.1f} padded ones"
    )  # fmt: skip
    counts = sorted({len(runs) for runs in groups.values() if measured(runs)} or {0})
    repeats = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    highest = ceiling(groups)
    checkpointing = "on" if last["gradient_checkpointing"] else "off"
    # The settings of the runs.
    facts = {
        "weights": last["weights"],
        "pairs": first["data"] + tokens,
        "step": f"{first['pairs_per_step']} pairs; {first['warmup_steps']} steps of warm-up, "
        f"{first['timed_steps']} timed, {repeats} repeats",
        "micro-batches": f"at most {first['tokens_per_rank']} unique tokens in this trainer; "
        "a step in one for TRL and Liger",
        "precision": f"{last['dtype']}, gradient checkpointing {checkpointing}",
        "DeepSpeed": f"{last['deepspeed']}, {last['ranks']} rank(s), {last['threads']} thread(s)",
        "LoRA": f"rank {last['lora_rank']} on {', '.join(last['lora_targets'])}",
        "matrix-product ceiling": f"{highest:.3g} TFLOP/s" if highest else "not measured",
    }  # fmt: skip
    if last["memory_limit_gib"]:
        facts["memory limit"] = f"{last['memory_limit_gib']:g} GiB for each process"
    # Their environment; a file that was added to may have several.
    lines = [run for runs in groups.values() for run in runs] or [last]
    for name in ENVIRONMENT:
        values = [str(line[name]) for line in lines if name in line]
        kept = values[-1:] if name in ("load before", "date") else dict.fromkeys(values)
        facts[name] = "; then ".join(kept)
    return bullets(facts)
