"""Turns the rows of checks into the text that `cpo-ds doctor` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from cpo_ds.doctor.checks.findings import Finding, Row
from cpo_ds.doctor.hostfile import fold
from cpo_ds.ranks.console import escaped

_COLORS = {"ok": "32", "warn": "33", "fix": "31", "-": "2"}  # ANSI: green, yellow, red, dim
_CHECK_WIDTH = 14


def report(rows: Sequence[Row], width: int = 100, colored: bool = False) -> str:
    """Returns a line for each check, then all errors and all warnings, numbered."""
    # One line for each check; longer texts continue in the same column.
    lines = []
    for row in rows:
        state = f"{row.state:4}"
        if colored:
            state = f"\033[{_COLORS[row.state]}m{state}\033[0m"
        indent = " " * (6 + _CHECK_WIDTH + 1)
        seen = textwrap.wrap(escaped(row.seen) or "not known", max(width - len(indent), 40)) or [""]
        lines.append(f"{state}  {row.check:{_CHECK_WIDTH}} {seen[0]}")
        lines += [indent + more for more in seen[1:]]

    # Errors before warnings, with one numbering for both.
    findings = [finding for row in rows for finding in row.findings]
    errors = [finding for finding in findings if finding.is_error]
    warnings = [finding for finding in findings if not finding.is_error]
    lines += _numbered("To fix", errors, 1, width)
    lines += _numbered("Warnings", warnings, 1 + len(errors), width)
    return "\n".join(lines)


def _numbered(title: str, findings: Sequence[Finding], start: int, width: int) -> list[str]:
    """A list of findings below a title, numbered from `start`; no line if there is none."""
    if not findings:
        return []
    lines = ["", f"{title}:"]
    for number, finding in enumerate(findings, start=start):
        hosts = f"{fold(finding.hosts)}: " if finding.hosts else ""
        for text, mark in ((hosts + finding.problem, f"{number:2}. "), (finding.fix, "    -> ")):
            # People copy commands and paths from these lines, so none is broken at a hyphen.
            lines += textwrap.wrap(
                escaped(text),
                width,
                initial_indent=mark,
                subsequent_indent=" " * len(mark),
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines
