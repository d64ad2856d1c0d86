"""`checkpoint.resume: restart` begins anew beside an earlier run, once for each start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launch import finish, kill, main_on_ranks, start_ranks
from runs import LORA, lines, newest, run_recipe, small_recipe, wait_for_step

RESTART = "--checkpoint.resume=restart"
RANKS = 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(
        tmp_path_factory.mktemp("restart"),
        lora=LORA,
        data={"directions": ["en-de"]},
        train={"max_steps": 3, "eval_every_steps": None},
        checkpoint={"every_steps": 1, "export": False},
    )


@pytest.fixture(scope="module")
def earlier(recipe: Path) -> Path:
    output = recipe.parent / "run"
    assert run_recipe(recipe, output, ranks=RANKS).code == 0
    return output


def settings(folder: Path) -> str:
    return (folder / "config.yaml").read_text()


def test_another_run_begins_and_the_earlier_one_is_kept(recipe: Path, earlier: Path) -> None:
    """One test, since each start meets what the one before left."""
    before, written = lines(earlier), (earlier / "metrics.jsonl").read_bytes()

    # Another run, which a resume would refuse.
    other = ("--batch.share_prefix=none", "--loss.beta=0.2")
    done = run_recipe(recipe, earlier, *other, ranks=RANKS)
    assert done.code == 2 and "batch.share_prefix is 'common', here it is 'none'" in done.output
    assert "its loss.beta is 0.1, here it is 0.2" in done.output
    assert (earlier / "metrics.jsonl").read_bytes() == written
    done = run_recipe(recipe, earlier, *other, RESTART, ranks=RANKS)
    assert done.code == 0, done.output
    aside = earlier / "earlier-1"
    assert f"the earlier run in {earlier} was moved to {aside}; this one begins" in done.output
    assert (aside / "metrics.jsonl").read_bytes() == written and "beta: 0.1" in settings(aside)
    assert newest(aside) == newest(earlier) == "step-00000003"
    assert "beta: 0.2" in settings(earlier) and lines(earlier) != before
    assert [line["step"] for line in lines(earlier)] == [line["step"] for line in before]
    assert (earlier / "logs" / "rank_1.txt").is_file() and (aside / "logs").is_dir()

    # The same recipe without the setting goes on with the new run, which is finished.
    done = run_recipe(recipe, earlier, *other, ranks=RANKS)
    assert done.code == 0 and "is finished, at step 3 of 3" in done.output

    # The earlier run can be taken up again, elsewhere.
    taken_up = recipe.parent / "taken-up"
    resume = f"--checkpoint.resume={aside / 'checkpoints' / 'step-00000002'}"
    assert run_recipe(recipe, taken_up, resume, ranks=RANKS).code == 0
    assert lines(taken_up)[-1] == before[-1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"PYTHON_CPO_DS_RUN": "host-1-2"}, {"PYTHON_CPO_DS_RUN": "host-1-2"}),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ],
)
def test_a_start_that_is_made_again_goes_on_with_its_own_run(
    recipe: Path, tmp_path: Path, first: dict[str, str], second: dict[str, str]
) -> None:
    output = tmp_path / "run"
    assert run_recipe(recipe, output, "--train.max_steps=1").code == 0
    old = lines(output)

    # The first start of a new run is killed after a checkpoint.
    arguments: tuple[Any, ...] = ("--config", recipe, "--output_dir", output, RESTART)
    run = start_ranks(*arguments, "--train.seed=7", ranks=RANKS, **first)
    wait_for_step(run, output, 2)
    kill(run)
    finish(run)
    assert lines(output / "earlier-1") == old

    # Made again, it resumes and moves nothing.
    done = main_on_ranks(*arguments, "--train.seed=7", ranks=RANKS, **second)[0]
    assert done.code == 0, done.output
    assert "resumed from" in done.output and "was moved to" not in done.output
    assert not (output / "earlier-2").exists()
    assert [line["step"] for line in lines(output) if "loss" in line] == [1, 2, 3]

    # Another start begins anew.
    another = {name: f"{value}-other" for name, value in second.items()}
    done = main_on_ranks(*arguments, "--train.max_steps=1", ranks=RANKS, **another)[0]
    assert done.code == 0, done.output
    assert f"was moved to {output / 'earlier-2'}" in done.output
    assert lines(output)[-1]["step"] == 1


def test_a_folder_without_a_run_is_as_for_a_new_one(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run_recipe(recipe, output, RESTART, "--train.max_steps=1")
    assert done.code == 0 and "was moved" not in done.output, done.output
    assert not (output / "earlier-1").exists()
    assert "resume: auto" in settings(output)  # the file, given as a recipe, goes on with the run


def test_a_move_that_was_killed_is_finished_by_any_start(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert run_recipe(recipe, output, "--train.max_steps=1").code == 0
    old = lines(output)
    (output / "earlier-unfinished").mkdir()
    (output / "checkpoints").rename(output / "earlier-unfinished" / "checkpoints")
    done = run_recipe(recipe, output, "--train.max_steps=1")
    assert done.code == 0 and f"was moved to {output / 'earlier-1'}" in done.output, done.output
    assert lines(output / "earlier-1") == old and "resumed from" not in done.output
    assert newest(output / "earlier-1") == newest(output) == "step-00000001"


def test_a_second_run_is_kept_out_and_nothing_is_moved(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = ("--config", recipe, "--output_dir", output)
    run = start_ranks(*arguments, "--train.max_steps=100", "--train.epochs=100", ranks=1)
    wait_for_step(run, output, 1)
    done = run_recipe(recipe, output, RESTART)
    assert run.poll() is None
    kill(run)
    finish(run)
    assert done.code == 2 and "another run is writing to" in done.output, done.output
    assert not list(output.glob("earlier*"))


def test_a_base_inside_the_run_stays(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert run_recipe(recipe, output, "--train.max_steps=1").code == 0
    before = sorted(path.name for path in output.iterdir())
    done = run_recipe(recipe, output, RESTART, "--model.name_or_path", output / "export")
    assert done.code == 2 and "would move aside; copy it elsewhere" in done.output, done.output
    assert sorted(path.name for path in output.iterdir()) == before
    assert json.loads((output / "finished.json").read_text())["step"] == 1
