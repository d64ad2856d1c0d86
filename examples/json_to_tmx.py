"""Writes a translation memory (TMX) from the JSON files with which programs are translated.

    python json_to_tmx.py FOLDER en de memory.tmx

Below FOLDER, each `en.json` beside a `de.json` is a pair of files: objects of texts by keys, which
may be nested. Texts with the same key are a segment. Texts of several lines are left out, as
translators' tools would split them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields each text of nested objects with its keys, joined by dots."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, f"{key}.{name}" if key else name)


def segments(folder: Path, source: str, target: str) -> Iterator[tuple[str, str, str]]:
    """Yields a name, the source and the target of each text that both files of a pair have."""
    for path in sorted(folder.rglob(f"{source}.json")):
        other = path.with_name(f"{target}.json")
        if other.exists():
            targets = dict(texts(json.loads(other.read_text(encoding="utf-8"))))
            for key, text in texts(json.loads(path.read_text(encoding="utf-8"))):
                if key in targets and len(f"{text}{targets[key]}".splitlines()) < 2:
                    yield f"{path.relative_to(folder).as_posix()}:{key}", text, targets[key]


def main(folder: str, source: str, target: str, output: str) -> None:
    """Writes the memory and prints the number of its segments."""
    root = Element("tmx", version="1.4")
    about = {"srclang": source, "segtype": "block", "adminlang": "en", "datatype": "plaintext"}
    tool = {"creationtool": "json_to_tmx", "creationtoolversion": "1", "o-tmf": "json"}
    SubElement(root, "header", about | tool)
    body = SubElement(root, "body")
    for name, *both in segments(Path(folder), source, target):
        unit = SubElement(body, "tu", tuid=name)
        for language, text in zip((source, target), both, strict=True):
            SubElement(SubElement(unit, "tuv", {LANGUAGE: language}), "seg").text = text
    indent(root)
    ElementTree(root).write(output, encoding="utf-8", xml_declaration=True)
    print(f"{len(body)} segments written to {output}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
    main(*sys.argv[1:])
