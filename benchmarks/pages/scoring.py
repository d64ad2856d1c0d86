"""Lines of `scoring.py` -> a page of tables."""

from __future__ import annotations

from pathlib import Path

from pages.text import Line, grouped, median_of, repeats, settings_list, spread, table, write_page

METHODS = {
    "comet-score": "comet-score (float16)",
    "predict": "COMET's predict (float32)",
    "1-rank": "cpo-ds, 1 rank",
    "2-ranks": "cpo-ds, 2 ranks",
    "2-ranks-split": "cpo-ds, 2 ranks, --shard",
}
KINDS = {
    "kiwi": "UnifiedMetric (KIWI), source and translation",
    "xcomet": "XCOMETMetric, source and translation, error spans",
    "comet": "RegressionMetric (COMET-22), with reference",
}


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results."""
    first = lines[0]
    title = f"# Scoring beside COMET: {first['model']}, {first['device']}"
    parts = [title, rate_table(lines), "## Memory", memory_table(lines), NOTES]
    settings = {
        "translations": f"{first['translations']}, of {first['data']}",
        "repeats": f"{repeats(lines)}, methods taking turns",
        "batches": f"cpo-ds: {first['batch_tokens']} tokens; COMET: 16 translations, its default",
        "freed memory": "returned at once" if first["memory_returned"] else "kept by the allocator",
        "threads": "one for each of two ranks, else all cores for one process",
    }
    parts += ["## How it was measured", settings_list(settings, lines[-1])]
    write_page(stem, parts)


def rate_table(lines: list[Line]) -> str:
    """Translations a second of each model and method, start-up included, and ratios."""
    groups = grouped(lines, "kind", "method")
    rows: list[tuple[str, ...]] = [
        ("model", "method", "translations/s", "times comet-score", "times predict")
    ]
    for kind in KINDS:
        for method, name in METHODS.items():
            runs = groups.get((kind, method))
            if runs:
                ratios = [
                    ratio(groups.get((kind, other), []), runs)
                    for other in ("comet-score", "predict")
                ]
                rates = [run["translations"] / run["seconds"] for run in runs]
                rows.append((KINDS[kind], name, spread(rates, ".1f"), *ratios))
    return table(rows, text_columns=2)


def ratio(slower: list[Line], runs: list[Line]) -> str:
    """The median over repeats of how much less time `runs` took; empty without runs to compare."""
    pairs = [
        (other["seconds"], run["seconds"])
        for other in slower
        for run in runs
        if other["repeat"] == run["repeat"]
    ]
    if not pairs or slower is runs:
        return ""
    return spread([a / b for a, b in pairs], ".2f")


def memory_table(lines: list[Line]) -> str:
    """The largest process of each method, in GiB."""
    rows: list[tuple[str, ...]] = [
        ("model", "method", "checkpoint", "own memory", "with mapped files")
    ]
    for (kind, method), runs in grouped(lines, "kind", "method").items():
        values = [median_of(runs, key) for key in ("checkpoint_gib", "own_gib", "resident_gib")]
        rows.append((KINDS[kind], METHODS[method], *(f"{value or 0:.2f}" for value in values)))
    return table(rows, text_columns=2)


NOTES = """\
Times are of whole commands: Python's start, libraries, loading, scoring. If two systems gave the
same text for a source, cpo-ds scores it once. Memory is of the largest process, in GiB. Python with
COMET, torch and DeepSpeed holds 0.3 GiB of its own before any model is loaded. On one rank the
weights are pages of the checkpoint's file, which processes of a host share and the system may drop.
Of a model that is split, each rank holds its share as its own memory."""
