"""Runs of benchmarks/ablations.py: real processes and the command line."""

from __future__ import annotations

import ablations
import endings
import pytest
from ablations import VARIANTS
from jobs.processes import run_fresh

from cpo_ds.errors import UserError


def test_a_process_that_dies_is_a_row():
    assert run_fresh(endings.be_killed) == {"error": "out of memory"}
    with pytest.raises(UserError, match="put this right"):
        run_fresh(endings.refuse)


def test_ablations_run_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "VARIANTS", {n: VARIANTS[n] for n in ("padded", "packed")})
    words = "--quick --pairs-per-step 3 --steps 1 --threads 1 --out"
    assert ablations.main([*words.split(), str(tmp_path / "a")]) == 0
    page = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "packed, logits of scored positions" in page
    assert "python " in page
