"""The place of a process among the ranks, as each launcher sets it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.errors import UserError
from cpo_ds.ranks.place import (
    Place,
    first_node,
    place,
    tasks_per_node,
)

# What Slurm 22.05 sets in a batch script on two nodes, and adds in a step of three tasks.
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
STEP = BATCH | {
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
SHELL = STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
MASTER = {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29500"}
EXPECTED = {
    "nothing": ({}, Place("none")),
    "deepspeed": (
        TORCH | MASTER | {"LOCAL_SIZE": "2"},
        Place("deepspeed", 3, 4, 1, 2, "gpu07", 29500),
    ),
    "torchrun": (
        TORCH | MASTER | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"},
        Place("torchrun", 3, 4, 1, 2, "gpu07", 29500),
    ),
    "torch's variables by hand": (
        TORCH | MASTER,
        Place("deepspeed", 3, 4, 1, 2, "gpu07", 29500),
    ),
    "mpirun": (MPI, Place("mpirun", 3, 4, 1, 2)),
    "mpirun, the master said": (MPI | MASTER, Place("mpirun", 3, 4, 1, 2, "gpu07", 29500)),
    "a batch script": (BATCH, Place("none")),
    "srun --pty bash": (SHELL, Place("none")),
    "srun": (STEP, Place("srun", 2, 3, 0, 1, "gpu07", 20000 + 7 * 16 + 1)),
    "srun, the master said": (STEP | MASTER, Place("srun", 2, 3, 0, 1, "gpu07", 29500)),
    "deepspeed in a step": (STEP | TORCH, Place("deepspeed", 3, 4, 1, 2)),
    "mpirun in a step": (STEP | MPI, Place("mpirun", 3, 4, 1, 2)),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_place_as_each_launcher_says_it(case: str) -> None:
    environment, expected = EXPECTED[case]
    assert place(environment) == expected


@pytest.mark.parametrize("case", [case for case in EXPECTED if case != "nothing"])
def test_place_in_torchs_variables_is_the_same_place(case: str) -> None:
    """The program says its place again, in torch's variables, before anything reads them."""
    environment, expected = EXPECTED[case]
    again = place(environment | expected.variables())
    assert again.variables() == expected.variables()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "0"}, "LOCAL_RANK is not set"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is not set"),
        (TORCH | {"RANK": "first"}, "first"),
        (TORCH | {"MASTER_PORT": "http"}, "http"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not set"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "many"}, "'many'"),
        ({k: v for k, v in STEP.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
    ],
)
def test_half_a_place_is_an_error(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match="without its place among the ranks") as caught:
        place(environment)
    assert named in str(caught.value)


def test_steps_of_one_job_beside_each_other_have_ports_of_their_own() -> None:
    ports = {place(STEP | {"SLURM_STEP_ID": str(step)}).master_port for step in range(16)}
    assert len(ports) == 16


counts = st.lists(st.integers(1, 16), min_size=1, max_size=12)


@given(counts, st.booleans())
def test_tasks_per_node(tasks: list[int], repeats: bool) -> None:
    parts: list[tuple[int, int]] = []
    for count in tasks:
        if repeats and parts and parts[-1][0] == count:
            parts[-1] = (count, parts[-1][1] + 1)
        else:
            parts.append((count, 1))
    text = ",".join(f"{count}(x{times})" if times > 1 else f"{count}" for count, times in parts)
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize("text", ["", "2(x", "2,", "(x2)", "-1"])
def test_what_is_no_count_of_tasks(text: str) -> None:
    with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE"):
        tasks_per_node(text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("host-a", "host-a"),
        ("host-a,host-b", "host-a"),
        ("n[1-2]", "n1"),
        ("gpu[03-05,9],b1", "gpu03"),
        ("gpu[9,11]", "gpu9"),
        ("a1,gpu[03-05]", "a1"),
        ("r[01-02]n[4-7]-ib,r3n1", "r01n4-ib"),
        ("10.0.0.[1-2]", "10.0.0.1"),
    ],
)
def test_first_node(text: str, first: str) -> None:
    assert first_node(text) == first


@pytest.mark.parametrize("text", ["", ",n1", "[", "n[1"])
def test_what_is_no_list_of_nodes(text: str) -> None:
    with pytest.raises(ValueError, match="SLURM_STEP_NODELIST"):
        first_node(text)
