"""One HTML page on which people judge the sample without a network, and the files it saves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cpo_ds.data.prompts import LANGUAGES, parse_direction
from cpo_ds.errors import UserError
from cpo_ds.evaluate.human.judgements import Judgement, Key
from cpo_ds.evaluate.human.sample import Item, Sample, assigned, units, utf16_span

_TEMPLATE = "page.html.jinja"
FORMAT = "cpo_ds judgements 1"  # as in page.js.jinja


def render(sample: Sample, *, contrastive: bool, annotators: int, shared: int | None) -> str:
    """The page as HTML. It holds letters, and no name of a system."""
    directions = {}
    for direction, items in sample.by_direction.items():
        source, target = parse_direction(direction)
        directions[direction] = {
            "source": {"code": source.replace("_", "-"), "name": LANGUAGES.get(source, source)},
            "target": {"code": target.replace("_", "-"), "name": LANGUAGES.get(target, target)},
            "parts": [
                [
                    {"item": item.id, "letters": [translation.letter for translation in shown]}
                    for item, shown in units(own, contrastive=contrastive)
                ]
                for own in assigned(items, annotators, shared)
            ],
        }
    data = {
        "sample": sample.id,
        "directions": directions,
        "items": [_item(item) for item in sample.items],
    }
    # Within a script element, "<" could begin its end.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(data=Markup(text))


def _item(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "source": item.source,
        "reference": item.reference,
        "translations": [
            {
                "letter": t.letter,
                "text": t.text,
                "spans": [
                    (first, last + 1, span.severity)
                    for span in t.spans
                    for first, last in [utf16_span(t.text, span)]
                ],
            }
            for t in item.translations
        ],
    }


def read_saved(path: Path, saved: Mapping[str, Any], key: Key) -> list[Judgement]:
    """Reads a file that the page saved.

    Raises `UserError` if it is damaged, or of another sample.
    """
    if saved.get("sample") != key.sample:
        raise UserError(
            f"{path} is of the sample {saved.get('sample')}, and the key of {key.sample}; give the "
            "key that was written together with the page."
        )
    judgements = []
    for number, entry in enumerate(saved.get("judgements") or [], start=1):
        where = f"{path}, judgement {number}"
        try:
            severities = [error["severity"] for error in entry["errors"]]
            severities += [entry["missing"]] if entry["missing"] else []
            values = (saved["annotator"], entry["item"], entry["letter"], entry["score"])
        except (KeyError, TypeError):
            raise UserError(
                f"{where}: not as the page saves it; give the file unchanged."
            ) from None
        judgements.append(key.judgement(where, *values, severities))
    return judgements
