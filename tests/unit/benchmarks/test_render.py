"""Pages and charts of results: their text, and that the committed ones are current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import render
from pages import memory as memory_report
from pages import text as report_text
from pages.results import read_lines, render_file
from repository import ROOT

from cpo_ds.errors import UserError


def _line(method: str, training: str, repeat: int, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "memory_vs_dpo", "model": "tiny", "weights": "random", "data": "synthetic",
        "ranks": 1, "method": method, "training": training, "repeat": repeat,
        "sequence_length": None, "dtype": "float32", "threads": 1, "pairs_per_step": 8,
        "warmup_steps": 1, "timed_steps": 2, "tokens_per_rank": 99, "gradient_checkpointing": False,
        "deepspeed": "ds_configs/zero0.json", "lora_rank": 16, "lora_targets": ["down_proj"],
        "memory_limit_gib": None, "pairs_per_second": rate, "tokens_per_second": 100 * rate,
        "padded_tokens_per_second": 250 * rate, "scored_tokens_per_second": 80 * rate,
        "step_seconds": [8 / rate, 8 / rate], "losses": [2.5, 2.0], "model_tflops": 0.1,
        "ceiling_tflops": 0.2, "utilization": 0.5, "peak_memory_gib": 4.0, "weights_gib": 1.0,
        "activations_gib": 2.0, "other_gib": 1.0, "device": "some CPU", "GPU": "none",
    } | more  # fmt: skip


LINES = [
    _line("trl-cpo", "lora", 0, 2.0, losses=[2.5, 2.001]),
    _line("cpo", "lora", 0, 6.0),
    _line("trl-cpo", "lora", 1, 4.0),
    _line("cpo", "lora", 1, 8.0),
]
NO_ROOM = _line("trl-dpo", "lora", 0, 1.0, pairs_per_second=None, error="out of memory")


def test_tables_compare_medians_and_the_runs_of_the_same_repeat():
    groups = memory_report.grouped([*LINES, NO_ROOM])
    _, _, ours, theirs, failed = memory_report.throughput_table(groups).splitlines()
    assert ours.startswith("| CPO | LoRA | 7.00 [6.00 - 8.00] |  | 700 | 1750 | 560 |")
    assert theirs.startswith("| TRL CPOTrainer | LoRA | 3.00 [2.00 - 4.00] | 2.33 [2.00 - 3.00] |")
    assert failed.startswith("| TRL DPOTrainer | LoRA | out of memory |")
    assert "| 1.0e-03 |" in memory_report.loss_table(groups)
    header, _, ours, *_ = memory_report.memory_table(groups).splitlines()
    assert header.endswith("| peak | weights | activations | everything else |")
    assert ours == "| CPO | LoRA | 4.00 | 1.00 | 2.00 | 1.00 |"


def test_the_parts_of_a_row_are_those_of_one_run():
    """Runs may peak at different moments, and medians of parts would not add up to any peak."""
    runs = [
        _line("cpo", "full", n, 1.0, peak_memory_gib=peak, weights_gib=1.0, activations_gib=a,
              gradients_gib=g, head_gib=h, other_gib=peak - 1 - a - g - h)
        for n, (peak, a, g, h) in enumerate([(4.0, 2.0, 0.0, 0.5), (4.2, 0.5, 2.0, 0.0),
                                             (4.1, 0.5, 2.0, 0.0)])
    ]  # fmt: skip
    row = memory_report.memory_table(memory_report.grouped(runs)).splitlines()[2]
    peak, *parts = (float(cell or 0) for cell in row.strip("| ").split(" | ")[2:])
    assert peak == 4.1 and sum(parts) == pytest.approx(peak, abs=0.02)


def test_a_table_without_cpo_has_no_ratios():
    groups = memory_report.grouped(line for line in LINES if line["method"] != "cpo")
    assert memory_report.throughput_table(groups).splitlines()[2].split(" | ")[3] == ""


def test_the_headline_has_a_row_per_method_and_what_failed_none():
    rows = memory_report.headline([*LINES, NO_ROOM]).splitlines()[2:]
    assert rows == ["| CPO | LoRA | 7.00 |  | 4.0 |",
                    "| TRL CPOTrainer | LoRA | 3.00 | 2.33 times | 4.0 |"]  # fmt: skip


def test_the_headline_has_columns_for_each_precision():
    half = [line | {"dtype": "bfloat16", "pairs_per_second": 9.0} for line in LINES
            if line["method"] == "cpo"]  # fmt: skip
    head, _, *rows = memory_report.headline([*LINES, *half]).splitlines()
    assert head.startswith("| method | trains | float32: pairs/s | float32: CPO is faster by |")
    assert rows == ["| CPO | LoRA | 7.00 |  | 4.0 | 9.00 |  | 4.0 |",
                    "| TRL CPOTrainer | LoRA | 3.00 | 2.33 times | 4.0 |  |  |  |"]  # fmt: skip


def _write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_file_becomes_a_page_and_charts(tmp_path):
    limit = _line("cpo", "lora", 0, 1.0, pairs_per_second=None, largest_micro_batch_pairs=13,
                  largest_micro_batch_tokens=1300, search_ended_early=False)  # fmt: skip
    file = _write(tmp_path / "memory_vs_dpo_tiny_cpu.jsonl", [*LINES, NO_ROOM, limit])
    assert render.main([str(file)]) == 0
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert "some CPU" in page and "| 13 | 1300 |" in page
    assert "the most resident memory of a process" in page
    charts = sorted(path.name for path in tmp_path.glob("*.png"))
    assert charts == [f"memory_vs_dpo_tiny_cpu_{kind}.png" for kind in ("memory", "throughput")]
    assert all(f"({name})" in page for name in charts)


def test_several_lengths_become_lines_over_the_length(tmp_path):
    lines = [line | {"sequence_length": n} for n in (128, 256) for line in LINES]
    file = _write(tmp_path / "lengths.jsonl", lines)
    render_file(file)
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert "## Sequences of 256 tokens" in page
    assert "![lengths memory by length lora](lengths_memory_by_length_lora.png)" in page


def test_a_file_where_nothing_ran_is_a_page_without_charts(tmp_path):
    file = _write(tmp_path / "none.jsonl", [NO_ROOM])
    render_file(file)
    assert "out of memory" in file.with_suffix(".md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.png"))


def test_files_that_cannot_be_rendered_are_named(tmp_path, capsys):
    assert render.main([str(tmp_path / "absent.jsonl")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{}\n{")
    with pytest.raises(UserError, match=r"bad\.jsonl:2 is not JSON"):
        read_lines(tmp_path / "bad.jsonl")
    unknown = _write(tmp_path / "unknown.jsonl", [{"benchmark": "speed"}])
    with pytest.raises(UserError, match="benchmark: speed; known are memory_vs_dpo"):
        render_file(unknown)


def test_small_text():
    assert report_text.spread([2.0]) == "2.00" and report_text.speedup([], LINES) == ""
    assert report_text.median_of([{"a": None}, {}], "a") is None


@pytest.mark.parametrize("file", render.known_results(), ids=lambda path: path.stem)
def test_committed_pages_are_what_their_lines_say(file, tmp_path):
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    render_file(copy)
    assert copy.with_suffix(".md").read_text() == file.with_suffix(".md").read_text()
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn <= {path.name for path in file.parent.glob("*.png")}


@pytest.mark.parametrize("name", render.HEADLINES)
def test_the_readme_tables_are_what_the_results_say(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render.with_table(readme, name) == readme


def test_a_readme_without_marks_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="to write the table between"):
        render.with_table("# nothing here", "results")
    shown = render.Headline([_write(tmp_path / "a.jsonl", LINES)], memory_report.headline)
    monkeypatch.setitem(render.HEADLINES, "results", shown)
    mark = "<!-- results: written by benchmarks/render.py -->"
    text = render.with_table(f"a\n{mark}\nold\n<!-- /results -->\nb", "results")
    assert "| CPO | LoRA | 7.00 |" in text and "old" not in text
