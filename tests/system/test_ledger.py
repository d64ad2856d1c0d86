"""Each epoch uses each pair exactly once, however often and on how many ranks a run is killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ledger import WORLD_SIZES, check_ledger, kill_on_other_ranks, largest_differences

PAIRS = 8  # of a step


def test_each_pair_is_used_once_an_epoch(tmp_path: Path) -> None:
    """Four kills; tests/support/ledger.py kills a run as often as you like."""
    run = kill_on_other_ranks(tmp_path, kills=4, seed=1, stage=2, pairs=PAIRS)
    assert len(run.victims) == 4 and set(run.world_sizes) == set(WORLD_SIZES)
    assert check_ledger(run.ledger, PAIRS) == 94
    assert check_ledger(tmp_path / "whole-ledger", PAIRS) == 94
    of_losses, of_weights = largest_differences(run.whole, run.killed)
    assert of_losses < 1e-4 and of_weights < 1e-4

    # A pair that is left out, or used twice in an epoch, would be noticed.
    for change in (lambda pairs: pairs[1:], lambda pairs: [*pairs, pairs[0]]):
        changed = tmp_path / "changed"
        shutil.copytree(run.ledger, changed)
        file = max(changed.iterdir()) / "rank_0.jsonl"
        *others, last = file.read_text().splitlines()
        update = json.loads(last)
        update["pairs"] = change(update["pairs"])
        file.write_text("\n".join([*others, json.dumps(update)]))
        with pytest.raises(AssertionError):
            check_ledger(changed, PAIRS)
        shutil.rmtree(changed)
