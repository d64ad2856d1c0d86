"""A run whose steps are all trained: nothing of it is rewritten, and an export alone is added.

Two ranks, ZeRO-3, LoRA with dropout, 8 steps with a checkpoint after every third.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from launch import main_on_ranks
from runs import LORA, lines, small_recipe, undisturbed_run

STEPS, RANKS = 8, 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    return small_recipe(folder / "lora", lora=LORA, logging={"tensorboard": True})


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The output folder of an undisturbed run."""
    return undisturbed_run(recipe, RANKS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "export" / "adapter_model.safetensors")


OTHER = ("--optim.learning_rate=0.5", "--optim.weight_decay=0.3", "--train.epochs=9")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each file of a run, except the file that names the last writer."""
    skipped = ("logs", "lock", "finished.json")
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in files}
    return {
        name: (path.read_bytes(), path.stat().st_mtime_ns)
        for name, path in names.items()
        if name.partition("/")[0] not in skipped
    }


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        (OTHER, RANKS),
        ((), 1),
        ((*OTHER, "--checkpoint.export=false", "--logging.every_steps=3"), 3),
        (("--deepspeed=zero2",), RANKS),
    ],
)
def test_a_finished_run_started_again_rewrites_nothing(
    recipe: Path, whole: Path, changes: tuple[str, ...], ranks: int
) -> None:
    folder = whole
    before = contents(folder)
    marked = (folder / "finished.json").read_bytes()
    arguments = ("--config", recipe, "--output_dir", folder, *changes)
    first, *others = main_on_ranks(*arguments, ranks=ranks)
    assert [done.code for done in (first, *others)] == [0] * ranks, first.output
    after_counts = first.output.split("unique in a pair")[-1].splitlines()[1:]
    (said,) = (line for line in after_counts if line and "[" not in line)
    assert said.startswith(f"{folder} is finished, at step {STEPS} of {STEPS}.")
    assert contents(folder) == before and (folder / "finished.json").read_bytes() == marked
    assert any(name.startswith("tensorboard/events") for name in before)


def test_an_end_that_was_interrupted_is_described_by_what_trained(
    recipe: Path, whole: Path
) -> None:
    """If only the export is missing, changed settings come too late: nothing else is written."""
    folder = recipe.parent / "not-exported"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "export")
    (folder / "finished.json").unlink()
    before = contents(folder)
    arguments = ("--config", recipe, "--output_dir", folder)
    for done in main_on_ranks(*arguments, *OTHER, ranks=RANKS):
        assert done.code == 0, done.output
        assert "changed since" not in done.output
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"export"}
    expected = whole
    for file in (expected / "export").iterdir():
        if file.suffix != ".json":  # they name the folder of the run's base
            assert (folder / "export" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_export_that_is_wanted_later(recipe: Path, whole: Path) -> None:
    """Switched on for a finished run without one, it is written, and nothing else."""
    folder = recipe.parent / "exported-later"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "export")
    (folder / "finished.json").unlink()
    arguments = ("--config", recipe, "--output_dir", folder)
    before = contents(folder)
    for done in main_on_ranks(*arguments, "--checkpoint.export=false", ranks=RANKS):
        assert done.code == 0 and "training a LoRA" not in done.output, done.output
    assert contents(folder) == before
    for done in main_on_ranks(*arguments, ranks=RANKS):
        assert done.code == 0, done.output
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    expected, later = weights(whole), weights(folder)
    assert all(torch.equal(later[name], expected[name]) for name in expected)


def test_an_end_that_was_interrupted_before_its_evaluation(recipe: Path, whole: Path) -> None:
    """The evaluation after the last step is made up for, with the settings that trained."""
    folder = recipe.parent / "not-evaluated"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "export")
    (folder / "finished.json").unlink()
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert lines(folder) == lines(whole)[:-1]
    arguments = ("--config", recipe, "--output_dir", folder)
    for done in main_on_ranks(*arguments, *OTHER, ranks=RANKS):
        assert done.code == 0, done.output
    assert lines(folder) == lines(whole)
    card = (folder / "export" / "README.md").read_text()
    assert card == (whole / "export" / "README.md").read_text()


def test_harmless_changes_are_taken(recipe: Path, whole: Path) -> None:
    """The order of the adapted modules, and keys of the base that change no number."""
    base = recipe.parent / "model" / "config.json"
    original = base.read_text()
    harmless = {"use_cache": False, "torch_dtype": "bfloat16", "_name_or_path": "elsewhere"}
    harmless |= {"transformers_version": "4.57.0", "architectures": ["Another"]}
    folder = recipe.parent / "harmless"
    arguments = ("--config", recipe, "--output_dir", folder)
    resume = whole / "checkpoints" / "step-00000006"
    try:
        base.write_text(json.dumps(json.loads(original) | harmless))
        for done in main_on_ranks(
            *arguments,
            f"--checkpoint.resume={resume}",
            "--lora.target_modules=[down_proj, q_proj, down_proj]",
            ranks=RANKS,
        ):
            assert done.code == 0, done.output
            assert "changed since" not in done.output
    finally:
        base.write_text(original)
    later = [line for line in lines(whole) if line["step"] > 6]
    assert lines(folder)[1:] == later


def test_a_finished_run_with_more_steps_goes_on(recipe: Path, whole: Path) -> None:
    folder = recipe.parent / "longer"
    shutil.copytree(whole, folder)
    arguments = ("--config", recipe, "--output_dir", folder)
    for done in main_on_ranks(*arguments, f"--train.max_steps={STEPS + 1}", ranks=RANKS):
        assert done.code == 0, done.output
    assert lines(folder)[-1]["step"] == STEPS + 1
    assert json.loads((folder / "finished.json").read_text())["step"] == STEPS + 1
