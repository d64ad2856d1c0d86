"""Inline codes of formatting as text, and the placeholders of a text.

A code that spells a tag or a placeholder, like `<b>` or `{name}`, stays as it is. Any other becomes
`<1>`, `</1>` or `<1/>`, with the same number in the source and in its translations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import regex

from cpo_ds.data.json_text import is_unicode
from cpo_ds.prepare.memory.xml_units import Element

Kind = Literal["open", "close", "alone"]

_SPELLED = 80  # characters; a longer code is hardly a tag that a translator sees
_TAG = regex.compile(r"</?([A-Za-z][\w:.-]*|\d+)(?:\s[^<>]*)?/?>")
_BRACES = regex.compile(r"\$?\{\{?\s*[\w.$#/-]*\s*(?:[!:][^{}]*)?\}?\}")
_MESSAGE = regex.compile(r"\{\s*([\w.-]+)\s*,\s*(plural|select|selectordinal)\b")
_ARGUMENT = regex.compile(r"\{\s*([\w.-]+)\s*,\s*(?:number|date|time)\b[^{}]*\}")
_PERCENT = regex.compile(
    r"%(?:\(([\w.-]+)\)[-+0#]*\d*(?:\.\d+)?[A-Za-z]"
    r"|(?:\d+\$)?[-+0#]*\d*(?:\.\d+)?(?:hh?|ll?|z)?[sdifuxXeEgGcr@](?![A-Za-z]))"
)


@dataclass(frozen=True)
class Code:
    """An inline code: where it stands to its text, what pairs it with others, and its own text."""

    kind: Kind
    key: str  # the same in source and translation, and of both ends of a pair
    text: str


Part = str | Code


def parts_of(segment: Element) -> list[Part]:
    """The text and the codes of a segment of TMX, XLIFF 1.2 or XLIFF 2.

    Elements that only mark text (`<hi>`, `<mrk>`, ...) leave their text, translatable text inside
    of a code (`<sub>`) is left out.
    """
    return list(_parts(segment, {}))


def _parts(element: Element, opened: dict[str, str]) -> list[Part]:
    """`opened` are the keys of opening codes by what closing ones name."""
    parts: list[Part] = []
    for part in element.parts:
        if isinstance(part, str):
            parts.append(part)
        elif part.name in ("g", "pc"):
            key, about = part.attributes.get("id", ""), part.attributes
            start = about.get("equiv-text") or about.get("dispStart") or about.get("equivStart", "")
            end = about.get("dispEnd") or about.get("equivEnd", "")
            parts.append(Code("open", key, start))
            parts += [*_parts(part, opened), Code("close", key, end)]
        elif part.name == "cp":
            parts.append(_character(part.attributes.get("hex", "")))
        elif part.name in _CODES:
            parts.append(_code(part, opened))
        elif part.name in _MARKS:
            parts += _parts(part, opened)
    return parts


_CODES: dict[str, Kind] = {
    **dict.fromkeys(("bpt", "bx", "sc"), "open"),
    **dict.fromkeys(("ept", "ex", "ec"), "close"),
    **dict.fromkeys(("ph", "x", "it", "ut"), "alone"),
}  # fmt: skip
_MARKS = ("hi", "mrk")


def _code(element: Element, opened: dict[str, str]) -> Code:
    about, kind = element.attributes, _CODES[element.name]
    own = about.get("equiv-text") or about.get("disp") or about.get("equiv", "")
    text = "".join(part for part in element.parts if isinstance(part, str)) or own
    # TMX pairs codes by `i` inside of a segment, and by `x` across languages.
    link = about.get("i") or about.get("rid") or about.get("startRef") or about.get("id", "")
    key = about.get("x") or link
    if kind == "open":
        opened[link] = key
    return Code(kind, opened.get(link, key) if kind == "close" else key, text)


def _character(code: str) -> str:
    """The character that XLIFF 2 writes as a number, which XML cannot hold; "" for none."""
    try:
        character = chr(int(code, 16))
    except (ValueError, OverflowError):
        return ""
    return character if is_unicode(character) else ""


class CodeWriter:
    """Writes the segments of one unit as text, the source first, with the same codes in each."""

    def __init__(self, *, keeps_tags: bool) -> None:
        self._keeps_tags = keeps_tags
        self._numbers: dict[str, int] = {}
        self._spelled: dict[tuple[Kind, str], str] = {}

    def write(self, parts: list[Part]) -> str:
        """The segment as text. White space with a line break is XML's layout, and one space."""
        count = 0
        texts = []
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            count += not part.key
            key = part.key or f"number {count}"  # without an id, codes pair by their order
            texts.append(self._write_code(Code(part.kind, key, part.text)))
        return regex.sub(r"\s*\n\s*", " ", "".join(texts)).strip()

    def _write_code(self, code: Code) -> str:
        text = code.text.strip()
        place = (code.kind, code.key)
        if len(text) <= _SPELLED and placeholders(text):
            self._spelled.setdefault(place, text)
        text = (
            text if placeholders(text) and len(text) <= _SPELLED else self._spelled.get(place, "")
        )
        if not self._keeps_tags:
            return "" if _TAG.fullmatch(text) else text
        if text:
            return text
        number = self._numbers.setdefault(code.key, len(self._numbers) + 1)
        return {"open": f"<{number}>", "close": f"</{number}>", "alone": f"<{number}/>"}[code.kind]


def placeholders(text: str) -> set[str]:
    """The placeholders and tags of a text, in a form that a good translation shares.

    `{name}`, `{{count}}`, `${x}`, `%s`, `%(name)s`, and tags by their names; `%1$s` and `%s` are
    the same. Of a message with plurals or choices, the name of what decides counts alone.
    """
    found = {f"<{match[1].lower()}>" for match in _TAG.finditer(text)}
    without_tags = _TAG.sub(" ", text)
    messages = {f"{{{match[1]}, {match[2]}}}" for match in _MESSAGE.finditer(without_tags)}
    if messages:
        return found | messages
    found |= {f"{{{match[1]}, ...}}" for match in _ARGUMENT.finditer(without_tags)}
    found |= {regex.sub(r"\s", "", match[0]) for match in _BRACES.finditer(without_tags)}
    return found | {regex.sub(r"\d+\$", "", m[0]) for m in _PERCENT.finditer(without_tags)}
