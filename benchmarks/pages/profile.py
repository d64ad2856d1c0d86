"""Lines of `profile_step.py` -> a page with each part's share of a step, and a chart."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from measures.step_profile import IDLE, PASSES
from measures.step_ranges import PARTS

from pages.charts import Bar, bars
from pages.text import (
    Line,
    good,
    image,
    model_on_device,
    settings_list,
    table,
    write_page,
)

SHOWN = (*PARTS, IDLE)


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its chart."""
    first, measured = lines[0], good(lines)
    parts = [f"# A step in parts: {model_on_device(first)}"]
    if measured:
        path = stem.with_name(f"{stem.name}_parts.png")
        draw_parts(measured[0], path)
        parts += [image(path)]
    parts += ["## Speed", speed_table(lines)]
    for line in measured:
        parts += [f"## {case(line)}: time by part", part_table(line)]
        parts += ["By pass: " + _passes(line), "The longest kernels or operations:", longest(line)]
    parts += ["## How it was measured", NOTES, settings_list(_settings(first), lines[-1])]
    write_page(stem, parts)


def case(line: Line) -> str:
    """A run's method, training, micro-batch and recomputation."""
    recomputed = line["gradient_checkpointing"]
    layers = {True: "all layers recomputed", False: "nothing recomputed"}.get(recomputed)
    tokens = f"{line['tokens_per_step']:.0f} tokens" if "tokens_per_step" in line else ""
    words = (line["training"], tokens, layers or f"{recomputed} layers recomputed")
    return ", ".join(word for word in words if word)


def speed_table(lines: list[Line]) -> str:
    """A row per run: speed, utilization, memory, launches."""
    heading = ("run", "ms a step", "tokens/s", "model TFLOP/s", "of the ceiling", "of the peak",
               "peak memory, GiB", "launches a step")  # fmt: skip
    rows: list[tuple[str, ...]] = [heading]
    for line in lines:
        if line.get("error"):
            rows.append((case(line), str(line["error"]), *[""] * 6))
            continue
        rows.append((
            case(line), f"{1000 * median(line['step_seconds']):.1f}",
            f"{line['tokens_per_second']:.0f}", f"{line['model_tflops']:.3g}",
            _percent(line["utilization"]), _percent(line.get("of_peak")),
            f"{line['peak_memory_gib']:.2f}", str(line["launches"]),
        ))  # fmt: skip
    return table(rows, text_columns=1)


def shares(line: Line) -> dict[str, float]:
    """Each part's share of the step, those without time left out."""
    seconds = line["parts_seconds"]
    whole = sum(seconds.values())
    return {part: seconds[part] / whole for part in SHOWN if seconds.get(part)}


def part_table(line: Line) -> str:
    """A row per part, the largest first."""
    rows = [("part", "ms", "share")]
    for part, share in sorted(shares(line).items(), key=lambda one: -one[1]):
        rows.append((part, f"{1000 * line['parts_seconds'][part]:.2f}", _percent(share)))
    return table(rows, text_columns=1)


def longest(line: Line) -> str:
    """The kernels that take longest, over all their launches."""
    rows = [("kernel", "ms")]
    rows += [(f"`{n}`", f"{1000 * s:.2f}") for n, s in line["longest_seconds"].items()]
    return table(rows, text_columns=1)


def draw_parts(line: Line, path: Path) -> None:
    """A bar per part."""
    rows = [
        Bar(part, {part: 1000 * line["parts_seconds"][part]}, _percent(share))
        for part, share in shares(line).items()
    ]
    bars(path, f"A step of {case(line)}: {model_on_device(line)}", rows, "ms", legend=None)


def _passes(line: Line) -> str:
    seconds = line["passes_seconds"]
    return ", ".join(f"{n} {1000 * seconds[n]:.1f} ms" for n in PASSES if seconds.get(n)) + "."


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _settings(line: Line) -> dict[str, str]:
    return {
        "pairs a step": str(line["pairs_per_step"]),
        "steps": f"{line['warmup_steps']} to warm up, {line['timed_steps'] - 1} on the clock, "
        "1 under the profiler",
        "DeepSpeed": line["deepspeed"],
        "LoRA": f"rank {line['lora_rank']}, {', '.join(line['lora_targets'])}",
        "threads": str(line["threads"]),
    }


NOTES = """\
Ranges around the model's modules tell the profiler which part an operation of the forward pass
belongs to; an operation of the backward pass belongs to the part that its forward operation does.
On a GPU the time of a part is that of its kernels, and what is left of the step without a profiler
is "launches and idle". On a CPU it is the operations' own time in the profiled step, and the rest
is Python. Matrix products count as such wherever they are, LoRA's among them, except those of
attention, the head and the optimizer. The ceiling is the speed of the model's matrix products
alone, measured in the same call; the peak is the vendor's."""
