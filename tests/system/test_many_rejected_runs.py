"""Runs of benchmarks/many_rejected.py: real processes and the command line."""

from __future__ import annotations

import json

import many_rejected
import pytest


def test_one_comparison_a_row_has_the_same_loss_in_all_variants(tmp_path):
    words = "--quick --rejected 1 3 --rows-per-step 2 --steps 1 --threads 1 --out"
    assert many_rejected.main([*words.split(), str(tmp_path / "a")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    by_name = {(line["rejected"], line["variant"]): line for line in lines}
    assert len(by_name) == 6 and not any("error" in line for line in lines)
    for variant in ("unrolled", "trl"):
        assert by_name[1, variant]["losses"] == pytest.approx(by_name[1, "lists"]["losses"], 1e-4)
    # Three rejected: the chosen completion's NLL counts three times in unrolled pairs, as a mean.
    one, other = (by_name[3, variant]["losses"] for variant in ("lists", "unrolled"))
    assert other == pytest.approx(one, 0.05)
    page = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "TRL CPOTrainer, unrolled pairs" in page and "python " in page
