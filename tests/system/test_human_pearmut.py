"""Campaigns of `cpo-ds evaluate human` in Pearmut itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from human_rows import rows_of, sample, tally
from repository import ROOT

WORKER = ROOT / "tests" / "support" / "workers" / "pearmut_annotators.py"


@pytest.fixture
def python() -> str:
    """A Python that has Pearmut, which needs Python 3.12 and an environment of its own."""
    path = os.environ.get("CPO_DS_PEARMUT_PYTHON", str(ROOT / ".venv-pearmut" / "bin" / "python"))
    if not Path(path).is_file():
        pytest.skip(
            f"Pearmut is not installed ({path}): setup.sh --pearmut, or set "
            "CPO_DS_PEARMUT_PYTHON to a Python that has it"
        )
    return path


@pytest.mark.parametrize("protocol", ["contrastive", "esa"])
def test_pearmut_takes_the_campaigns_and_its_log_is_tallied(
    tmp_path: Path, python: str, protocol: str
) -> None:
    rows = rows_of("en-de", 6) + rows_of("en-is", 3)
    options = ("--protocol", protocol, "--annotators", 2, "--shared", 1)
    sample(tmp_path, rows, *options)
    texts = [text.strip() for row in rows for text in row["candidates"].values()]
    scores = {text: 90 if text.startswith("Good") else 40 for text in texts}
    scores["Good text 0"] = 40  # a tie in each direction
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    work = tmp_path / "pearmut"
    work.mkdir()
    command = [python, str(WORKER), str(tmp_path / "tasks" / "pearmut.json")]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*command, str(tmp_path / "scores.json")],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Both judge the shared source, and each a half of the others: 2 * 1 + 5, and 2 * 1 + 2.
    tasks = 11 if protocol == "contrastive" else 22
    assert f"tasks: {tasks}" in done.stdout

    logs = sorted((work / "data" / "annotations").glob("*.jsonl"))
    assert len(logs) == 2
    numbers = tally(tmp_path, *logs)
    best = {(one["direction"], one["system"]): one for one in numbers["results"]}
    assert best["all", "ours"]["score"]["mean"] == pytest.approx((7 * 90 + 2 * 40) / 9)
    assert best["all", "base"]["score"]["mean"] == 40
    assert best["all", "base"]["win_ratio"]["mean"] == pytest.approx(2 / 9)
    assert best["en-de", "ours"]["rank"]["mean"] == pytest.approx((5 * 1 + 1.5) / 6)
    assert best["all", "base"]["major"]["mean"] == 1 and best["all", "ours"]["major"]["mean"] == 0
    assert [one["items"] for one in numbers["agreement"]] == [1, 1, 2]
