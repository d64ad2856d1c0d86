"""The page of planner_check.py: a row for each case, and the largest errors."""

from pages.planner import render, report

LINE = {
    "shape": "tiny", "stage": 3, "training": "lora", "ranks": 2, "dtype": "float32",
    "gradient_checkpointing": False, "measured_on_gpu": False, "states_error": 0.01,
    "total_error": -0.05, "error_without_baseline": -0.2, "predicted_before_update_mib": 10.0,
    "measured_before_update_mib": 9.9, "predicted_total_with_baseline_mib": 95.0,
    "measured_total_mib": 100.0, "device": "a CPU", "command": "python x", "commit": "1",
    "versions": "torch 2", "date": "today",
}  # fmt: skip


def test_the_report_says_the_largest_errors():
    text = report([LINE, LINE | {"total_error": -0.07}])
    assert "states 1.0%" in text and "total 7.0%" in text
    assert (
        "| tiny | 3 | LoRA | 2 | float32 | 10.0 | 9.9 | +1.0% | 95.0 | 100.0 | -6.0% | -20.0% |"
        in text
    )


def test_rows_with_several_rejected_completions_are_named():
    text = report([LINE, LINE | {"rejected": 8}])
    assert text.count("| tiny | 3 | LoRA | 2 |") == 1
    assert "| tiny | 3 | LoRA, 8 rejected completions | 2 |" in text


def test_a_page_keeps_a_name_with_a_dot(tmp_path):
    render([LINE], tmp_path / "planner_llama-1.1b_cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["planner_llama-1.1b_cpu.md"]
