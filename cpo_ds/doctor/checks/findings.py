"""The result of a check: one row of the table, with the problems that it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cpo_ds.doctor.hostfile import fold

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Finding:
    """A problem of some hosts (none: of all together) and its remedy."""

    hosts: tuple[str, ...]
    problem: str
    fix: str
    is_error: bool = True  # False: a run starts, but not well, or not always


@dataclass(frozen=True)
class Row:
    """One check: its name, a summary of the hosts' answers, and the problems in them."""

    check: str
    seen: str
    findings: tuple[Finding, ...] = ()
    is_tried: bool = True

    @property
    def state(self) -> str:
        """`fix` with an error, `warn` with warnings alone, else `ok`; `-` if it was skipped."""
        if not self.is_tried:
            return "-"
        if any(finding.is_error for finding in self.findings):
            return "fix"
        return "warn" if self.findings else "ok"


def by_value(values: Mapping[Key, Value]) -> dict[Value, tuple[Key, ...]]:
    """Groups hosts (or pairs of hosts) by their value, the most common value first.

    Of equally common values the one met first comes first.
    """
    counts = Counter(values.values())
    order = sorted(counts, key=lambda value: -counts[value])
    return {value: tuple(k for k, v in values.items() if v == value) for value in order}


def describe(values: Mapping[str, str]) -> str:
    """Names the value of all hosts, or each value with its hosts if they differ.

    `3.11.2`, or `3.11.2 on gpu[1-3]; 3.10.1 on gpu4`.
    """
    groups = by_value(values)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} on {fold(hosts)}" for value, hosts in groups.items())


def describe_range(values: Mapping[str, float], unit: str) -> str:
    """Names the least and the most of the hosts' values: `3 (gpu2) to 12 GiB`, or `12 GiB`."""
    if not values:
        return "unknown"
    least = min(values, key=lambda host: values[host])
    low, high = f"{values[least]:,.0f}", f"{max(values.values()):,.0f}"
    return f"{low} {unit}" if low == high else f"{low} ({least}) to {high} {unit}"


def first_few(items: Iterable[str], most: int = 3) -> str:
    """Joins the first `most` items by commas and counts the others: `a, b, c and 5 more`."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def differences(
    values: Mapping[str, str], name: str, fix: Callable[[str], str], is_error: bool = True
) -> list[Finding]:
    """Returns a finding for each value of `name` but the most common one.

    `fix` gets the most common value and returns the remedy.
    """
    groups = by_value(values)
    if len(groups) < 2:
        return []
    common, *others = groups
    return [
        Finding(
            groups[other],
            f"{name} {other} instead of {common} as on {fold(groups[common])}",
            fix(common),
            is_error,
        )
        for other in others
    ]
