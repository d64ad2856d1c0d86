"""Campaigns for Pearmut (https://github.com/zouharvi/pearmut), and its logs of annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.evaluate.human.judgements import Judgement, Key
from cpo_ds.evaluate.human.sample import Item, Sample, Translation, assigned, units, utf16_span

_RESET = "__RESET__"  # an annotator's earlier lines no longer count
_OTHER_TASKS = ("welcome_", "goodbye_", "random_")  # documents around those of the sample


def campaigns(
    sample: Sample, *, contrastive: bool, annotators: int, shared: int | None
) -> list[dict[str, Any]]:
    """A campaign for each direction. `pearmut add FILE` takes the whole list."""
    return [
        {
            "campaign_id": f"{sample.id}-{direction}",
            "info": {
                "assignment": "task-based",
                "protocol": "cESA" if contrastive else "ESA",
                "users": [f"{direction}-annotator-{number + 1}" for number in range(annotators)],
                "shuffle": False,  # the letters are in random order already
            },
            "data": [
                [[_document(item, shown)] for item, shown in units(own, contrastive=contrastive)]
                for own in assigned(items, annotators, shared)
            ],
        }
        for direction, items in sample.by_direction.items()
    ]


def _document(item: Item, shown: Sequence[Translation]) -> dict[str, Any]:
    """A source and the translations that are shown with it."""
    reference = {} if item.reference is None else {"ref": item.reference}
    return {
        "item_id": item.id,
        "src": item.source,
        **reference,
        "tgt": {translation.letter: translation.text for translation in shown},
        "error_spans": {t.letter: [_span(t.text, span) for span in t.spans] for t in shown},
    }


def _span(text: str, span: Any) -> dict[str, Any]:
    first, last = utf16_span(text, span)
    return {"start_i": first, "end_i": last, "severity": span.severity, "category": None}


def read_log(lines: Iterable[tuple[str, Mapping[str, Any]]], key: Key) -> list[Judgement]:
    """Reads a campaign's log, `data/annotations/CAMPAIGN.jsonl`: (file and line, its object).

    Raises `UserError` for lines that are not Pearmut's, or not of the key's sample.
    """
    judgements: list[Judgement] = []
    for where, entry in lines:
        try:
            user, answers = entry["user_id"], entry["annotation"]
            if answers == _RESET:
                judgements = [judgement for judgement in judgements if judgement.annotator != user]
                continue
            if str(entry.get("item_i")).startswith(_OTHER_TASKS):
                continue
            for item, answer in zip(entry["item"], answers, strict=True):
                judgements += _judgements(where, user, item["item_id"], answer or {}, key)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{where}: not a line of Pearmut's log; give data/annotations/CAMPAIGN.jsonl of "
                "the folder in which Pearmut ran, as it is."
            ) from None
    return judgements


def _judgements(
    where: str, user: str, item: str, answer: Mapping[str, Any], key: Key
) -> list[Judgement]:
    """The judgements of an item; a translation that was skipped has no score."""
    return [
        key.judgement(
            where, user, item, letter, given["score"], [s["severity"] for s in given["error_spans"]]
        )
        for letter, given in answer.items()
        if given.get("score") is not None
    ]
