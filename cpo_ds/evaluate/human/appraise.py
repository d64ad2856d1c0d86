"""Tasks for Appraise (https://github.com/AppraiseDev/Appraise), and its exported scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpo_ds.data.prompts import parse_direction
from cpo_ds.errors import UserError
from cpo_ds.evaluate.human.judgements import Judgement, Key
from cpo_ds.evaluate.human.sample import Item, Sample, Translation, units, utf16_span

TASK_ITEMS = 100  # Appraise leaves out tasks of any other size
_COLUMNS = 12  # of a line of ExportSystemScoresToCSV

# Appraise's codes of languages that have a code of two letters.
_CODES = {
    "af": "afr", "ar": "ara", "az": "aze", "be": "bel", "bg": "bul", "bn": "ben", "bs": "bos",
    "ca": "cat", "cs": "ces", "cy": "cym", "da": "dan", "de": "deu", "el": "ell", "en": "eng",
    "es": "spa", "et": "est", "eu": "eus", "fa": "fas", "fi": "fin", "fr": "fra", "ga": "gle",
    "gl": "glg", "gu": "guj", "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "hy": "hye",
    "id": "ind", "is": "isl", "it": "ita", "ja": "jpn", "ka": "kat", "kk": "kaz", "kn": "kan",
    "ko": "kor", "ky": "kir", "lt": "lit", "lv": "lav", "mg": "mlg", "mk": "mkd", "ml": "mal",
    "mr": "mar", "ms": "zsm", "mt": "mlt", "my": "mya", "ne": "nep", "nl": "nld", "no": "nob",
    "pa": "pan", "pl": "plk", "pt": "por", "ro": "ron", "ru": "rus", "sk": "slk", "sl": "slv",
    "sq": "sqi", "sr": "srp", "sv": "swe", "sw": "swa", "ta": "tam", "te": "tel", "th": "tha",
    "tr": "trk", "uk": "ukr", "ur": "urd", "uz": "uzb", "vi": "vie", "zh": "zho",
}  # fmt: skip


def files(sample: Sample, *, annotators: int) -> dict[str, Any]:
    """The files of all campaigns, one for each direction: name to content.

    Appraise shows one translation after the other. Every annotator judges all of them.
    """
    written: dict[str, Any] = {}
    for number, (direction, items) in enumerate(sample.by_direction.items(), start=1):
        source, target = (_code(code) for code in parse_direction(direction))
        tasks = _tasks(units(items, contrastive=False), source, target)
        name = f"cpods{sample.id}{source}{target}"  # letters and digits, for its addresses
        written[f"{direction}/batches.json"] = tasks
        written[f"{direction}/manifest.json"] = {
            "CAMPAIGN_URL": "http://127.0.0.1:8000/dashboard/sso/",
            "CAMPAIGN_NAME": name,
            "CAMPAIGN_KEY": name,
            "CAMPAIGN_NO": number,
            "REDUNDANCY": annotators,
            "TASKS_TO_ANNOTATORS": [[source, target, "uniform", annotators, len(tasks)]],
            "TASK_TYPE": "Document",
            "TASK_OPTIONS": "ESA",
        }
    return written


def _code(code: str) -> str:
    """Appraise's code of a language; one of three letters, which it may not know, stays."""
    base = code.replace("_", "-").partition("-")[0]
    return _CODES.get(base, base)


def _tasks(
    shown: Sequence[tuple[Item, tuple[Translation, ...]]], source: str, target: str
) -> list[dict[str, Any]]:
    """Tasks of 100 translations. The last one is filled up with translations from the start.

    Appraise calls such repetitions CHK. An annotator's later judgement replaces the earlier one.
    """
    missing = -len(shown) % TASK_ITEMS
    entries = [(*unit, "TGT") for unit in shown]
    entries += [(*shown[number % len(shown)], "CHK") for number in range(missing)]
    tasks = []
    for start in range(0, len(entries), TASK_ITEMS):
        tasks.append(
            {
                "task": {
                    "batchNo": start // TASK_ITEMS + 1,
                    "randomSeed": 0,
                    "requiredAnnotations": 1,
                    "sourceLanguage": source,
                    "targetLanguage": target,
                },
                "items": [
                    _entry(start + number, item, translation, kind)
                    for number, (item, (translation,), kind) in enumerate(
                        entries[start : start + TASK_ITEMS], start=1
                    )
                ],
            }
        )
    return tasks


def _entry(number: int, item: Item, translation: Translation, kind: str) -> dict[str, Any]:
    name = f"{item.id}-{translation.letter}"
    again = f"-again{number}" if kind == "CHK" else ""
    spans = [(span, utf16_span(translation.text, span)) for span in translation.spans]
    return {
        "mqm": [{"start_i": a, "end_i": b, "severity": span.severity} for span, (a, b) in spans],
        "documentID": name + again,
        "sourceID": item.id,
        "targetID": name,
        "itemType": kind,
        "sourceText": item.source,  # Appraise escapes it for HTML
        "targetText": translation.text,
        "itemID": number,
        "isCompleteDocument": False,
    }


def read_scores(path: Path, key: Key) -> list[Judgement]:
    """Reads what `manage.py ExportSystemScoresToCSV CAMPAIGN` prints.

    Raises `UserError` for lines that are not Appraise's, or not of the key's sample.
    """
    judgements = []
    for where, fields in _lines(path):
        try:
            annotator, name, _, kind, _, _, score, _, _, spans = fields[:10]
            item, _, letter = name.rpartition("-")
            marks = json.loads(spans)
            marks = json.loads(marks) if isinstance(marks, str) else marks
            severities = [mark["severity"] for mark in marks]
            number = float(score)
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{where}: not a line of Appraise's scores; give what `manage.py "
                "ExportSystemScoresToCSV CAMPAIGN` prints, as it is."
            ) from None
        if kind in ("TGT", "CHK"):
            judgements.append(key.judgement(where, annotator, item, letter, number, severities))
    return judgements


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(file and line, fields) of a CSV file without a header."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if fields and len(fields) != _COLUMNS:
                raise UserError(
                    f"{where}: {len(fields)} columns, and Appraise's scores have {_COLUMNS}; give "
                    "what `manage.py ExportSystemScoresToCSV CAMPAIGN` prints, as it is."
                )
            if fields:
                yield where, fields
