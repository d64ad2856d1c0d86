"""The folder that `cpo-ds prepare from-tm` writes, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import row_line
from cpo_ds.data.json_text import UNPAIRED
from cpo_ds.prepare.memory.cleaning import Tally, by_direction
from cpo_ds.prepare.memory.draft_pairs import row_of
from cpo_ds.prepare.memory.unit import Unit
from cpo_ds.storage.files import replacing
from cpo_ds.storage.folders import replacing_folder

ROWS, HELD_OUT = "rows.jsonl", "held_out.jsonl"
PAIRS, HELD_OUT_PAIRS, SUMMARY = "pairs.jsonl", "held_out_pairs.jsonl", "summary.json"
FILES = (ROWS, HELD_OUT, PAIRS, HELD_OUT_PAIRS, SUMMARY)


@dataclass(frozen=True)
class Result:
    """What is written of a memory, and the counts."""

    read: int
    rows: Sequence[Unit]  # all that are kept, those held out too
    held_out: Sequence[Unit]
    pairs: Sequence[dict[str, Any]]
    held_out_pairs: Sequence[dict[str, Any]]
    dropped: Tally  # units
    notes: Tally
    without_pair: Tally  # units, of those to train on and of those held out
    seen: Mapping[str, int]  # texts by the code of their language, in the files


def write_folder(output: Path, source: Path, options: dict[str, Any], result: Result) -> list[str]:
    """Writes the folder, whole or not at all, without files that would be empty.

    Returns the names of its files. Raises `UserError` if it cannot be written.
    """
    contents: dict[str, Iterable[dict[str, Any]]] = {
        ROWS: [row_of(unit) for unit in result.rows],
        HELD_OUT: [row_of(unit) for unit in result.held_out],
        PAIRS: result.pairs,
        HELD_OUT_PAIRS: result.held_out_pairs,
    }
    lines = {name: list(map(row_line, rows)) for name, rows in contents.items()}
    record = {
        "input": str(source),
        "options": options,
        "read": result.read,
        "codes": dict(result.seen),
        "rows": by_direction(result.rows),
        **{Path(name).stem: len(of_file) for name, of_file in lines.items() if name != ROWS},
        "dropped": result.dropped.record(),
        "notes": result.notes.record(),
        "without_pair": result.without_pair.record(),
    }
    lines[SUMMARY] = [json.dumps(record, ensure_ascii=False, indent=2) + "\n"]
    with replacing_folder(output) as folder:
        for name, of_file in lines.items():
            if of_file:
                with replacing(folder / name) as path:
                    path.write_text("".join(of_file), encoding="utf-8", errors=UNPAIRED)
    return [name for name in FILES if lines[name]]


def codes_of(seen: Mapping[str, int]) -> str:
    """The codes of languages with the number of their texts, such as `en-US: 12, zh-TW: 8`."""
    most = sorted(seen.items(), key=lambda item: -item[1])[:12]
    return ", ".join(f"{code or 'none'}: {number}" for code, number in most) or "none"


def told(
    output: Path, result: Result, names: Sequence[str], *, with_pairs: bool, again: str
) -> list[str]:
    """Lines to print on the counts, the files, and the next step.

    `again` are the options that the command needs once more when it reads the drafts.
    """
    lines = [
        f"read {result.read} segments, kept {len(result.rows)}",
        *(f"  {direction}: {n}" for direction, n in by_direction(result.rows).items()),
        *result.dropped.lines("dropped, "),
        *result.notes.lines(""),
        f"  codes of languages in the files: {codes_of(result.seen)}",
        f"  held out: {len(result.held_out)}",
    ]
    if with_pairs:
        lines += [
            f"pairs: {len(result.pairs)}, and {len(result.held_out_pairs)} held out",
            *result.without_pair.lines("no pair, "),
        ]
    lines.append(f"written to {output}: {', '.join(names)}")
    if not with_pairs:
        lines += [
            "no segment has a draft, so there are no pairs yet. Let the model that you train write "
            "drafts:",
            f"  cpo-ds prepare candidates --input {output / ROWS} --output drafts.jsonl --beams 1 "
            "--model NAME_OR_PATH",
            f"  cpo-ds prepare from-tm --input drafts.jsonl --output pairs{again}",
            "or give --noise, for noised copies of the targets.",
        ]
    return lines
