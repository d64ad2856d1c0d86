"""Lines of `optimizer_states.py` -> a page of tables: runs by learning rate, second moments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from pages.text import Line, grouped, settings_list, spread, table, write_page


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results."""
    first = lines[0]
    seeds = len({line["seed"] for line in lines})
    title = f"# Optimizer states in bfloat16: {first['model']}, {first['device']}"
    settings = {
        "training": f"all parameters, bfloat16, CPO, {first['steps']} steps of {first['pairs']} "
        "pairs of the built-in sample, a constant learning rate, no warm-up",
        "seeds": f"{seeds}: medians, and in brackets the range",
    }
    parts = [title, run_table(lines), RUNS, "## Second moments", moment_table(first), MOMENTS]
    write_page(stem, [*parts, "## How it was measured", settings_list(settings, lines[-1])])


def run_table(lines: Sequence[Line]) -> str:
    """A row for each learning rate and precision of the states."""
    rows = [
        ["learning rate", "states", "loss, last quarter", "held-out loss before", "after",
         "updates lost", "weights changed", "change, of float32's", "its cosine"],
    ]  # fmt: skip
    for (rate, states), runs in grouped(lines, "learning_rate", "states").items():
        last = [mean(run["losses"][-max(1, len(run["losses"]) // 4) :]) for run in runs]
        lost = [run["lost_share"] for run in runs] if states == "bfloat16" else [0.0]
        rows.append([
            f"{rate:g}", states, spread(last, ".4f"),
            *(spread([run[name] for run in runs], ".4f")
              for name in ("held_out_before", "held_out_after")),
            f"{mean(lost):.1%}", f"{mean(run['changed_share'] for run in runs):.1%}",
            *(f"{mean(run[name] for run in runs):.2f}"
              for name in ("change_ratio", "change_cosine")),
        ])  # fmt: skip
    return table(rows, text_columns=2)


def moment_table(line: Line) -> str:
    """A row for each beta: what bfloat16 makes of second moments."""
    rows = [["beta", "gradients of one scale", "then of a tenth of it"]]
    for beta, shares in line["second_moments"].items():
        rows.append([beta, *(f"{shares[name]:.2f}" for name in ("steady", "after"))])
    return table(rows, text_columns=0)


RUNS = """\
Updates lost: weights that adding the learning rate, AdamW's typical update, leaves as they are.
Weights changed: those of the optimizer's master copy that differ at the end. Change: the distance
of all weights from where they began, as a share of that with float32 states, and the cosine of the
angle between the two changes. Both kinds of states train on the same pairs in the same order, for
each seed."""

MOMENTS = """\
AdamW's second moments in bfloat16 as a multiple of those in float32, in the mean over 4,096
weights: after 2,000 steps with normally distributed gradients, then after 2,000 more with gradients
of a tenth of the size. 1.00 is exact. A multiple of 9 makes steps three times too small."""
