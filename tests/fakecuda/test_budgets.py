"""Kernels and bytes of a layer and of the head are those of budgets.json."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest
from rig import FOLDER, NEEDS_GUARD, run_script

WRITTEN: dict[str, Any] = json.loads((FOLDER / "budgets.json").read_text(encoding="utf-8"))
UPDATE = "python tests/fakecuda/budgets.py --update"


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The numbers that rose or fell, by case, stage and kind."""
    return [
        f"{case}, {stage}: {kind} {'rose' if number > old else 'fell'} from {old:,} to {number:,}"
        for case, budget in after.items()
        for stage, work in budget["stages"].items()
        for kind, number in work.items()
        if number != (old := before.get(case, {}).get("stages", {}).get(stage, {}).get(kind, 0))
    ]


@NEEDS_GUARD
@pytest.mark.timeout(900)
def test_no_kernel_and_no_byte_is_added_unseen() -> None:
    for library, version in WRITTEN["versions"].items():
        installed = importlib.metadata.version(library)
        if installed != version:
            pytest.skip(f"budgets.json is of {library} {version}, and {installed} is installed")
    output = run_script("budgets.py", "--print")
    measured = json.loads(output[output.index("{") :])
    changed = changes(WRITTEN["budgets"], measured["budgets"])
    assert not changed, "\n".join([f"If these are intended: {UPDATE}", *changed])
    assert measured == WRITTEN


def test_a_change_is_told_by_its_name() -> None:
    before = {"a": {"stages": {"layer forward": {"kernels": 5, "bytes": 1000}}}}
    after = {"a": {"stages": {"layer forward": {"kernels": 6, "bytes": 900}}}}
    assert changes(before, after) == [
        "a, layer forward: kernels rose from 5 to 6",
        "a, layer forward: bytes fell from 1,000 to 900",
    ]


def test_budgets_of_layers_make_sense() -> None:
    """Recomputing adds a forward pass to the backward pass, and nothing to the forward pass."""
    budgets = WRITTEN["budgets"]
    for name in (name for name in budgets if "recomputing" not in name):
        kept, recomputing = (budgets[n]["stages"] for n in (name, f"{name}, recomputing"))
        assert kept["layer forward"] == recomputing["layer forward"]
        forward = kept["layer forward"]["kernels"]
        added = recomputing["layer backward"]["kernels"] - kept["layer backward"]["kernels"]
        assert forward / 2 <= added <= forward
