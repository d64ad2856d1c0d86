"""Lines of `planner_check.py` -> a table of estimated and measured memory."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from pages.text import write_page

_CASE = (
    "shape",
    "stage",
    "training",
    "ranks",
    "dtype",
    "gradient_checkpointing",
    "measured_on_gpu",
)


def render(lines: list[dict[str, Any]], stem: Path) -> None:
    """Writes `<stem>.md`: a row for each case, medians of its repeats."""
    write_page(stem, [report(lines)])


def report(lines: list[dict[str, Any]]) -> str:
    """The page: a table of the cases, the largest errors, and the machine."""
    # Repeats of a case share a row.
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        case = (*(line[name] for name in _CASE), line.get("rejected", 1))
        cases[case].append(line)
    head = (
        "| model | ZeRO | trains | ranks | number type | states estimated | measured | error "
        "| total estimated | measured | error | without baseline |"
    )
    rows = [_row(repeats) for repeats in cases.values()]
    # The largest errors and the notes.
    states, total = (
        max(abs(line[name]) for line in lines) for name in ("states_error", "total_error")
    )
    first = lines[0]
    kind = "allocated by torch" if first["measured_on_gpu"] else "resident"
    return "\n".join(
        [
            f"# The planner's estimates against real runs on {first['device']}",
            "",
            "Sizes in MiB, on one rank. States: all tensors between the last backward pass and the "
            f"update. Total: peak of a step, {kind}"
            + (
                "."
                if first["measured_on_gpu"]
                else ". The estimate includes the memory of Python and the libraries, measured "
                "beside tensors between two steps. This part is measured, not estimated, and makes "
                "the error look smaller; the last column leaves it out."
            ),
            "",
            head,
            "|---|--:|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"Largest error: states {states:.1%} (also between steps), total {total:.1%}.",
            "",
            f"`{first['command']}`, commit {first['commit']}, {first['versions']}, {first['date']}",
        ]
    )


def _row(repeats: list[dict[str, Any]]) -> str:
    first = repeats[0]
    trains = "LoRA" if first["training"] == "lora" else "all parameters"
    if first["gradient_checkpointing"]:
        trains += ", checkpointing"
    if first.get("rejected", 1) > 1:
        trains += f", {first['rejected']} rejected completions"

    def middle(name: str) -> float:
        return median(line[name] for line in repeats)

    sizes = [
        middle(name)
        for name in (
            "predicted_before_update_mib",
            "measured_before_update_mib",
            "predicted_total_with_baseline_mib",
            "measured_total_mib",
        )
    ]
    texts = [f"{size:,.1f}" for size in sizes]
    texts.insert(2, f"{middle('states_error'):+.1%}")
    texts.append(f"{middle('total_error'):+.1%}")
    texts.append(f"{middle('error_without_baseline'):+.1%}")
    cells = [first["shape"], first["stage"], trains, first["ranks"], first["dtype"], *texts]
    return "| " + " | ".join(map(str, cells)) + " |"
