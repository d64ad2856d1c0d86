"""The table of base folders in docs/models.md: each kind is loaded and scored on two ranks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import transformers
from doors.folder_changes import Change
from doors.folder_kinds import REFUSED, SERVED
from helpers import joined, plain_logps, random_pairs, save_tiny_model
from launch import on_ranks
from workers import folders

STAGES, RANKS = (0, 2, 3), 2
EQUAL = "equal to transformers within 1e-4"
Result = list[float] | str  # log-probs, or a refusal


def table() -> str:
    changes = SERVED | {name: change for name, (change, _) in REFUSED.items()}
    with tempfile.TemporaryDirectory() as folder:
        made = {name: make(Path(folder), i, changes[name]) for i, name in enumerate(changes)}
        results = {stage: score(made, stage, Path(folder)) for stage in STAGES}
        expected = {name: plain(made[name]) for name in SERVED}
    lines = [
        f"| folder | {' | '.join(f'ZeRO {stage}' for stage in STAGES)} |",
        f"|---|{'---|' * len(STAGES)}",
    ]
    for name in changes:
        cells = [cell(results[stage][name], expected.get(name)) for stage in STAGES]
        if not cells[0].startswith(EQUAL):
            cells[1:] = ["the same" if text == cells[0] else text for text in cells[1:]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def make(folder: Path, number: int, change: Change) -> Path:
    """Makes a folder of a kind; the part of its path that differs is hidden in the table."""
    made = save_tiny_model(folder / str(number) / "my-model")
    change(made)
    return made


def score(made: dict[str, Path], stage: int, folder: Path) -> dict[str, Result]:
    """Log-probs or refusals at a ZeRO stage. Raises `AssertionError` if the ranks differ."""
    paths = {name: str(path) for name, path in made.items()}
    output = folder / f"stage-{stage}"
    for done in on_ranks(folders.score_folders, [paths, stage, str(output)], ranks=RANKS):
        assert done.code == 0, done.output
    of_ranks = [json.loads(Path(f"{output}-{rank}.json").read_text()) for rank in range(RANKS)]
    assert of_ranks[0] == of_ranks[1]
    return {
        name: _anywhere(result, made[name]) if isinstance(result, str) else result
        for name, result in of_ranks[0].items()
    }


def _anywhere(refusal: str, folder: Path) -> str:
    """A refusal without the parts that differ by machine."""
    here = f"transformers {transformers.__version__}"
    return refusal.replace(f"{folder.parent}/", "").replace(here, "transformers")


def plain(folder: Path) -> list[float]:
    """Log-probs by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return joined(plain_logps(model.eval(), random_pairs(folders.PAIRS))).tolist()


def cell(result: Result, expected: list[float] | None) -> str:
    if isinstance(result, str):
        return "refused: " + result.replace("|", "\\|")
    if expected is None:
        return "served, although it should be refused"
    difference = max(abs(a - b) for a, b in zip(result, expected, strict=True))
    return EQUAL if difference < 1e-4 else f"other than transformers by {difference:.0e}"
