"""Results of `vs_trl.py` -> a Markdown table. Pure functions."""

from __future__ import annotations

from statistics import median
from typing import Any

NAMES = {"cpo-ds": "this trainer", "trl-cpo": "TRL CPOTrainer", "trl-dpo": "TRL DPOTrainer"}
TRAININGS = {"lora": "LoRA", "full": "all parameters"}
HEADER = (
    "trainer",
    "trains",
    "pairs/s",
    "this trainer's speed over it",
    "tokens/s",
    "peak memory, GiB",
    "growth, GiB",
    "loss, first step",
    "loss, largest difference",
)
NOTES = """\
Medians over repeats, [least - most]. Speed over it: this trainer's pairs/s divided by that row's;
the range is over repeats, each beside the run of the same turn. Tokens/s: what each computes,
unique tokens here, padded ones in TRL. Peak memory: {memory}.
Growth: what training adds to the loaded policy, a reference model included. Largest difference:
between this trainer's and TRL CPO's losses of the same step, over all steps and repeats.
"""

Result = dict[str, Any]


def render_report(results: list[Result], about: dict[str, str]) -> str:
    """The whole page: table, what it means, environment."""
    on_gpu = about.get("GPU", "none") != "none"
    memory = (
        "most that was allocated on the GPU" if on_gpu else "most that was resident in the process"
    )
    environment = "".join(f"- {name}: {value}\n" for name, value in about.items())
    title = "# This trainer beside TRL\n"
    return "\n".join([title, render_table(results), NOTES.format(memory=memory), environment])


def render_table(results: list[Result]) -> str:
    """One row per training and trainer, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["training"], result["method"]), []).append(result)
    trainings = list(dict.fromkeys(training for training, _ in groups))
    rows = [
        _row(runs, groups.get((wanted, "cpo-ds"), []), groups.get((wanted, "trl-cpo"), []))
        for wanted in trainings
        for (training, _), runs in groups.items()
        if training == wanted
    ]
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(runs: list[Result], ours: list[Result], trl_cpo: list[Result]) -> tuple[str, ...]:
    method = runs[0]["method"]
    tokens = "unique_tokens_per_second" if method == "cpo-ds" else "padded_tokens_per_second"
    return (
        NAMES[method],
        TRAININGS[runs[0]["training"]],
        spread([run["pairs_per_second"] for run in runs], ".2f"),
        speedup(ours, runs),
        f"{median(run[tokens] for run in runs):.0f}",
        f"{median(run['peak_memory_gib'] for run in runs):.2f}",
        f"{median(run['peak_growth_gib'] for run in runs):.2f}",
        f"{runs[0]['losses'][0]:.6f}",
        largest_difference(ours, trl_cpo) if method == "trl-cpo" else "-",
    )


def spread(values: list[float], form: str) -> str:
    """Median and range, like `2.00 [1.00 - 3.00]`."""
    return f"{median(values):{form}} [{min(values):{form}} - {max(values):{form}}]"


def speedup(ours: list[Result], theirs: list[Result]) -> str:
    """Ratio of the medians of pairs/s, and the range of the ratios of runs of the same repeat."""
    if not ours or ours[0]["method"] == theirs[0]["method"]:
        return "-"
    ratio = median(r["pairs_per_second"] for r in ours) / median(
        r["pairs_per_second"] for r in theirs
    )
    by_repeat = {run["repeat"]: run["pairs_per_second"] for run in ours}
    ratios = [
        by_repeat[run["repeat"]] / run["pairs_per_second"]
        for run in theirs
        if run["repeat"] in by_repeat
    ]
    return f"{ratio:.2f} [{min(ratios):.2f} - {max(ratios):.2f}]"


def largest_difference(ours: list[Result], theirs: list[Result]) -> str:
    """Between the losses of the same step, over the runs of the same repeat."""
    by_repeat = {run["repeat"]: run["losses"] for run in ours}
    differences = [
        abs(one - other)
        for run in theirs
        for one, other in zip(by_repeat.get(run["repeat"], []), run["losses"], strict=False)
    ]
    return f"{max(differences):.1e}" if differences else "-"
