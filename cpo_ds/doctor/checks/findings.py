"""What a check says: one row of the table, and what has to be put right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cpo_ds.doctor.hostfile import fold

Value = TypeVar("Value")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with some hosts, and what to do about it."""

    hosts: tuple[str, ...]
    what: str
    fix: str
    is_error: bool = True  # False: a run goes, but not well, or not always


@dataclass(frozen=True)
class Row:
    """A check: what was seen, and what is wrong with it."""

    check: str
    seen: str
    findings: tuple[Finding, ...] = ()
    is_tried: bool = True

    @property
    def state(self) -> str:
        """`ok`, `warn` or `fix`; `-` where it was not looked at."""
        if not self.is_tried:
            return "-"
        if any(finding.is_error for finding in self.findings):
            return "fix"
        return "warn" if self.findings else "ok"


def by_value(values: Mapping[str, Value]) -> dict[Value, tuple[str, ...]]:
    """The hosts of each value; the most common value first, of equals the one met first."""
    counts = Counter(values.values())
    order = sorted(counts, key=lambda value: -counts[value])
    return {value: tuple(h for h, v in values.items() if v == value) for value in order}


def together(values: Mapping[str, str]) -> str:
    """`3.11.2`, or where hosts differ `3.11.2 on gpu[1-3]; 3.10.1 on gpu4`."""
    groups = by_value(values)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} on {fold(hosts)}" for value, hosts in groups.items())


def spread(values: Mapping[str, float], unit: str) -> str:
    """`12 GiB`, or the least and the most with the host of the least."""
    if not values:
        return "unknown"
    least = min(values, key=lambda host: values[host])
    low, high = f"{values[least]:,.0f}", f"{max(values.values()):,.0f}"
    return f"{low} {unit}" if low == high else f"{low} ({least}) to {high} {unit}"


def names(items: Iterable[str], most: int = 3) -> str:
    """The first few, and how many more."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def differences(
    values: Mapping[str, str], what: str, fix: Callable[[str], str], is_error: bool = True
) -> list[Finding]:
    """A finding for each value but the most common one; `fix` gets that one."""
    groups = by_value(values)
    if len(groups) < 2:
        return []
    common, *others = groups
    return [
        Finding(
            groups[other],
            f"{what} {other} instead of {common} as on {fold(groups[common])}",
            fix(common),
            is_error,
        )
        for other in others
    ]
