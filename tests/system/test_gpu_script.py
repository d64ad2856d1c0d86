"""`scripts/gpu.sh --dry-run`: real parts on a CPU, one of them killed, then nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import ROOT

PARTS = ("profile-7b-lora", "dpo-7b-lora", "head")  # quick ones, in their order


def start(results: Path) -> subprocess.Popen[str]:
    script = ["bash", str(ROOT / "scripts" / "gpu.sh"), "--dry-run", "--results", str(results)]
    return subprocess.Popen(
        [*script, "--only", *PARTS], env=os.environ | {"PYTHON": sys.executable}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def outcomes(results: Path) -> dict[str, str]:
    lines = (results / "gpu_cpu.jsonl").read_text(encoding="utf-8").splitlines()
    ended = [line for line in map(json.loads, lines) if line["outcome"] != "not run"]
    return {line["part"]: line["outcome"] for line in ended}


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that name a folder."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        lines += [line] if text in line else []
    return lines


@pytest.mark.timeout(600)
def test_a_call_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    # A call is killed in its second part: it ends all that it started, and keeps the first part.
    killed = start(tmp_path)
    deadline = time.monotonic() + 300
    while not processes_with(f"{tmp_path}/memory_vs_dpo") and time.monotonic() < deadline:
        time.sleep(0.1)
    killed.send_signal(signal.SIGTERM)
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == 128 + signal.SIGTERM, output
    assert outcomes(tmp_path) == {"profile-7b-lora": "done"}
    assert not processes_with(str(tmp_path))
    # The next one runs what is left.
    finished = start(tmp_path)
    output, _ = finished.communicate(timeout=300)
    assert finished.returncode == 0, output
    assert outcomes(tmp_path) == dict.fromkeys(PARTS, "done")
    assert "dpo-7b-lora: done" in output and "profile-7b-lora" not in output
    text = (tmp_path / "gpu_cpu.md").read_text(encoding="utf-8")
    assert "| matrix products |" in text and "| DPO, reference by adapter off | LoRA |" in text
    assert (tmp_path / "profile_llama-2-7b-lora_cpu_parts.png").stat().st_size > 10_000
    # Then nothing is left.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = start(tmp_path)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "nothing is left to do" in output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
