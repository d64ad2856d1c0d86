"""Reads XML files of translations one unit at a time, with the line of each element."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from cpo_ds.data.safe_xml import chunks, safe_parser
from cpo_ds.errors import UserError


@dataclass
class Element:
    """An element of XML: its texts and elements in order. Names are without a prefix."""

    name: str
    attributes: dict[str, str]
    line: int  # of the file, from 1
    parts: list[str | Element] = field(default_factory=list)

    def all(self, name: str) -> list[Element]:
        """The elements of that name directly inside."""
        return [part for part in self.parts if isinstance(part, Element) and part.name == name]

    def first(self, name: str) -> Element | None:
        """The first element of that name directly inside; None if there is none."""
        return next(iter(self.all(name)), None)

    def text(self) -> str:
        """All text inside, that of inner elements too."""
        return "".join(part if isinstance(part, str) else part.text() for part in self.parts)


@dataclass(frozen=True)
class XmlUnit:
    """A unit, and the attributes of the elements around it by their names."""

    element: Element
    around: dict[str, dict[str, str]]


def xml_units(path: Path, label: str, root: str, names: Collection[str]) -> Iterator[XmlUnit]:
    """Yields each element whose name is in `names`, packed by gzip or not, in any encoding.

    Raises `UserError`, with the line, for malformed XML, for another root, and for XML entities.
    """
    parser = _Parser(label, root, names)
    try:
        for chunk, is_last in chunks(path, label):
            yield from parser.parse(chunk, is_last=is_last)
    except OSError as error:
        raise UserError(f"{label} cannot be read ({error.strerror}); check the file.") from None


class _Parser:
    """Collects units while expat reads the file."""

    def __init__(self, label: str, root: str, names: Collection[str]) -> None:
        self._label, self._root, self._names = label, root, names
        self._around: list[tuple[str, dict[str, str]]] = []  # elements outside of units
        self._open: list[Element] = []  # elements inside of a unit, the unit first
        self._units: list[XmlUnit] = []
        self._expat = safe_parser(label, self._start, self._end, self._add)

    def parse(self, chunk: bytes, *, is_last: bool) -> list[XmlUnit]:
        """Reads on; returns the units that ended. Raises `UserError`."""
        try:
            self._expat.Parse(chunk, is_last)
        except expat.ExpatError as error:
            raise UserError(
                f"{self._label}, line {error.lineno}: not valid XML "
                f"({expat.ErrorString(error.code)}, column {error.offset + 1}); correct the line, "
                "or export the file again."
            ) from None
        except (LookupError, ValueError) as error:  # an encoding that Python does not know
            raise UserError(
                f"{self._label} cannot be decoded ({error}); save it as UTF-8."
            ) from None
        units, self._units = self._units, []
        return units

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        if not self._around and not self._open and name != self._root:
            raise UserError(
                f"{self._label} is XML, but its root is <{name}> and not <{self._root}>; name the "
                "file after its content, .tmx or .xliff."
            )
        if self._open or name in self._names:
            element = Element(name, attributes, self._expat.CurrentLineNumber)
            if self._open:
                self._open[-1].parts.append(element)
            self._open.append(element)
        else:
            self._around.append((name, attributes))

    def _add(self, text: str) -> None:
        if self._open:
            self._open[-1].parts.append(text)

    def _end(self, _: str) -> None:
        if not self._open:
            self._around.pop()
            return
        element = self._open.pop()
        if not self._open:
            self._units.append(XmlUnit(element, dict(self._around)))
