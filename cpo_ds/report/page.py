"""Renders a report as one HTML file: sections of text, charts, tables and examples."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jinja2
from markupsafe import Markup

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
    is_folded: bool = False  # until the reader unfolds it
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """An SVG, with a text for people who cannot see it; `legend` names its colours."""

    svg: bytes
    text: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()  # (colour, name)
    kind: ClassVar[str] = "chart"

    @property
    def address(self) -> str:
        """The SVG as a data URL. As an image it runs no scripts, and its ids do not clash."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Drawing:
    """An SVG inside the page, whose colours follow the reader's light or dark theme."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Drawings:
    """Drawings side by side, as many as the window is wide; `legend` names their colours.

    A colour is the number of one of the page's.
    """

    drawings: tuple[Drawing, ...]
    caption: str = ""
    legend: tuple[tuple[int, str], ...] = ()
    kind: ClassVar[str] = "drawings"


@dataclass(frozen=True)
class Tiles:
    """Numbers to read first: what it is, the number, and a remark."""

    tiles: tuple[tuple[str, str, str], ...]
    caption: str = ""
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Card:
    """Texts that belong together, like a source and its translations, each with its label."""

    title: str
    remark: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cards:
    """Cards under a caption."""

    caption: str
    cards: tuple[Card, ...]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Fold:
    """A long text that the reader may unfold."""

    title: str
    text: str
    kind: ClassVar[str] = "fold"


Part = Table | Chart | Drawings | Tiles | Cards | Fold


@dataclass(frozen=True)
class Section:
    """A section. `findings` are the sentences to read first; the terminal shows them, too."""

    anchor: str
    title: str
    findings: tuple[str, ...] = ()
    explanation: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()


def render(title: str, sections: tuple[Section, ...], *, hovers: bool = False) -> str:
    """The page as HTML. Every text is escaped, since texts and names come from users.

    With `hovers`, a small script shows the values of line charts under the pointer.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(_TEMPLATE)
    return template.render(title=title, sections=sections, hovers=hovers)


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
