"""Launchers other than DeepSpeed's: the same losses, restarts and requeues."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hosts.simulated import SimulatedHosts
from launch import ENVIRONMENT, TRAIN, finish, start
from repository import ROOT
from runs import lines, rank_processes, small_recipe, wait_for_step
from slurm_cluster import SlurmCluster, reason_against, slurm_cluster

from cpo_ds.errors import UserError
from cpo_ds.ranks.place import Place

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("launchers"), checkpoint={"every_steps": 2})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.mark.multinode
def test_slurm_job_is_stopped_requeued_and_goes_on(
    cluster: SlurmCluster, recipe: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Signals each rank, as --signal does before the time limit, and requeues the job."""
    output, said = recipe.parent / "slurm", tmp_path / "said.txt"
    options = ["--config", recipe, "--output_dir", output]
    job = cluster.submit("--nodes", 2, "--output", said, "scripts/train.slurm", *options)
    cluster.wait(lambda: '{"step": 2,' in _text(output / "metrics.jsonl"), said)
    assert cluster.run("scancel", "--signal=USR1", job).code == 0
    cluster.wait_for_requeue(job, said)
    assert "asked to by SIGUSR1; its checkpoint is saved" in said.read_text()

    about = cluster.wait_for_end(job, said)
    assert (about["JobState"], about["Restarts"]) == ("COMPLETED", "1"), said.read_text()
    assert "resumed from" in said.read_text() and "on 2 rank(s)" in said.read_text()
    assert lines(output) == whole


@pytest.mark.multinode
def test_slurm_job_with_something_to_put_right_is_not_requeued(
    cluster: SlurmCluster, recipe: Path, tmp_path: Path
) -> None:
    """A wrong environment file in the job's folder ends the job for good."""
    said = tmp_path / "said.txt"
    submit = ["--nodes", 1, "--output", said, "--chdir", tmp_path, "scripts/train.slurm"]
    about = cluster.wait_for_end(cluster.submit(*submit, "--config", recipe), said)
    assert (about["JobState"], about["ExitCode"]) == ("FAILED", "2:0")
    assert "train.slurm: " in said.read_text() and "--chdir" in said.read_text()

    for name in ("cpo_ds", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".deepspeed_env").write_text("# where models are kept\nHF_HOME=/models\n")
    about = cluster.wait_for_end(cluster.submit(*submit, "--config", recipe), said)
    assert (about["JobState"], about["ExitCode"]) == ("FAILED", "2:0")
    assert about["Restarts"] == "0" and "restart 1" not in said.read_text()
    assert f"{tmp_path}/.deepspeed_env: line 1 is '# where" in said.read_text()


@pytest.mark.multinode
def test_deepspeeds_slurm_launcher_gives_each_rank_its_place(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """DeepSpeed's launcher calls srun; the test of the batch script covers the run itself."""
    script = tmp_path / "say_place.py"
    script.write_text("from cpo_ds.ranks.place import place\nprint(place())\n")
    program = [sys.executable, "-m", "deepspeed.launcher.runner", "--launcher", "slurm"]
    program += ["--hostfile", cluster.hosts.write_hostfile([1, 1])]
    program += ["--no_ssh_check", "--master_addr", "unused"]
    done = cluster.run("salloc", "--nodes", 2, "--exclusive", *program, script)
    assert done.code == 0, done.output
    places = [line for line in done.output.splitlines() if line.startswith("Place(")]
    for rank, said in enumerate(sorted(places)):
        port = int(said.rpartition("=")[2].rstrip(")"))
        assert said == str(Place("srun", rank, 2, 0, 1, "host-a", port))
        assert 20000 <= port < 30000
    assert len(places) == 2


def test_torchrun_starts_all_ranks_again_after_one_was_killed(
    recipe: Path, whole: list[dict[str, Any]]
) -> None:
    """The new ranks' store still has the addresses of the old ranks (torch 2.13)."""
    output = recipe.parent / "torchrun"
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    run = start([*command, str(TRAIN), "--config", str(recipe), "--output_dir", str(output)])
    try:
        wait_for_step(run, output, 3)
        rank_processes(run)[1].kill()
        done = finish(run)
    finally:
        end_processes(output)
    assert done.code == 0, done.output
    assert "rank 1 on host" in done.output and "resumed from" in done.output
    assert lines(output) == whole


def end_processes(output: Path) -> None:
    """Kills torchrun's ranks, which run in sessions of their own and would outlive torchrun."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(output) in process.cmdline():
                process.kill()


@pytest.mark.multinode
def test_torchrun_on_two_hosts(
    two_hosts: SimulatedHosts, recipe: Path, whole: list[dict[str, Any]]
) -> None:
    """Rank 0's host is known by its name, which stands for a loopback address there."""
    output = recipe.parent / "torchrun-hosts"
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{two_hosts.names[0]}:29400"]
    command = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", *where]
    command += [str(TRAIN), "--config", str(recipe), "--output_dir", str(output)]
    runs = [two_hosts.start(index, command, **ENVIRONMENT) for index in (0, 1)]
    for done in [finish(run) for run in runs]:
        assert done.code == 0, done.output
    assert lines(output) == whole


def test_mpirun_without_mpi4py_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpo_ds.ranks.ranks import _master_by_mpi

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"pip install 'cpo-ds\[mpi\]'.* MASTER_PORT into \.deep"):
        _master_by_mpi(Place("mpirun", rank=1, world_size=2))


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""
