"""Checkpoints on each host's own disk: two simulated hosts with a /node-local each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.simulated import NODE_LOCAL, Finished, SimulatedHosts, reason_against, simulated_hosts
from launch import ENVIRONMENT, TRAIN, main_on_ranks
from runs import lines, small_recipe

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.skipif(reason_against() is not None, reason=str(reason_against())),
]
RUN = NODE_LOCAL / "run"
STOP_AFTER_A_STEP = "--train.max_hours=0.000001"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHosts]:
    with simulated_hosts(tmp_path_factory.mktemp("hosts")) as started:
        yield started


def train(hosts: SimulatedHosts, recipe: Path, *options: str) -> Finished:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q"]
    where = ["--hostfile", hosts.write_hostfile([1, 1])]
    command = [*launcher, *where, TRAIN, "--config", recipe, "--output-dir", RUN, *options]
    return hosts.run(0, command, **ENVIRONMENT)


def copied(hosts: SimulatedHosts, host: int, to: Path) -> Path:
    """Copies a host's run folder into `to`, over files of the same names."""
    to.mkdir(exist_ok=True)
    done = hosts.run(host, ["cp", "-r", f"{RUN}/.", to])
    assert done.code == 0, done.output
    return to


def shards(folder: Path) -> dict[str, set[int]]:
    """Checkpoint -> the ranks whose optimizer states it holds."""
    return {
        step.name: {
            int(file.name.split("_rank_")[1].split("_")[0]) for file in step.glob("*zero_pp_rank*")
        }
        for step in (folder / "checkpoints").glob("step-*")
    }


def test_each_host_keeps_and_resumes_its_part(hosts: SimulatedHosts, tmp_path: Path) -> None:
    """Stage 2 is the harder case: each host has a file of the same name, with the whole model."""
    steps = {"max_steps": 4, "eval_every_steps": 4}
    keep = {"every_steps": 1, "keep_last": 2, "export": False}
    recipe = small_recipe(tmp_path, stage=2, train=steps, checkpoint=keep)
    settings = json.loads((tmp_path / "deepspeed.json").read_text())
    local = {"checkpoint": {"use_node_local_storage": True}}
    (tmp_path / "local.json").write_text(json.dumps(settings | local))
    option = f"--deepspeed={tmp_path / 'local.json'}"
    whole = tmp_path / "whole"
    for done in main_on_ranks("--config", recipe, "--output-dir", whole, ranks=2):
        assert done.code == 0, done.output

    stopped = train(hosts, recipe, option, STOP_AFTER_A_STEP)
    assert "after step 1 of 4" in stopped.output, stopped.output
    parts = [copied(hosts, host, tmp_path / f"part-{host}") for host in (0, 1)]
    assert [shards(part) for part in parts] == [{"step-00000001": {0}}, {"step-00000001": {1}}]
    manifests = [part / "checkpoints" / "step-00000001" / "manifest.json" for part in parts]
    assert [json.loads(m.read_text())["hosts"] for m in manifests] == [["host-a", "host-b"]] * 2

    # Put together the parts are a checkpoint like any other, here for another number of ranks.
    alone = main_on_ranks(
        "--config", recipe, "--output-dir", tmp_path / "alone", option,
        f"--checkpoint.resume={parts[0] / 'checkpoints'}",
    )[0]  # fmt: skip
    assert alone.code == 2 and "rank 1 wrote it to a disk of host host-b" in alone.output
    merged = copied(hosts, 1, copied(hosts, 0, tmp_path / "merged"))
    resume = f"--checkpoint.resume={merged / 'checkpoints'}"
    (alone,) = main_on_ranks("--config", recipe, "--output-dir", tmp_path / "alone", option, resume)
    assert alone.code == 0, alone.output
    expected = [line["loss"] for line in lines(whole) if "loss" in line]
    resumed = [line["loss"] for line in lines(tmp_path / "alone") if "loss" in line]
    assert resumed == pytest.approx(expected[1:], rel=1e-4)

    # The newest checkpoint that all hosts have counts: host-b loses its second one.
    assert "after step 2 of 4" in train(hosts, recipe, option, STOP_AFTER_A_STEP).output
    hosts.run(1, ["rm", "-r", RUN / "checkpoints" / "step-00000002"])
    done = train(hosts, recipe, option)
    assert done.code == 0 and "resumed from" in done.output, done.output
    assert "step-00000001 at step 1 of 4" in done.output
    assert lines(copied(hosts, 0, tmp_path / "end")) == lines(whole)
    assert set(shards(tmp_path / "end")) == {"step-00000003", "step-00000004"}

    hosts.run(1, ["rm", "-r", RUN / "checkpoints"])
    lost = train(hosts, recipe, option)
    assert "is on the disks of all hosts: host-b has none" in lost.output, lost.output
    for host in (0, 1):
        hosts.run(host, ["rm", "-r", RUN])
