"""`cpo-ds prepare` commands in processes of their own, with other hash seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import launch
import noise_runs
from preference_data import write
from report_page import rows
from scored_rows import scored


def test_select_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "select", "--output", tmp_path / "o"]
    path = write(tmp_path / "s.jsonl", [scored({"a": 0.75, "b": 0.25, "reference": 0.5})])
    done = launch.finish(launch.start([*map(str, command), "--input", str(path)]))
    assert done.code == 0
    assert done.output == (
        "read 1 rows, selected 1 pairs by kiwi + xcomet\n"
        "  en-de: 1\n"
        "  chosen: a 100%\n"
        "  rejected: b 100%\n"
        "  translations without a score by kiwi + xcomet: 1\n"
        f"written to {tmp_path / 'o'}: pairs.jsonl, alma-r, summary.json\n"
    )
    done = launch.finish(launch.start([*map(str, command), "--input", "nowhere.jsonl"]))
    assert done.code == 2 and "nowhere.jsonl" in done.output and "Traceback" not in done.output


def test_noise_gives_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [noise_runs.pair(n) for n in range(5)])
    expected = noise_runs.run(tmp_path, [noise_runs.pair(n) for n in range(5)])
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "noise", "--input", str(path)]
    output = tmp_path / "again.jsonl"
    done = launch.finish(launch.start([*command, "--output", str(output)]))
    assert (done.code, done.output) == (0, f"read 5 rows, wrote 5 pairs to {output}\n")
    assert [json.loads(line) for line in output.read_text().splitlines()] == expected


def test_report_gives_the_same_bytes_in_any_order_of_the_rows(tmp_path: Path) -> None:
    lines = rows(40)
    pages = []
    for seed, order in (("1", lines), ("2", lines[::-1])):
        path = write(tmp_path / seed / "scored.jsonl", order)
        output = tmp_path / seed / "report.html"
        command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "report", "--input", str(path)]
        command = ["env", f"PYTHONHASHSEED={seed}", *command, "--output", str(output)]
        assert launch.finish(launch.start(command)).code == 0
        pages.append(output.read_bytes())
    assert pages[0] == pages[1]
