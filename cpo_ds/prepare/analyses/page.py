"""The report's page: sections of text, charts and tables, as one HTML file that needs no other."""

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
    """Lines in named groups; a line has a cell for each column after the first, the group's.

    Columns in `texts` hold text, the others numbers.
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """An SVG with a text for those who cannot see it; `legend` names colours."""

    svg: bytes
    text: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()  # (colour, name)

    @property
    def address(self) -> str:
        """A data URL. As an image, an SVG has its ids to itself and runs no script."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Section:
    """A section; `findings` are the sentences to read first, and what the terminal shows."""

    anchor: str
    title: str
    findings: tuple[str, ...] = ()
    explanation: tuple[str, ...] = ()
    parts: tuple[Table | Chart, ...] = ()
    notes: tuple[str, ...] = ()


def render(title: str, sections: tuple[Section, ...]) -> str:
    """The page. Every text is escaped: names of systems and languages come from users."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(title=title, sections=sections)


def count(number: int, noun: str = "") -> str:
    """Like "17,471", or "17,471 rows"."""
    text = f"{number:,} {noun}".strip()
    return text + "s" if noun and number != 1 else text


def share(part: float, whole: float = 1) -> str:
    """Like "46.2%"; a dash of nothing."""
    return "–" if not whole or math.isnan(part) else f"{decimal(100 * part / whole, 1)}%"


def decimal(value: float, places: int, *, sign: bool = False) -> str:
    """Rounded, with a true minus; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", "−")


def places_for(deviation: float) -> int:
    """Decimals that scores with this standard deviation deserve: two digits of it, and one more."""
    if math.isnan(deviation) or deviation <= 0:
        return 3
    return min(6, max(1, 2 - math.floor(math.log10(deviation))))


def first_few(findings: Sequence[str]) -> tuple[str, ...]:
    """The first six, and how many more there are."""
    more = len(findings) - _MOST_FINDINGS
    return (
        *findings[:_MOST_FINDINGS],
        *([f"{count(more)} more in the tables."] if more > 0 else []),
    )


def names(items: Sequence[str]) -> str:
    """Like "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
