"""The benchmark beside TRL: its table, its data, and one run of each trainer on a tiny model."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vs_trl
import vs_trl_report as report
from helpers import save_tiny_model

from cpo_ds.schema import UserError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def _result(method: str, repeat: int, rate: float, losses: list[float]) -> dict[str, Any]:
    return {
        "method": method,
        "training": "lora",
        "repeat": repeat,
        "pairs_per_second": rate,
        "unique_tokens_per_second": 100 * rate,
        "padded_tokens_per_second": 250 * rate,
        "peak_memory_gib": 1.25,
        "peak_growth_gib": 0.5,
        "losses": losses,
    }


RESULTS = [
    _result("cpo-ds", 0, 6.0, [2.5, 2.0]),
    _result("trl-cpo", 0, 2.0, [2.5, 2.001]),
    _result("cpo-ds", 1, 8.0, [2.5, 2.0]),
    _result("trl-cpo", 1, 4.0, [2.5, 2.0]),
]


def test_table_compares_medians_and_the_runs_of_the_same_repeat():
    header, _, ours, theirs = report.render_table(RESULTS).splitlines()
    assert header.split(" | ")[2] == "pairs/s"
    assert ours == (
        "| this trainer | LoRA | 7.00 [6.00 - 8.00] | - | 700 | 1.25 | 0.50 | 2.500000 | - |"
    )
    assert theirs == (
        "| TRL CPOTrainer | LoRA | 3.00 [2.00 - 4.00] | 2.33 [2.00 - 3.00] | 750 | 1.25 | 0.50 "
        "| 2.500000 | 1.0e-03 |"
    )


def test_table_without_this_trainer_has_no_ratios():
    rows = report.render_table([run for run in RESULTS if run["method"] != "cpo-ds"])
    assert rows.splitlines()[2].split(" | ")[3] == "-"


def test_report_says_what_memory_means_and_lists_the_environment():
    page = report.render_report(RESULTS, {"GPU": "none", "processor": "some CPU, 2 cores"})
    assert "resident in the process." in page
    assert "- processor: some CPU, 2 cores\n" in page
    assert "allocated on the GPU." in report.render_report(RESULTS, {"GPU": "some GPU"})


def _write_candidates(path: Path, *rows: dict[str, Any]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_wmt_pairs_prefer_the_first_system_and_skip_equal_translations(tmp_path):
    row = {"language_pair": "de-en", "source": "Hallo", "reference": "Hi"}
    path = _write_candidates(
        tmp_path / "wmt.jsonl.gz",
        row | {"candidates": {"gpt-4": "Hello.", "alma-13b-lora": "Hello."}},
        row | {"candidates": {"gpt-4": "Hello.", "alma-13b-lora": "Hey."}},
    )
    (pair,) = vs_trl.read_wmt(path)
    assert pair.prompt == "Translate this from German to English:\nGerman: Hallo\nEnglish:"
    assert (pair.chosen, pair.rejected, pair.direction) == ("Hello.", "Hey.", "de-en")
    assert pair.origin == "wmt.jsonl.gz:2"


def test_wmt_file_without_a_system_is_refused_by_line(tmp_path):
    row = {"language_pair": "de-en", "source": "Hallo", "candidates": {"gpt-4": "Hello."}}
    path = _write_candidates(tmp_path / "wmt.jsonl.gz", row)
    with pytest.raises(UserError, match=r"wmt\.jsonl\.gz:1: .*alma-13b-lora"):
        vs_trl.read_wmt(path)
    with pytest.raises(UserError, match="there is no file"):
        vs_trl.read_wmt(tmp_path / "absent.jsonl.gz")


def test_too_little_data_is_an_error(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    command = ["--model", str(model), "--timed-steps", "1000", "--out", str(tmp_path / "out")]
    assert vs_trl.main(command) == 2
    assert "8008 pairs are needed" in capsys.readouterr().err


def test_three_trainers_run_on_the_same_pairs(tmp_path):
    pytest.importorskip("trl")
    model = save_tiny_model(tmp_path / "model")
    options = "--training lora --pairs-per-step 3 --warmup-steps 1 --timed-steps 2 --repeats 1"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "vs_trl.py"), "--model", str(model), *options.split(),
         "--learning-rate", "1e-3", "--threads", "1", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ours, trl_cpo, trl_dpo = map(json.loads, lines)
    assert ours["losses"] == pytest.approx(trl_cpo["losses"], rel=1e-4)
    assert ours["losses"][0] != pytest.approx(ours["losses"][2], rel=1e-3)
    assert trl_dpo["losses"][0] == pytest.approx(math.log(2), rel=1e-5)
    for run in (ours, trl_cpo, trl_dpo):
        assert len(run["step_seconds"]) == 2 and len(run["losses"]) == 3
        assert run["pairs_per_second"] == pytest.approx(6 / run["seconds"], rel=1e-2)
        assert 0 < run["peak_growth_gib"] < run["peak_memory_gib"] < 4
    table = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert table.count("\n| ") == 2 + 3 and "TRL DPOTrainer" in table
