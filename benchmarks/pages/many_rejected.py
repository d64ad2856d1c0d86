"""Lines of `many_rejected.py` -> a page with a table, and a chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import charts
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
    speedup,
    spread,
    table,
    typical,
    write_page,
)

VARIANTS = {
    "lists": "lists",
    "unrolled": "unrolled pairs",
    "trl": "TRL CPOTrainer, unrolled pairs",
}
RATE = "comparisons_per_second"
Groups = Mapping[tuple[Any, ...], list[Line]]


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its chart."""
    groups = grouped(lines, "training", "rejected", "variant")
    title = model_on_device(lines[0])
    parts = [f"# Several rejected translations of one source: {title}"]
    if any(good(runs) for runs in groups.values()):
        parts.append(image(draw(groups, stem, title)))
    first = lines[0]
    context = first["context_tokens"]
    before = f", {context} tokens before each source" if context else ""
    settings = {
        "rows": f"{first['data']}{before}; {first['rows_per_step']} in an optimizer "
        "step, each with its rejected completions; the comparisons of a step are the same in all "
        "variants",
        "micro-batch": f"{first['tokens_per_rank']} tokens; "
        f"TRL: {max(line['micro_batch_pairs'] for line in lines)} pairs",
        "steps": f"{first['warmup_steps']} of warm-up, {first['timed_steps']} timed, "
        f"{repeats(lines)} repeats",
        "DeepSpeed": f"{first['deepspeed']}, {first['threads']} thread(s)",
    }
    parts += [comparisons_table(groups), NOTES, settings_list(settings, lines[-1])]
    write_page(stem, parts)


def comparisons_table(groups: Groups) -> str:
    """A row for each number of rejected completions and variant."""
    rows = [("trains", "rejected", "as", "comparisons/s", "lists are faster by",
             "tokens per comparison", "step, s", "peak, GiB")]  # fmt: skip
    for (training, rejected, variant), all_runs in groups.items():
        runs = good(all_runs)
        name = (TRAININGS[training], str(rejected), VARIANTS[variant])
        if not runs:
            rows.append((*name, all_runs[0]["error"], *[""] * 4))
            continue
        lists = good(groups.get((training, rejected, "lists"), []))
        rows.append((
            *name,
            spread([run[RATE] for run in runs]),
            "" if variant == "lists" else speedup(lists, runs, RATE),
            f"{median_of(runs, 'tokens_per_comparison'):.1f}",
            f"{median_of(runs, 'step_seconds_p50'):.3g}",
            f"{typical(runs)['peak_memory_gib']:.2f}",
        ))  # fmt: skip
    return table(rows, text_columns=3)


def headline(lines: list[Line]) -> str:
    """The README's table: the rate of lists by their length, and its ratios with the others'."""
    groups = grouped(lines, "training", "rejected", "variant")
    trainings = list(dict.fromkeys(training for training, _, _ in groups))
    names = ("comparisons/s", "faster than pairs by", "faster than TRL by")
    columns = [f"{TRAININGS[training]}: {name}" for training in trainings for name in names]
    rows = [("rejected", "tokens per comparison", "in pairs", *columns)]
    for rejected in dict.fromkeys(rejected for _, rejected, _ in groups):
        lists, unrolled = (groups[trainings[0], rejected, name] for name in ("lists", "unrolled"))
        tokens = [f"{median_of(runs, 'tokens_per_comparison'):.0f}" for runs in (lists, unrolled)]
        cells = [cell for training in trainings for cell in _rates(groups, training, rejected)]
        rows.append((str(rejected), *tokens, *cells))
    return table(rows, text_columns=0)


def _rates(groups: Groups, training: str, rejected: int) -> tuple[str, str, str]:
    """The rate of lists, and its ratios with those of unrolled pairs and TRL."""
    lists, *others = (good(groups[training, rejected, variant]) for variant in VARIANTS)
    rate = median_of(lists, RATE)
    ratios = [f"{speedup(lists, runs, RATE).split(' ')[0]} times" for runs in others]
    return f"{rate:.1f}", ratios[0], ratios[1]


def draw(groups: Groups, stem: Path, title: str) -> Path:
    """Bars of comparisons a second."""
    bars = []
    for (training, rejected, variant), all_runs in groups.items():
        if not (runs := good(all_runs)):
            continue
        values = [run[RATE] for run in runs]
        ends = (min(values), max(values)) if len(values) > 1 else None
        rate = median_of(runs, RATE) or 0.0
        group = f"{TRAININGS[training]}, {rejected} rejected"
        bars.append(charts.Bar(VARIANTS[variant], {"cpo": rate}, f"{rate:.3g}", ends, group))
    path = stem.with_name(f"{stem.name}_throughput.png")
    charts.bars(path, f"Throughput: {title}", bars, "comparisons per second", legend=None)
    return path


NOTES = """\
Figures are medians over repeats, [least - most]. A comparison is a chosen completion beside one
rejected completion. Lists: a row with k rejected completions is one sequence, whose prompt and
chosen completion are computed once. Unrolled: k pairs, each with the prompt and the chosen
completion. All variants make the same comparisons in each optimizer step, and the loss is the same
except for its NLL term, which counts a chosen completion k times when unrolled. The unrolled pairs
of a step are shuffled, as samplers do, so that TRL's micro-batches mix sources. Tokens per
comparison are those that the model computes: unique ones here, padded ones in TRL."""
