"""Runs of benchmarks/memory_vs_dpo.py: real processes, alone and under the launcher."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from unittest import mock

import memory_vs_dpo
import pytest
import torch
from jobs.job import Job
from jobs.processes import OUT_OF_MEMORY, Processes
from jobs.team import Team
from launch import deepspeed_command, finish, start
from measures.memory_split import PARTS
from models import synthetic, workload
from repository import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_methods_see_the_same_pairs_and_their_memory_adds_up(tmp_path):
    out = tmp_path / "out.jsonl"
    options = ["--shape", "tiny", "--threads", "1", "--pairs-per-step", "2", "--steps", "2",
               "--methods", "cpo", "trl-cpo", "--training", "lora", "--learning-rate", "1e-3",
               "--out", str(out)]  # fmt: skip
    with mock.patch.dict(os.environ):
        assert memory_vs_dpo.main(options) == 0
    ours, theirs = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    assert len(set(ours["losses"])) == 3
    for line in (ours, theirs):
        assert len(line["step_seconds"]) == 2 and line["tokens_per_second"] > 0
        assert line["pairs_per_second"] == pytest.approx(4 / line["seconds"], rel=1e-2)
        parts = [line.get(f"{part}_gib", 0.0) for part in (*PARTS, "activations_and_head")]
        assert sum(parts) == pytest.approx(line["peak_memory_gib"], abs=1e-3)
        assert line["weights_gib"] > 0 and 0 < line["optimizer_gib"] < line["weights_gib"]
    assert ours["activations_gib"] > 0
    assert "TRL CPOTrainer" in (tmp_path / "out.md").read_text(encoding="utf-8")
    assert (tmp_path / "out_memory.png").stat().st_size > 10_000


def test_two_ranks_under_the_launcher(tmp_path):
    """Each rank's controller starts a worker of its own for every run; rank 0 writes."""
    out = tmp_path / "out.jsonl"
    options = ["--shape", "tiny", "--threads", "1", "--pairs-per-step", "3", "--steps", "1",
               "--training", "full", "--methods", "cpo", "dpo-reference", "trl-cpo",
               "--deepspeed", "ds_configs/zero3.json", "--out", str(out)]  # fmt: skip
    command = deepspeed_command(*options, script=BENCHMARKS / "memory_vs_dpo.py")
    done = finish(start(command))
    assert done.code == 0, done.output
    ours, dpo, theirs = (json.loads(line) for line in out.read_text().splitlines())
    assert ours["ranks"] == dpo["ranks"] == 2 and ours["reference_gib"] == 0 < dpo["reference_gib"]
    assert ours["pairs_per_second"] > 0 and dpo["losses"][0] == pytest.approx(0.6931, abs=1e-3)
    assert theirs["error"].startswith("not run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU allows for more than is asked for")
def test_too_little_memory_is_a_result(tmp_path):
    synthetic.save_random_model("tiny", tmp_path / "model", "float32", seed=0)
    arguments = memory_vs_dpo.parse(["--steps", "1", "--threads", "1", "--memory-limit", "0.2"])
    pairs = workload.make_workload(arguments, str(tmp_path / "model"), 2, (1, 1), None)
    rows = workload.write_rows(pairs.rows, tmp_path / "rows.json")
    given = {field.name: getattr(arguments, field.name, None) for field in fields(Job)}
    job = given | {"method": "cpo", "training": "full", "repeat": 0, "sequence_length": None,
                   "model": str(tmp_path / "model"), "rows": rows, "pairs_per_step": 2,
                   "timed_steps": 1, "tokens_per_rank": 2048, "max_tokens": 512,
                   "memory_limit_gib": arguments.memory_limit}  # fmt: skip
    processes = Processes(Team(), tmp_path, threads=1, timeout=200)
    assert processes.run(job) == {"error": OUT_OF_MEMORY}
