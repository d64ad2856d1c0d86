"""Results -> pages and charts beside them, and the README's table.

    python benchmarks/render.py                                    # all of benchmarks/results
    python benchmarks/render.py benchmarks/results/memory_vs_dpo_tiny_cpu.jsonl

Reads `benchmark` in a file's first line and calls what renders that kind.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cpo_ds.errors import EXIT_USER_ERROR, UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Kind of benchmark -> module with `render(lines, stem)`; imported when it is needed.
RENDERERS = {
    "memory_vs_dpo": "memory_report",
    "ablations": "ablation_report",
    "scaling": "ablation_report",
    "head": "ablation_report",
    "planner": "planner_report",
    "scoring": "scoring_report",
    "link": "link_report",
    "ranks": "rank_report",
}
HEADLINE = RESULTS / "memory_vs_dpo_smollm2-135m_cpu.jsonl"  # the README's table is made of it
BEGIN, END = "<!-- results: written by benchmarks/render.py -->\n", "<!-- /results -->"


def main(argv: list[str]) -> int:
    """Renders the files given, or all results and the README's table; returns the exit code."""
    try:
        files = [Path(name) for name in argv] or known_results()
        for file in files:
            render_file(file)
            print(f"{file.with_suffix('.md')} written")
        readme = ROOT / "README.md"
        if not argv and HEADLINE.exists():
            text = with_table(readme.read_text(encoding="utf-8"), read_lines(HEADLINE))
            readme.write_text(text, encoding="utf-8")
    except UserError as error:
        print(f"render: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def known_results() -> list[Path]:
    """Files of `benchmarks/results` whose kind has a renderer here."""
    files = sorted(RESULTS.glob("*.jsonl"))
    return [f for f in files if (lines := read_lines(f)) and lines[0].get("benchmark") in RENDERERS]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """A file's lines. Raises `UserError` naming the line that is not JSON."""
    if not file.is_file():
        raise UserError(f"there is no file {file}.")
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number} is not JSON: {error}.") from None
    return lines


def render_file(file: Path) -> None:
    """Writes FILE's page and charts beside it. Raises `UserError` for an unknown kind."""
    lines = read_lines(file)
    kind = lines[0].get("benchmark") if lines else None
    if kind not in RENDERERS:
        raise UserError(
            f"{file}: its first line says benchmark: {kind}; known are {', '.join(RENDERERS)}."
        )
    render: Callable[[list[dict[str, Any]], Path], None]
    render = importlib.import_module(RENDERERS[kind]).render
    render(lines, file.with_suffix(""))


def with_table(readme: str, lines: list[dict[str, Any]]) -> str:
    """The README's text with the table of `lines` between its marks; `UserError` without marks."""
    from memory_report import headline

    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README.md has no {BEGIN.strip()} ... {END} to write the table between.")
    return before + BEGIN + headline(lines) + "\n" + END + after


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
