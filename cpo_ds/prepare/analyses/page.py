"""Renders the report as one HTML file: sections of text, charts and tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

_TEMPLATE = "page.html.jinja"
_MOST_FINDINGS = 6


@dataclass(frozen=True)
class Table:
    """A table: lines in named groups.

    The first column holds the name of the group; a line has a cell for each other column. Columns
    in `texts` hold text, the others numbers.
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """An SVG, with a text for people who cannot see it; `legend` names its colours."""

    svg: bytes
    text: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()  # (colour, name)

    @property
    def address(self) -> str:
        """The SVG as a data URL. As an image it runs no scripts, and its ids do not clash."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Section:
    """A section. `findings` are the sentences to read first; the terminal shows them, too."""

    anchor: str
    title: str
    findings: tuple[str, ...] = ()
    explanation: tuple[str, ...] = ()
    parts: tuple[Table | Chart, ...] = ()
    notes: tuple[str, ...] = ()


def render(title: str, sections: tuple[Section, ...]) -> str:
    """The page as HTML. Every text is escaped, since names of systems come from users."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(title=title, sections=sections)


def count(number: int, noun: str = "") -> str:
    """A number as text, like "17,471", or with a noun, like "17,471 rows"."""
    text = f"{number:,} {noun}".strip()
    return text + "s" if noun and number != 1 else text


def share(part: float, whole: float = 1) -> str:
    """A share as text, like "46.2%"; a dash if `whole` is 0 or `part` NaN."""
    return "–" if not whole or math.isnan(part) else f"{decimal(100 * part / whole, 1)}%"


def decimal(value: float, decimals: int, *, sign: bool = False) -> str:
    """A rounded number as text, with a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def decimals_for(deviation: float) -> int:
    """The decimals to print for scores: so many that their standard deviation has three digits."""
    if math.isnan(deviation) or deviation <= 0:
        return 3
    return min(6, max(1, 2 - math.floor(math.log10(deviation))))


def first_findings(findings: Sequence[str]) -> tuple[str, ...]:
    """The first six findings, and the number of further ones."""
    more = len(findings) - _MOST_FINDINGS
    return (
        *findings[:_MOST_FINDINGS],
        *([f"{count(more)} more in the tables."] if more > 0 else []),
    )


def join_names(items: Sequence[str]) -> str:
    """Names joined as in a sentence, like "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
