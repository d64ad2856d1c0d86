"""The table of adapters: each kind continued, merged and exported, at ZeRO stages 0, 2 and 3."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from adapter_kinds import ALL_KINDS, LORA_KINDS, OTHER_KINDS, REFUSED_KINDS, save_adapter
from helpers import save_tiny_model
from launch import on_ranks
from model_files import settings
from workers import adapters

STAGES = (0, 2, 3)
LARGEST_ERROR = 1e-4
NEW_LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}
TIED_KINDS = (
    "LoRA", "DoRA", "LoRA on the embeddings", "LoRA on the head", "LoRA and rows for some tokens",
    "LoRA and whole embeddings", "LoRA and a whole head",
)  # fmt: skip
MERGED = "a merged one, then all weights trained"
MERGED_AND_NEW = "a merged one, then a new LoRA trained"
HEADER = ("adapter", "continue", "merge", "export", "export --merge")
Outcomes = list[dict[str, dict[str, Any]]]  # by stage: recipe -> outcome


def table() -> str:
    """Runs all cases; returns the table in Markdown."""
    with tempfile.TemporaryDirectory() as name:
        outcomes = [_run(Path(name, str(stage)), stage) for stage in STAGES]
    rows = [_row(kind, f"{kind}|untied", outcomes) for kind in LORA_KINDS]
    rows += [_row(f"{kind} (tied head)", f"{kind}|tied", outcomes) for kind in TIED_KINDS]
    rows += [_row(kind, f"{kind}|untied", outcomes) for kind in [*OTHER_KINDS, *REFUSED_KINDS]]
    for name in (MERGED, MERGED_AND_NEW):
        rows.append((name, "", *(_cell(name, way, outcomes) for way in ("start", "online")), ""))
    lines = [HEADER, ("---",) * len(HEADER), *_together(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _run(folder: Path, stage: int) -> dict[str, dict[str, Any]]:
    """Runs all cases at a stage, in one launch; returns their outcomes."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    folder.mkdir()
    (folder / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
    recipes = _recipes(folder)
    arguments = [recipes, str(folder / "outcomes.json")]
    for done in on_ranks(adapters.compare_each, arguments, ranks=1 if stage == 0 else 2):
        assert done.code == 0, done.output
    return json.loads((folder / "outcomes.json").read_text())


def _recipes(folder: Path) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}

    def add(name: str, base: Path, adapter: Path, mode: str, **sections: Any) -> None:
        values = settings(
            base, adapter, deepspeed=str(folder / "zero.json"), train={"max_steps": 1},
            checkpoint={"in_background": False}, output_dir=str(folder / f"run-{len(made)}"),
            **sections,
        )  # fmt: skip
        values["model"]["adapter_mode"] = mode
        made[name] = values

    for tie, kinds in (("untied", ALL_KINDS), ("tied", TIED_KINDS)):
        biases = {"attention_bias": True}  # in some layers, so that some biases can be merged
        base = save_tiny_model(folder / tie, tie_word_embeddings=tie == "tied", **biases)
        for number, kind in enumerate(kinds):
            adapter = save_adapter(base, folder / f"{tie}-{number}", ALL_KINDS[kind]())
            add(f"{kind}|{tie}|continue", base, adapter, "continue")
            add(f"{adapters.ONLY_LOADED}|{kind}|{tie}|merge", base, adapter, "merge")
            if (kind, tie) == ("LoRA and whole embeddings", "tied"):
                add(MERGED, base, adapter, "merge")
                add(MERGED_AND_NEW, base, adapter, "merge", lora=NEW_LORA)
    return made


def _row(title: str, name: str, outcomes: Outcomes) -> tuple[str, ...]:
    continued = [_cell(f"{name}|continue", way, outcomes) for way in ("start", "online", "merged")]
    if continued[0].startswith("refused"):
        continued[1:] = ["", ""]
    merged = _cell(f"{adapters.ONLY_LOADED}|{name}|merge", "start", outcomes)
    return title, continued[0], merged, continued[1], continued[2]


def _cell(name: str, way: str, outcomes: Outcomes) -> str:
    """The outcome of a way, with the stages if they differ."""
    texts = [_text(of_stage[name], way) for of_stage in outcomes]
    if len(set(texts)) > 1:
        return "; ".join(f"ZeRO-{s}: {text}" for s, text in zip(STAGES, texts, strict=True))
    return texts[0]


def _text(outcome: dict[str, Any], way: str) -> str:
    """The word "equal", or the refusal without the adapter's name and the advice."""
    value = outcome.get(way, "")
    if isinstance(value, str):
        problem = re.sub(r"^the (LoRA )?adapter \S+ ", "refused: ", value)
        return re.split(r"(?<=[a-z)])[.,;] ", problem)[0]
    # The export at the run's end, and the same from its checkpoint.
    error = max(value, outcome.get("offline", 0.0)) if way == "online" else value
    return "equal" if error < LARGEST_ERROR else f"wrong by {error:.1e}"


def _together(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows with equal outcomes as one, if they follow each other."""
    joined: list[tuple[str, ...]] = []
    for title, *cells in rows:
        named = [cell.replace(f"of the kind {title}", "of this kind") for cell in cells]
        if joined and list(joined[-1][1:]) == named:
            joined[-1] = (f"{joined[-1][0]}; {title}", *named)
        else:
            joined.append((title, *named))
    return joined
