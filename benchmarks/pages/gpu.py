"""Notes of `gpu.py` and the results beside them -> a page: measured, on paper, published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from models.paper_model import estimate, read_budgets, sizes_of

from cpo_ds.devices import Device, find_device
from pages.memory import headline, limit_table
from pages.memory_lines import measured as has_speed
from pages.profile import SHOWN, shares
from pages.results import read_lines
from pages.text import Line, settings_list, table, write_page

NOT_MEASURED = "not measured"
DONE, NEVER_RAN = "done", ("not run", "skipped")  # outcomes
# Results of profile_step.py -> the cases of the paper model that they measure.
PROFILES = {
    "profile_llama-2-7b-lora": ("llama-2-7b, lora", "llama-2-7b, lora, recomputing"),
    "profile_llama-2-13b-lora": ("llama-2-13b, lora", "llama-2-13b, lora, recomputing"),
    "profile_llama-2-7b-full": ("llama-2-7b, full, recomputing",),
}
BESIDE = {
    "memory_vs_dpo_llama-2-7b-lora": "CPO beside DPO",
    "memory_vs_dpo_llama-2-7b-lora-trl": "CPO beside TRL",
}
LIMITS = "limits_llama-2-7b-lora"
PLANNER = "planner_small"
# Each with its source: others' figures for supervised training, in which all tokens count once.
PUBLISHED = (
    ("setting", "tokens/s a GPU", "TFLOP/s", "of an H100's 989", "source"),
    ("Llama-3-8B, LoRA, one H100, sequences of 4,096", "12,473", "402", "41%",
     "NVIDIA NeMo AutoModel, performance summary"),
    ("Qwen2.5-7B, LoRA, one H100, sequences of 4,096", "14,110", "423", "43%",
     "NVIDIA NeMo AutoModel, performance summary"),
    ("Llama-3.1-8B, all parameters, 8 H100, FSDP", "5,762", "", "33%",
     "torchtitan, benchmarks/llama3_h100_202412"),
    ("Llama-3.1-8B, all parameters, 8 H100, FSDP, compiled", "6,667", "", "39%",
     "torchtitan, benchmarks/llama3_h100_202412"),
)  # fmt: skip


def render(lines: list[Line], stem: Path) -> None:
    """Writes STEM.md from the notes and from the results in the same folder."""
    device = stem.name.removeprefix("gpu_")
    beside = {line["writes"]: _read(stem.parent / f"{line['writes']}_{device}.jsonl")
              for line in lines if line["writes"] and line["outcome"] not in NEVER_RAN}  # fmt: skip
    write_page(stem, page(lines, beside, device))


def _read(file: Path) -> list[Line]:
    return read_lines(file) if file.exists() else []


def page(notes: list[Line], results: dict[str, list[Line]], device: str) -> list[str]:
    """The parts of the page. `results` are the lines that each part wrote."""
    profiles = {case: line for stem in PROFILES for line in results.get(stem, ())
                if (case := budget_of(line))}  # fmt: skip
    known = find_device(device, _memory_gib(device))
    parts = [f"# {device}: measured, on paper, published", "## Speed",
             speed_table(profiles, known), SPEED_NOTE, "## Memory of these steps",
             memory_table(profiles)]  # fmt: skip
    if rows := share_table(profiles):
        parts += ["## Share of each part", rows]
    for stem, title in BESIDE.items():
        lines = results.get(stem, [])
        shown = headline(lines) if any(has_speed([line]) for line in lines) else NOT_MEASURED
        parts += [f"## {title}: Llama-2-7B's shape, LoRA", shown]
    limits = [line for line in results.get(LIMITS, ()) if "largest_micro_batch_pairs" in line]
    parts += ["## Largest micro-batches", limit_table(limits) if limits else NOT_MEASURED]
    parts += ["## The planner on small models", planner_errors(results.get(PLANNER, []))]
    parts += ["## Published", PUBLISHED_NOTE, table(PUBLISHED, text_columns=1)]
    parts += ["## What ran", notes_table(notes)]
    last = next((lines[-1] for lines in results.values() if lines), None)
    return [*parts, settings_list({}, last)] if last else parts


def budget_of(line: Line) -> str | None:
    """The paper model's name of a profiled case; None if it has none."""
    recomputing = {False: "", True: ", recomputing"}.get(line["gradient_checkpointing"])
    return None if recomputing is None else f"{line['model']}, {line['training']}{recomputing}"


def cases() -> list[str]:
    """All cases that the page has a row for."""
    return [case for named in PROFILES.values() for case in named]


def speed_table(profiles: dict[str, Line], device: Device | None) -> str:
    """A row per case: measured, and what the paper model says for this device."""
    rows: list[tuple[str, ...]] = [
        ("case", "tokens a step", "tokens/s", "on paper", "TFLOP/s", "of the ceiling",
         "of the peak", "on paper"),
    ]  # fmt: skip
    contents = read_budgets()
    for case in cases():
        paper = _on_paper(contents, case, device)
        line = profiles.get(case, {"error": NOT_MEASURED})
        if line.get("error"):
            rows.append((case, "", str(line["error"]), paper[0], "", "", "", paper[1]))
            continue
        rows.append((
            case, f"{line['tokens_per_step']:,}", f"{line['tokens_per_second']:,.0f}", paper[0],
            f"{line['model_tflops']:.4g}", _percent(line["utilization"]),
            _percent(line["of_peak"]), paper[1],
        ))  # fmt: skip
    return table(rows, text_columns=1)


def _on_paper(contents: dict[str, Any], case: str, device: Device | None) -> tuple[str, str]:
    """Tokens a second and the share of the peak; empty for a device that is not known."""
    if device is None or case not in contents["budgets"]:
        return "", ""
    budget = contents["budgets"][case]
    prefix, chosen, rejected = contents["pair"]
    time = estimate(budget, sizes_of(budget, (prefix, chosen, rejected)), device)
    return f"{time.tokens_per_second:,.0f}", f"{time.share_of_peak:.1%}"


def memory_table(profiles: dict[str, Line]) -> str:
    """A row per case: the peak that torch allocated beside the planner's estimate."""
    rows: list[tuple[str, ...]] = [("case", "peak, GiB", "planned, GiB", "error of the plan")]
    for case in cases():
        line = profiles.get(case, {"error": NOT_MEASURED})
        if line.get("error"):
            rows.append((case, str(line["error"]), "", ""))
            continue
        peak, planned = line["peak_memory_gib"], line["planned_gib"]
        rows.append((case, f"{peak:.2f}", f"{planned:.2f}", f"{planned / peak - 1:+.1%}"))
    return table(rows, text_columns=1)


def share_table(profiles: dict[str, Line]) -> str:
    """A row per part of a step, a column per measured case; empty without any."""
    columns = {case: shares(line) for case, line in profiles.items() if not line.get("error")}
    rows = [("part", *columns)]
    for part in SHOWN:
        if any(part in column for column in columns.values()):
            rows.append((part, *(_percent(column.get(part)) for column in columns.values())))
    return table(rows, text_columns=1) if columns else ""


def planner_errors(lines: list[Line]) -> str:
    """The largest errors over the cases of planner_check.py."""
    if not lines:
        return NOT_MEASURED
    names = {"states_error": "states", "total_error": "total"}
    largest = {text: max((line[name] for line in lines), key=abs) for name, text in names.items()}
    errors = ", ".join(f"{text} {error:+.1%}" for text, error in largest.items())
    return f"Largest errors over {len(lines)} cases: {errors}."


def notes_table(notes: list[Line]) -> str:
    """A row per part: how it ended, and when."""
    rows: list[tuple[str, ...]] = [("part", "what", "outcome", "date", "minutes")]
    for note in notes:
        outcome = f"{note['outcome']}: {note['why']}" if note.get("why") else note["outcome"]
        if note["outcome"] == DONE and not note["writes"]:
            outcome = f"{outcome}: {note['last'].strip('= ')}"
        taken = f"{note['seconds'] / 60:.1f}" if "seconds" in note else ""
        rows.append((f"`{note['part']}`", note["about"], outcome, note.get("date", ""), taken))
    return table([tuple(cell.replace("|", "/") for cell in row) for row in rows], text_columns=4)


def _memory_gib(device: str) -> float:
    """The memory in a device's name, to tell two apart that differ in it; 0 if it is not said."""
    said = re.search(r"(\d+)gb", device)
    return float(said[1]) if said else 0.0


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


SPEED_NOTE = """\
The ceiling is the speed of the model's matrix products alone, measured in the same call; the peak
is the vendor's. "On paper" is what `tests/fakecuda/budgets.json` comes to by
`benchmarks/paper_model.py`, for pairs of like lengths; no GPU took part in it."""
PUBLISHED_NOTE = """\
By others, on their machines, for supervised training. No published figure for training on pairs
of these sizes is known. LoRA is counted as 4 operations for each weight and token, as here."""
