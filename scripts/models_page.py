"""Writes the tables of docs/models.md: the kinds of input from outside, each served or refused.

    python scripts/models_page.py [SECTION ...] [--check]

A section's table is made by running every case with tiny models (tests/support/doors). Without
names all sections are written. With --check the script writes nothing, and ends with exit code 1 if
the page is not current.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from cpo_ds.ranks.quiet import silence_after_import, silence_libraries

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
SUPPORT = ROOT / "tests" / "support"
SECTIONS = tuple(file.stem for file in sorted((SUPPORT / "doors").glob("*_table.py")))


def table(section: str) -> str:
    """Runs the cases of a section; returns its table in Markdown."""
    return importlib.import_module(f"doors.{section}").table().strip()


def written(section: str, page: str) -> str:
    """Returns the table of a section as the page has it. Raises `ValueError` if it has none."""
    begin, end = _limits(section, page)
    return page[begin:end].strip()


def with_table(section: str, new: str, page: str) -> str:
    """Returns the page with another table in a section."""
    begin, end = _limits(section, page)
    return f"{page[:begin]}\n{new}\n{page[end:]}"


def _limits(section: str, page: str) -> tuple[int, int]:
    """The places between the marks of a section."""
    begin = f"<!-- {section}: begin -->"
    return page.index(begin) + len(begin), page.index(f"<!-- {section}: end -->")


def main() -> int:
    """Writes or checks the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    silence_libraries()
    silence_after_import()
    page = PAGE.read_text(encoding="utf-8")
    changed = []
    for section in arguments.sections or SECTIONS:
        new = table(section)
        if new != written(section, page):
            changed.append(section)
            page = with_table(section, new, page)
    if changed and arguments.check:
        print(f"docs/models.md is not current: {', '.join(changed)}", file=sys.stderr)
        return 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(SUPPORT)]
    sys.exit(main())
