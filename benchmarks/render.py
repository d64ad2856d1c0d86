"""Renders results into pages and charts beside them, and the README's table.

    python benchmarks/render.py                                    # all of benchmarks/results
    python benchmarks/render.py benchmarks/results/memory_vs_dpo_tiny_cpu.jsonl

The value of `benchmark` in a file's first line decides which module of pages/ renders it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pages.memory import headline
from pages.results import RENDERERS, RESULTS, ROOT, read_lines, render_file
from pages.text import Line

from cpo_ds.errors import EXIT_USER_ERROR, UserError

# The README's table is made of these, a precision each.
HEADLINES = [
    RESULTS / f"memory_vs_dpo_smollm2-135m{precision}_cpu.jsonl" for precision in ("", "-bfloat16")
]
BEGIN, END = "<!-- results: written by benchmarks/render.py -->\n", "<!-- /results -->"


def main(argv: list[str]) -> int:
    """Renders the files given, or all results and the README's table; returns the exit code."""
    try:
        files = [Path(name) for name in argv] or known_results()
        for file in files:
            render_file(file)
            print(f"{file.with_suffix('.md')} written")
        readme = ROOT / "README.md"
        lines = [line for file in HEADLINES if file.exists() for line in read_lines(file)]
        if not argv and lines:
            text = with_table(readme.read_text(encoding="utf-8"), lines)
            readme.write_text(text, encoding="utf-8")
    except UserError as error:
        print(f"render: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def known_results() -> list[Path]:
    """Files of `benchmarks/results` whose kind has a renderer here."""
    files = sorted(RESULTS.glob("*.jsonl"))
    return [f for f in files if (lines := read_lines(f)) and lines[0].get("benchmark") in RENDERERS]


def with_table(readme: str, lines: list[Line]) -> str:
    """The README's text with the table of `lines` between its marks; `UserError` without marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README.md has no {BEGIN.strip()} ... {END} to write the table between.")
    return before + BEGIN + headline(lines) + "\n" + END + after


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
