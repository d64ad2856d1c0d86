"""A run that is killed and resumed writes the metrics and weights of an undisturbed run.

Two ranks, ZeRO-3, 8 steps with a checkpoint after every third. Full-parameter training is killed in
step 5 or 6 and resumed under the real launcher; LoRA with dropout is killed while it saves step 6.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import save_tiny_model
from launch import deepspeed, finish, kill, main_on_ranks, on_ranks, start_ranks
from runs import LORA, lines, newest, small_recipe, wait_for_step
from workers import faults, training

STEPS, RANKS = 8, 2


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("resume")
    return {"full": small_recipe(folder / "full"), "lora": small_recipe(folder / "lora", lora=LORA)}


@pytest.fixture(scope="module")
def never_stopped(recipes: dict[str, Path]) -> dict[str, Path]:
    """The output folders of undisturbed runs."""
    folders = {}
    for kind, recipe in recipes.items():
        folders[kind] = recipe.parent / "whole"
        arguments = ("--config", recipe, "--output_dir", folders[kind])
        for done in main_on_ranks(*arguments, ranks=RANKS):
            assert done.code == 0, done.output
    return folders


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "export").glob("*.safetensors")
    return safetensors.torch.load_file(file)


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert lines(resumed) == lines(whole)
    steps = [line["step"] for line in lines(whole) if "loss" in line]
    held_out = [line["step"] for line in lines(whole) if "eval_loss" in line]
    assert steps == list(range(1, STEPS + 1)) and held_out == [0, 2, 4, 6, 8]
    expected, actual = weights(whole), weights(resumed)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_full_parameter_run_killed_after_its_checkpoint(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    folder = recipes["full"].parent / "killed"
    arguments = ("--config", recipes["full"], "--output_dir", folder)
    run = start_ranks(*arguments, ranks=RANKS)
    wait_for_step(run, folder, 4)
    kill(run)
    assert finish(run).code == 256 - 9
    assert newest(folder) == "step-00000003"
    before = lines(folder)
    assert before[-1]["step"] >= 4 and before[-1]["step"] < STEPS

    done = deepspeed(*arguments, ranks=RANKS)
    assert done.code == 0, done.output
    assert "resumed from" in done.output and "at step 3 of 8" in done.output
    assert_same_run(folder, never_stopped["full"])


def test_lora_run_killed_while_it_saves(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    folder = recipes["lora"].parent / "killed"
    arguments = ["--config", str(recipes["lora"]), "--output_dir", str(folder)]
    first, _ = on_ranks(faults.die_while_saving, [6, *arguments], ranks=RANKS)
    assert first.code == -9, first.output
    assert newest(folder) == "step-00000003"
    assert (folder / "checkpoints" / "tmp-step-00000006").is_dir()
    assert max(line["step"] for line in lines(folder)) == 6

    first, second = main_on_ranks(*arguments, ranks=RANKS)
    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert "at step 3 of 8" in first.output
    assert_same_run(folder, never_stopped["lora"])


def test_negative_control_another_seed_is_another_run(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    """A checkpoint keeps dropout's random states; without them the lines would differ."""
    folder = recipes["lora"].parent / "reseeded"
    arguments = ["--config", str(recipes["lora"]), "--output_dir", str(folder)]
    for done in on_ranks(training.train_with_other_dropout, arguments, ranks=RANKS):
        assert done.code == 0, done.output
    assert lines(folder) != lines(never_stopped["lora"])


def test_steps_planned_ahead_are_the_same_steps(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    folder = recipes["lora"].parent / "ahead"
    arguments = ["--config", str(recipes["lora"]), "--output_dir", str(folder)]
    for done in on_ranks(training.train_as_on_a_gpu, arguments, ranks=RANKS):
        assert done.code == 0, done.output
    assert_same_run(folder, never_stopped["lora"])

    # Resumed after step 6, too.
    resumed = recipes["lora"].parent / "ahead-resumed"
    arguments[-1] = str(resumed)
    arguments.append(f"--checkpoint.resume={folder / 'checkpoints' / 'step-00000006'}")
    for done in on_ranks(training.train_as_on_a_gpu, arguments, ranks=RANKS):
        assert done.code == 0, done.output
    evaluated_again, *later = lines(resumed)
    assert evaluated_again["step"] == 6 and "eval_loss" in evaluated_again
    assert later == [line for line in lines(folder) if line["step"] > 6]


def size(saved: Path) -> int:
    return sum(file.stat().st_size for file in saved.iterdir())


@pytest.mark.parametrize(("stage", "times"), [(2, 4), (3, 3)])
def test_checkpoints_of_an_adapter_are_a_few_times_its_size(
    tmp_path: Path, stage: int, times: int
) -> None:
    """A checkpoint holds weights (twice at stage 2) and AdamW's two moments, no base model."""
    runs = {"small": (4, 400), "large": (16, 400), "large vocabulary": (4, 4000)}
    saved, adapter, base = {}, {}, {}
    for name, (rank, vocabulary) in runs.items():
        one_step = {"train": {"max_steps": 1, "eval_every_steps": None}, "batch": {"pairs": 4}}
        recipe = small_recipe(tmp_path / name, stage=stage, lora=LORA | {"rank": rank}, **one_step)
        sizes = {"hidden_size": 64, "vocab_size": vocabulary, "tie_word_embeddings": True}
        model = save_tiny_model(recipe.parent / "model", **sizes)
        output = tmp_path / name / "run"
        (done,) = main_on_ranks("--config", recipe, "--output_dir", output)
        assert done.code == 0, done.output
        saved[name] = size(output / "checkpoints" / "step-00000001")
        adapter[name] = (output / "export" / "adapter_model.safetensors").stat().st_size
        base[name] = (model / "model.safetensors").stat().st_size
    grown = adapter["large"] - adapter["small"]
    assert saved["large"] - saved["small"] == pytest.approx(times * grown, rel=0.02)
    assert saved["small"] - times * adapter["small"] < 50_000
    assert adapter["large vocabulary"] == adapter["small"]
    assert base["large vocabulary"] > 3 * base["small"]
    assert abs(saved["large vocabulary"] - saved["small"]) < 200


def test_negative_control_checkpoints_of_all_weights_hold_them(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    base = (recipes["full"].parent / "model" / "model.safetensors").stat().st_size
    saved = never_stopped["full"] / "checkpoints" / f"step-{STEPS:08d}"
    assert size(saved) > 3 * base


def test_old_checkpoints_are_pruned(never_stopped: dict[str, Path]) -> None:
    for folder in never_stopped.values():
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["latest", "step-00000006", "step-00000008"]
        assert newest(folder) == "step-00000008"
