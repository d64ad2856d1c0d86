"""The README's table of results, from benchmarks/results: python benchmarks/readme_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from vs_trl_report import NAMES, TRAININGS, speedup

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "vs_trl_smollm2_cpu.jsonl"
BEGIN, END = "<!-- vs_trl: written by benchmarks/readme_table.py -->\n", "<!-- /vs_trl -->"


def table(results: list[dict[str, Any]]) -> str:
    """Pairs a second and peak memory of each trainer, this one's speed beside it; Markdown."""
    lines = [
        "| trainer | trains | pairs/s | ours is faster by | peak memory, GiB |",
        "|---|---|--:|--:|--:|",
    ]
    for training, trained in TRAININGS.items():
        of_training = [r for r in results if r["training"] == training]
        ours = [r for r in of_training if r["method"] == "cpo-ds"]
        for method, name in NAMES.items():
            runs = [r for r in of_training if r["method"] == method]
            factor = speedup(ours, runs).split(" ")[0]
            lines.append(
                f"| {name} | {trained} | {median(r['pairs_per_second'] for r in runs):.2f} "
                f"| {'' if factor == '-' else factor + ' times'} "
                f"| {median(r['peak_memory_gib'] for r in runs):.1f} |"
            )
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """The README's text with the table of the results on disk between its markers."""
    results = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table(results) + END + rest.split(END)[1]


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
