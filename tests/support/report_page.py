"""Pages of `cpo-ds prepare report`, parsed and checked."""

from __future__ import annotations

import base64
import random
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from preference_data import write

from cpo_ds import cli

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Parses a page and checks that every tag is closed; keeps text, tables, images and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.lines: list[list[str]] = []  # of tables
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] += 1
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [value for name in ("href", "src") if (value := values.get(name))]
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            self.images.append(values)
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.lines[-1][-1] += data

    def line(self, *start: str) -> list[str]:
        """The only table line that starts with these cells."""
        matching = [line for line in self.lines if line[: len(start)] == list(start)]
        assert len(matching) == 1, (start, matching)
        return matching[0]


def row(direction: str, names: list[str], metrics: list[str], seed: int, **values: Any) -> Any:
    """A row with a reference and scores that depend on the seed."""
    draw = random.Random(seed)
    scores = {
        metric: {name: draw.randrange(64, 128) / 128 for name in ("reference", *names)}
        for metric in metrics
    }
    return {
        "language_pair": direction,
        "source": f"source {seed}",
        "reference": f"reference {seed}",
        "candidates": {name: f"{name} {seed}" for name in names},
        "scores": scores,
        "scorers": {
            metric: {"model": f"Unbabel/{metric}", "dtype": "bfloat16", "uses_reference": False}
            for metric in metrics
        },
    } | values


def rows(count: int, *metrics: str, names: list[str] | None = None) -> list[Any]:
    directions = ("en-de", "zh-en")
    names = names or ["a", "b", "c"]
    return [
        row(directions[i % 2], names, list(metrics or ("kiwi", "xcomet")), i) for i in range(count)
    ]


def report(folder: Path, lines: list[Any], *options: str) -> Page:
    path = write(folder / "scored.jsonl", lines)
    return report_of(path, folder / "report.html", *options)


def report_of(path: Path, output: Path, *options: str) -> Page:
    """Reports on a file and checks the properties of every page."""
    arguments = ["--input", str(path), "--output", str(output), *options]
    assert cli.main(["prepare", "report", *arguments]) == 0
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "http" not in text and "@import" not in text
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} == set(page.ids)
    assert len(page.ids) == len(set(page.ids)) == page.tags["h2"]
    assert page.tags["table"] >= page.tags["img"]
    for image in page.images:
        assert image["alt"]
        svg = ElementTree.fromstring(base64.b64decode(str(image["src"]).partition(",")[2]))
        assert svg.tag.endswith("svg") and not list(svg.iter("{http://www.w3.org/2000/svg}script"))
    return page
