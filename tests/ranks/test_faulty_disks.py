"""Runs, exports and conversions on a disk that fails or is slow, at calls all over them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from disk_faults import Fault, FaultyRuns
from fault_sweeps import ALL, ROOM, Command, contents, spread, sweep, undisturbed
from runs import LORA, small_recipe

BACKGROUND = ("--checkpoint.in_background", "true")
WITHOUT_EXPORT = ("--checkpoint.export", "false")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("faulty")
    sections = {
        "data": {"directions": ["en-de"]},
        "batch": {"pairs": 8},
        "train": {"max_steps": 2, "eval_every_steps": 1},
        "checkpoint": {"every_steps": 1},
        "logging": {"tensorboard": True},
    }
    return {
        "full": small_recipe(folder / "full", stage=2, **sections),
        "lora": small_recipe(folder / "lora", stage=2, **sections, lora=LORA),
    }


def train(recipe: Path, *options: str, ranks: int = 1) -> Command:
    output = recipe.parent / "out"
    arguments = ("train", "--config", recipe, "--output_dir", output, *options)
    return Command(arguments, output, ranks=ranks)


@pytest.fixture(scope="module")
def trained(faulty_runs: FaultyRuns, recipes: dict[str, Path]) -> dict[str, Path]:
    """Folders of runs without an export; they are copied to where they ran."""
    folders = {}
    for name, recipe in recipes.items():
        command = train(recipe, *WITHOUT_EXPORT)
        undisturbed(faulty_runs, command)
        folders[name] = command.folder.rename(recipe.parent / "trained")
    return folders


@pytest.mark.parametrize(
    ("kinds", "effect", "stays", "points", "options"),
    [
        (ALL, "EIO", False, 8, ()),
        (ROOM, "ENOSPC", True, 4, ()),
        (ALL, "EIO", False, 4, BACKGROUND),
        ("open,mkdir", "ENOSPC", True, 2, BACKGROUND),
    ],
)
def test_training(
    faulty_runs: FaultyRuns,
    recipes: dict[str, Path],
    kinds: str,
    effect: str,
    stays: bool,
    points: int,
    options: tuple[str, ...],
) -> None:
    command = train(recipes["full"], *options)
    calls = spread(faulty_runs, command, kinds, points)
    assert sweep(faulty_runs, command, kinds, effect, stays=stays, calls=calls) >= points - 1


def test_training_on_two_ranks(faulty_runs: FaultyRuns, recipes: dict[str, Path]) -> None:
    command = train(recipes["full"], ranks=2)
    calls = spread(faulty_runs, command, ROOM, 3)
    assert sweep(faulty_runs, command, ROOM, "ENOSPC", stays=True, calls=calls)


def test_a_line_of_metrics_that_waits_is_in_the_model_card(
    faulty_runs: FaultyRuns, recipes: dict[str, Path]
) -> None:
    """The last of five lines, the evaluation after the last step, is not written at once."""
    command = train(recipes["full"])
    whole = undisturbed(faulty_runs, command)
    command.restore()
    late = Fault("write", 5, "EIO")
    metrics = command.folder / "metrics.jsonl"
    (done,) = faulty_runs.run(*command.arguments, below=metrics, fault=late)
    assert done.code == 0 and "its lines wait in memory" in done.output, done.output
    assert contents(command.folder) == whole


@pytest.mark.parametrize(
    ("name", "arguments", "kinds", "points"),
    [
        ("full", ("export",), ALL, 6),
        ("lora", ("export", "--merge"), ALL, 6),
        ("full", ("report",), ALL, 4),
        ("full", ("universal",), "sync", 1),
    ],
)
def test_commands_on_a_run(
    faulty_runs: FaultyRuns,
    recipes: dict[str, Path],
    trained: dict[str, Path],
    name: str,
    arguments: tuple[str, ...],
    kinds: str,
    points: int,
) -> None:
    folder = recipes[name].parent / "out"
    command = Command((*arguments, folder), folder, before=trained[name])
    calls = spread(faulty_runs, command, kinds, points)
    assert sweep(faulty_runs, command, kinds, "EIO", calls=calls) == points


@pytest.mark.parametrize("below", ["tmp-export", "checkpoints"])
def test_a_sync_that_takes_long_is_no_hang(
    faulty_runs: FaultyRuns, recipes: dict[str, Path], below: str
) -> None:
    """No byte moves meanwhile: the main thread syncs an export, or another one a checkpoint."""
    command = train(recipes["full"], *BACKGROUND, "--train.stall_minutes", "0.05")
    shutil.rmtree(command.folder, ignore_errors=True)
    slow = Fault("sync", 1, "16000")
    (done,) = faulty_runs.run(*command.arguments, below=command.folder / below, fault=slow)
    assert done.code == 0, done.output
    assert "minutes for its disk to take what was written" in done.output
