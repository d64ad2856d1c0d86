"""The parts of gpu.py: their order and commands, which are run, how they end, and the page."""

from __future__ import annotations

import importlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from jobs.gpu_parts import (
    DONE,
    FAILED,
    LIMIT_MINUTES,
    NOT_RUN,
    PARTS,
    SKIPPED,
    STOPPED,
    Part,
    arguments_of,
    choose,
    files_of,
    fits,
    why_again,
    why_skipped,
)
from jobs.gpu_run import Notes, descendants, run_part
from measures.sources import SOURCES, source_digest
from pages import gpu as page
from repository import ROOT

from cpo_ds.devices import find_device

WANTED = {"device": "nvidia-h100", "sources": "1", "command": "python x"}
NOTE = WANTED | {"outcome": DONE}
PART = Part("one", "a part", 1.0, ("-c", "print('well')"))


def test_the_most_important_parts_come_first_and_each_ends_in_nine_minutes() -> None:
    names = [part.name for part in PARTS]
    first = ["kernels", "profile-7b-lora", "dpo-7b-lora", "limits-7b-lora", "trl-7b-lora",
             "profile-13b-lora", "profile-7b-full"]  # fmt: skip
    assert names[: len(first)] == first and len(set(names)) == len(names)
    assert max(part.minutes for part in PARTS) <= LIMIT_MINUTES < 9
    written = [part.writes for part in PARTS if part.writes]
    assert len(set(written)) == len(written)
    assert {*page.PROFILES, *page.BESIDE, page.LIMITS, page.PLANNER} <= set(written)


@pytest.mark.parametrize("part", [part for part in PARTS if part.writes], ids=lambda p: p.name)
@pytest.mark.parametrize("dry", [False, True])
def test_commands_take_the_options_of_their_parts(
    part: Part, dry: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, *options = arguments_of(part, tmp_path, "nvidia-h100", dry=dry)
    command = importlib.import_module(Path(script).stem)
    # A GPU machine allows for a search without a limit of memory.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not dry)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    with mock.patch.dict(os.environ):
        arguments = command.parse(options)
    assert arguments.out == files_of(part, tmp_path, "nvidia-h100")[0]
    # The model is made before its minutes begin, and the last run may begin at their end.
    if getattr(arguments, "minutes", None):
        assert arguments.minutes + 1.5 < LIMIT_MINUTES


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (None, NOT_RUN),
        ({"outcome": NOT_RUN}, NOT_RUN),
        (NOTE | {"outcome": FAILED, "why": "exit code 1"}, "failed: exit code 1"),
        (NOTE | {"outcome": SKIPPED, "why": "no trl"}, "skipped: no trl"),
        (NOTE | {"sources": "2"}, "done with another source"),
        (NOTE | {"device": "nvidia-h200"}, "done with another device"),
        (NOTE | {"command": "python y"}, "done with another command"),
        (NOTE, None),
    ],
)
def test_a_part_is_done_with_this_device_these_sources_and_this_command(
    line: dict[str, Any] | None, reason: str | None
) -> None:
    assert why_again(line, WANTED, []) == reason


def test_a_part_whose_page_is_missing_is_not_done(tmp_path: Path) -> None:
    part = replace(PART, writes="results")
    lines, written = files_of(part, tmp_path, "cpu")
    lines.touch()
    assert why_again(NOTE, WANTED, [lines, written]) == "results_cpu.md is missing"
    written.touch()
    assert why_again(NOTE, WANTED, [lines, written]) is None


def test_parts_are_chosen_in_order_and_by_time() -> None:
    one, two, three = (replace(PART, name=name) for name in ("one", "two", "three"))
    again = {"one": None, "two": NOT_RUN, "three": NOT_RUN}
    assert choose([one, two, three], [], again) == [two, three]
    assert choose([one, two, three], ["three", "one"], again) == [three]
    again = {"one": "failed: exit code 1", "two": NOT_RUN, "three": "done with another source"}
    assert choose([one, two, three], [], again) == [two, three, one]
    assert fits(one, None) and fits(one, 1.0) and not fits(one, 0.9)


def test_a_part_is_skipped_without_its_package_or_its_setting() -> None:
    assert why_skipped(PART, [], []) is None
    assert "trl is not installed" in str(why_skipped(replace(PART, needs="trl"), [], []))
    assert why_skipped(replace(PART, needs="trl"), ["trl"], []) is None
    known = replace(PART, setting="optim.betas")
    assert "no setting optim.betas" in str(why_skipped(known, [], ["optim.eps"]))
    assert why_skipped(known, [], ["optim.betas"]) is None


def test_the_digest_changes_with_sources_and_not_with_pages(tmp_path: Path) -> None:
    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return source_digest(tmp_path, SOURCES)

    first = write("cpo_ds/losses.py", "x = 1")
    assert write("benchmarks/pages/text.py", "") == write("benchmarks/results/a.json", "") == first
    assert write("cpo_ds/losses.py", "x = 2") != first
    assert source_digest(ROOT, SOURCES) == source_digest(ROOT, SOURCES)


def run(part: Part, folder: Path, seconds: float = 60.0) -> dict[str, Any]:
    return run_part(
        part,
        part.command,
        folder=folder,
        log=folder / "logs" / "log",
        environment=os.environ,
        seconds=seconds,
    )


def test_a_part_that_fails_says_so_and_keeps_its_log(tmp_path: Path) -> None:
    well = run(PART, tmp_path)
    assert well["outcome"] == DONE and well["last"] == "well" and "why" not in well
    badly = run(replace(PART, command=("-c", "raise SystemExit('no room')")), tmp_path)
    assert badly["outcome"] == FAILED and badly["why"] == "exit code 1: no room"
    assert "no room" in (tmp_path / "logs" / "log").read_text()


STUBBORN = """\
import signal, subprocess, sys, tempfile, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
started = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(started.pid, tempfile.mkdtemp(), flush=True)
time.sleep(600)
"""


def test_a_part_past_its_limit_is_stopped_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it ignores interrupts, and what it started is in a session of its own."""
    monkeypatch.setattr("jobs.gpu_run._GRACE_SECONDS", 0.2)
    line = run(replace(PART, command=("-c", STUBBORN)), tmp_path, seconds=3.0)
    assert line["outcome"] == STOPPED and "not done after" in line["why"]
    started, made = (tmp_path / "logs" / "log").read_text().split()
    assert not Path(made).exists()
    deadline = time.monotonic() + 20
    while _runs(int(started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(started))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_processes_are_known_by_their_parents() -> None:
    assert os.getpid() in descendants(os.getppid())
    assert os.getpid() not in descendants(os.getpid())


def test_notes_keep_a_line_for_each_part(tmp_path: Path) -> None:
    parts = [PART, replace(PART, name="two", writes="results")]
    file = tmp_path / "folder" / "gpu_cpu.jsonl"
    Notes(file, parts).note(parts[1], NOTE)
    again = Notes(file, parts)
    assert again.line(parts[0])["outcome"] == NOT_RUN
    assert again.line(parts[1]) == NOTE | {
        "benchmark": "gpu", "part": "two", "about": "a part", "writes": "results",
    }  # fmt: skip
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["part"] for line in lines] == ["one", "two"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


PROFILED = {
    "model": "llama-2-7b", "training": "lora", "gradient_checkpointing": True,
    "tokens_per_step": 16240, "tokens_per_second": 12345.6, "model_tflops": 321.0,
    "utilization": 0.5, "of_peak": 0.325, "peak_memory_gib": 40.0, "planned_gib": 42.0,
    "parts_seconds": {"matrix products": 3.0, "attention": 1.0},
}  # fmt: skip


def test_the_page_sets_what_is_measured_beside_the_paper_model() -> None:
    notes = [{"part": "kernels", "about": "tests", "writes": None, "outcome": DONE,
              "last": "== 85 passed ==", "seconds": 90.0}]  # fmt: skip
    results = {"profile_llama-2-7b-lora": [PROFILED]}
    text = "\n".join(page.page(notes, results, "nvidia-h100-80gb-hbm3"))
    rows = {row.split("|")[1].strip(): row for row in reversed(text.splitlines()) if "|" in row}
    speed = rows["llama-2-7b, lora, recomputing"]
    paper = page._on_paper(
        page.read_budgets(), "llama-2-7b, lora, recomputing", find_device("NVIDIA H100", 80.0)
    )
    assert speed == f"| llama-2-7b, lora, recomputing | 16,240 | 12,346 | {paper[0]} | 321 | " \
        f"50.0% | 32.5% | {paper[1]} |"  # fmt: skip
    assert "| llama-2-7b, lora, recomputing | 40.00 | 42.00 | +5.0% |" in text
    assert "| llama-2-13b, lora | not measured |" in text
    assert "| matrix products | 75.0% |" in text
    assert "| `kernels` | tests | done: 85 passed |  | 1.5 |" in text
    assert text.count("\nnot measured") == 4  # CPO beside DPO and TRL, limits, the planner
    assert "NVIDIA NeMo AutoModel" in text


def test_the_page_has_no_results_of_parts_that_did_not_run(tmp_path: Path) -> None:
    note = {"part": "one", "about": "a part", "writes": "profile_llama-2-7b-lora"}
    (tmp_path / "profile_llama-2-7b-lora_cpu.jsonl").write_text(json.dumps(PROFILED) + "\n")
    texts = {}
    for outcome in (DONE, STOPPED, FAILED, SKIPPED, NOT_RUN):
        page.render([note | {"outcome": outcome, "last": ""}], tmp_path / "gpu_cpu")
        texts[outcome] = (tmp_path / "gpu_cpu.md").read_text()
    shown = {outcome for outcome, text in texts.items() if "| 12,346 |" in text}
    assert shown == {DONE, STOPPED, FAILED}


def test_a_device_that_is_not_known_has_no_figures_on_paper() -> None:
    text = page.speed_table({}, find_device("cpu", 0.0))
    assert "| llama-2-7b, lora |  | not measured |  |  |  |  |  |" in text
