"""Lines of `head_memory.py` -> a page of tables, and a chart."""

from __future__ import annotations

from pathlib import Path

from pages.charts import Panel, draw_panels
from pages.text import (
    Line,
    good,
    grouped,
    image,
    median_of,
    repeats,
    settings_list,
    table,
    write_page,
)

HEADS = {
    ("plain", True): "plain, trained",
    ("plain", False): "plain, frozen",
    ("liger", True): "Liger, trained",
    ("liger", False): "Liger, frozen",
    ("chunked", True): "this project's, trained",
    ("chunked", False): "this project's, frozen",
}
_HEAD_COLOURS = {"plain": "#D55E00", "liger": "#009E73", "chunked": "#0072B2"}


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its charts."""
    first = lines[0]
    title = f"hidden size {first['hidden_size']}, {first['dtype']}, {first['device']}"
    parts = [f"# Memory of the head and the loss: {title}"]
    if good(lines):
        path = stem.with_name(f"{stem.name}_memory.png")
        draw_head(good(lines), path, f"Extra memory of head and loss: {title}")
        parts.append(image(path))
    parts += ["## Extra memory, MiB", head_table(lines, "extra_gib", 1024.0)]
    parts += ["## Time of a forward and backward pass, ms", head_table(lines, "milliseconds", 1.0)]
    settings = {
        "passes": f"{first['passes']} timed, one for memory, {repeats(lines)} repeats",
        "largest difference of losses": _loss_difference(lines),
        "threads": str(first["threads"]),
    }
    notes = NOTES.format(
        chunk=first["chunk_tokens"], length=first["completion_tokens"], sizes=_sizes(first)
    )
    parts += ["## How it was measured", notes, settings_list(settings, lines[-1])]
    write_page(stem, parts)


def head_table(lines: list[Line], column: str, scale: float) -> str:
    """A row per vocabulary and number of tokens, a column per head."""
    groups = grouped(lines, "vocabulary", "tokens", "head", "trained")
    heads = [key for key in HEADS if any(group[2:] == key for group in groups)]
    rows = [("vocabulary", "scored tokens", "logits, MiB", *(HEADS[key] for key in heads))]
    for vocabulary, tokens in dict.fromkeys(group[:2] for group in groups):
        cells = []
        for key in heads:
            runs = groups.get((vocabulary, tokens, *key), [])
            value = median_of(runs, column)
            cells.append(
                runs[0].get("error", "") if value is None and runs else _number(value, scale)
            )
        logits = f"{4 * vocabulary * tokens / 2**20:.0f}"
        rows.append((str(vocabulary), str(tokens), logits, *cells))
    return table(rows, text_columns=0)


def draw_head(lines: list[Line], path: Path, title: str) -> None:
    """A panel per vocabulary."""
    panels = []
    for (vocabulary,), of_vocabulary in grouped(lines, "vocabulary").items():
        series: dict[str, list[tuple[float, float]]] = {name: [] for name in HEADS.values()}
        for (head, trained, tokens), runs in grouped(
            of_vocabulary, "head", "trained", "tokens"
        ).items():
            value = 1024 * (median_of(runs, "extra_gib") or 0.0)
            series[HEADS[head, trained]].append((tokens, value))
        shown = {name: points for name, points in series.items() if points}
        panels.append(
            Panel(
                "scored tokens", "extra memory, MiB", shown, f"vocabulary {vocabulary}", log_y=True
            )
        )
    colours = {name: _HEAD_COLOURS[head] for (head, _), name in HEADS.items()}
    dashed = [name for (_, trained), name in HEADS.items() if not trained]
    draw_panels(path, title, panels, colours, columns=len(panels), dashed=dashed)


def _loss_difference(lines: list[Line]) -> str:
    """The largest difference of the loss between heads on the same inputs."""
    same = grouped(good(lines), "vocabulary", "tokens").values()
    spans = [max(r["loss"] for r in runs) - min(r["loss"] for r in runs) for runs in same]
    return f"{max(spans):.1e}" if spans else "nothing was measured"


def _number(value: float | None, scale: float) -> str:
    return "" if value is None else f"{value * scale:.0f}"


def _sizes(line: Line) -> str:
    size = {"float32": 4, "bfloat16": 2}[line["dtype"]] * line["hidden_size"]
    return f"{size * 1024 / 2**20:.1f} MiB for 1024 tokens"


NOTES = """\
The pass is CPO's loss and its gradient, from given hidden states [tokens, hidden size]. All
completions have {length} tokens. Extra memory is the most memory in use, less the memory in use
before the pass, less the gradients that the pass leaves behind: the hidden states' ({sizes}) and,
of a trained head, the weight's. Plain: all logits at once, log_softmax, autograd. This project's:
chunks of {chunk} tokens. Liger: LigerFusedLinearCPOLoss, not compiled, a pair at a time. Logits:
one matrix of all of them in float32, for scale. Time is measured first, in the same process. On a
CPU it includes getting memory from the system and giving it back."""
