"""Renders results into pages and charts beside them, and the README's tables.

    python benchmarks/render.py                                    # all of benchmarks/results
    python benchmarks/render.py benchmarks/results/memory_vs_dpo_tiny_cpu.jsonl

The value of `benchmark` in a file's first line decides which module of pages/ renders it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pages import many_rejected, memory
from pages.results import RENDERERS, RESULTS, ROOT, read_lines, render_file
from pages.text import Line

from cpo_ds.errors import EXIT_USER_ERROR, UserError


class Headline(NamedTuple):
    """A table of the README: the results that it shows, and the function that writes it."""

    files: list[Path]
    table: Callable[[list[Line]], str]


HEADLINES = {
    "results": Headline(
        [
            RESULTS / f"memory_vs_dpo_smollm2-135m{precision}_cpu.jsonl"
            for precision in ("", "-bfloat16")
        ],
        memory.headline,
    ),
    "several rejected": Headline(
        [RESULTS / "many_rejected_smollm2-135m-bfloat16_cpu.jsonl"], many_rejected.headline
    ),
}


def main(argv: list[str]) -> int:
    """Renders the files given, or all results and the README's tables; returns the exit code."""
    try:
        files = [Path(name) for name in argv] or known_results()
        for file in files:
            render_file(file)
            print(f"{file.with_suffix('.md')} written")
        readme = ROOT / "README.md"
        if not argv:
            text = readme.read_text(encoding="utf-8")
            for name in HEADLINES:
                text = with_table(text, name)
            readme.write_text(text, encoding="utf-8")
    except UserError as error:
        print(f"render: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def known_results() -> list[Path]:
    """Files of `benchmarks/results` whose kind has a renderer here."""
    files = sorted(RESULTS.glob("*.jsonl"))
    return [f for f in files if (lines := read_lines(f)) and lines[0].get("benchmark") in RENDERERS]


def with_table(readme: str, name: str) -> str:
    """The README's text with the table of a name between its marks; `UserError` without marks."""
    begin, end = f"<!-- {name}: written by benchmarks/render.py -->\n", f"<!-- /{name} -->"
    before, begun, rest = readme.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise UserError(f"README.md has no {begin.strip()} ... {end} to write the table between.")
    files, table = HEADLINES[name]
    lines = [line for file in files for line in read_lines(file)]
    return before + begin + table(lines) + "\n" + end + after


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
