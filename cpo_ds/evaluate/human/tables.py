"""The tally as text for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = list[tuple[str, ...]]

_HEAD = ("direction", "system", "items", "score", "rank", "win ratio", "minor", "major")
_PAIRS = ("direction", "first", "second", "difference", "wins", "ties", "losses")
_AGREEMENT = ("direction", "items judged twice", "Krippendorff's alpha", "equal preferences")


def sections(tally: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Titles and tables, each with its head as the first row."""
    results: Rows = [_HEAD]
    for one in tally["results"]:
        numbers = (
            _with_interval(one["score"], 1),
            _with_interval(one["rank"], 2),
            _with_interval(one["win_ratio"], 1, times=100, unit="%"),
            f"{one['minor']['mean']:.2f}",
            f"{one['major']['mean']:.2f}",
        )
        results.append((one["direction"], one["system"], str(one["items"]), *numbers))
    pairs: Rows = [_PAIRS]
    for one in tally["comparisons"]:
        difference = _with_interval(one["difference"], 1, sign=True)
        counts = (str(one[name]) for name in ("wins", "ties", "losses"))
        pairs.append((one["direction"], *one["systems"], difference, *counts))
    agreement: Rows = [_AGREEMENT]
    for one in tally["agreement"]:
        alpha, equal = one["krippendorff_alpha"], one["equal_preferences"]
        agreement.append(
            (
                one["direction"],
                str(one["items"]),
                "–" if alpha is None else f"{alpha:.3f}",
                "–" if equal is None else f"{equal:.1%}",
            )
        )
    return [
        ("Scores from 0 to 100, ranks, wins with ties for both, errors of a translation", results),
        ("The first system against the second", pairs),
        ("Agreement between annotators", agreement),
    ]


def notes(tally: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on, in sentences."""
    bootstrap, annotators = tally["bootstrap"], tally["items_of_annotators"]
    counts = ", ".join(f"{name}: {count}" for name, count in annotators.items())
    partial = [f"Not tallied: {text}." for text in tally.get("missing", [])]
    return [
        f"{tally['items']} items of the sample {tally['sample']}. Items of annotators: {counts}.",
        f"In brackets: {tally['confidence']:.0%} confidence intervals by a bootstrap over items "
        f"({bootstrap['samples']} samples, seed {bootstrap['seed']}).",
        *partial,
    ]


def as_text(tally: Mapping[str, Any]) -> str:
    """The tables in columns, for the terminal."""
    blocks = [
        "\n".join([f"{title}:", *(f"  {line}" for line in _columns(rows))])
        for title, rows in sections(tally)
    ]
    return "\n\n".join([*blocks, "\n".join(notes(tally))])


def as_markdown(tally: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    blocks = [f"**{title}**\n\n{_markdown(rows)}" for title, rows in sections(tally)]
    return "\n\n".join([*blocks, "\n".join(notes(tally))]) + "\n"


def _with_interval(
    value: Mapping[str, float],
    decimals: int,
    *,
    times: float = 1,
    unit: str = "",
    sign: bool = False,
) -> str:
    """Like "71.3 [69.8, 72.6]", with true minus signs."""
    form = f"{'+' if sign else ''}.{decimals}f"
    mean, low, high = (f"{times * value[name]:{form}}" for name in ("mean", "low", "high"))
    return f"{mean}{unit} [{low}, {high}]".replace("-", "−")


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
