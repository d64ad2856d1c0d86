"""Whole runs on lists of rejected texts: stops, other numbers of ranks, DPO, held-out rows, export.

The numbers of an evaluation and of an export are held to plain transformers (`unrolled`).
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from launch import finish, kill, main_on_ranks, on_ranks, start_ranks
from preference_data import write
from runs import LORA, lines, newest, run_recipe, small_recipe, undisturbed_run, wait_for_step
from unrolled import Unrolled
from workers import training

from cpo_ds import cli
from cpo_ds.data.prompts import alma_prompt
from cpo_ds.storage.held_out_file import read_margins

REJECTED, HELD_OUT = (3, 1, 8, 2, 2, 8, 1), (1, 3, 8, 2, 1)
BETA = 0.1  # of the objective, by default


def random_rows(counts: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """Rows with so many rejected texts each; those with one have it as a text or as a list."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(["das", "alte", "Haus", "am", "Meer", "grün"], k=4)) + "."

    rows = []
    for number, count in enumerate(counts):
        texts = {text(): None for _ in range(9 * count)}
        chosen, *rejected = [*texts][: count + 1]
        assert len(rejected) == count
        one = rejected[0] if count == 1 and number % 2 else rejected
        prompt = alma_prompt(f"The old house {seed}, {number}.", "en", "de")
        row = {"direction": "en-de", "prompt": prompt, "chosen": chosen, "rejected": one}
        rows.append(row)
    return rows


HELD_OUT_ROWS = random_rows(HELD_OUT, seed=1)


def recipe_in(folder: Path, *, stage: int = 3, data: Any = None, **sections: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "train.jsonl", random_rows(REJECTED * 4, seed=0))
    write(folder / "held-out.jsonl", HELD_OUT_ROWS)
    of_data = {
        "format": "pairs",
        "path": str(folder / "train.jsonl"),
        "eval_path": str(folder / "held-out.jsonl"),
        "eval_fraction": 0.0,
        "directions": None,
    }
    values: dict[str, Any] = {"batch": {"pairs": 6, "tokens_per_rank": 600}} | sections
    values["train"] = {"epochs": 2} | values.get("train", {})
    return small_recipe(folder, stage=stage, data=of_data | (data or {}), **values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undisturbed runs on two ranks at ZeRO-3: all parameters, and an adapter with dropout."""
    folder = tmp_path_factory.mktemp("many")
    samples = {"max_steps": 8, "eval_every_steps": 2, "sample_translations": 3}
    runs = {
        "full": recipe_in(folder / "full", train=samples | {"sample_max_tokens": 8}),
        "lora": recipe_in(folder / "lora", lora=LORA),
    }
    return {kind: undisturbed_run(recipe, ranks=2) for kind, recipe in runs.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "export").glob("*.safetensors")
    return safetensors.torch.load_file(file)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_killed_run_goes_on_bit_for_bit(whole: dict[str, Path], kind: str) -> None:
    recipe, folder = whole[kind].parent / "recipe.yaml", whole[kind].parent / "killed"
    run = start_ranks("--config", recipe, "--output_dir", folder, ranks=2)
    wait_for_step(run, folder, 4)
    kill(run)
    finish(run)
    assert newest(folder) == "step-00000003"

    # The second start takes the kept pairs, and goes on.
    done = run_recipe(recipe, folder)
    assert done.code == 0 and "at step 3 of 8" in done.output, done.output
    assert "rejected completions of these pairs: 100" in done.output  # 25 in 7 rows, four times
    assert len(list((folder / "pairs").glob("*.arrow"))) == 1
    assert "pairs: read from" in done.output
    assert lines(folder) == lines(whole[kind])
    margins = (folder / "held_out_pairs.jsonl").read_bytes()
    assert margins == (whole[kind] / "held_out_pairs.jsonl").read_bytes()
    expected, actual = weights(whole[kind]), weights(folder)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_ranks(tmp_path: Path, stage: int, before: int, after: int) -> None:
    recipe = recipe_in(tmp_path, stage=stage, checkpoint={"keep_last": 9, "every_steps": 3})
    first = tmp_path / "first"
    assert run_recipe(recipe, first, ranks=before).code == 0
    cut = tmp_path / "cut"
    shutil.copytree(first, cut)
    shutil.rmtree(cut / "export")
    for name in ("step-00000006", "step-00000008"):
        shutil.rmtree(cut / "checkpoints" / name)
    (cut / "checkpoints" / "latest").write_text("step-00000003")
    done = run_recipe(recipe, cut, ranks=after)
    assert done.code == 0 and "at step 3 of 8" in done.output, done.output
    for ours, theirs in zip(lines(cut), lines(first), strict=True):
        for name in set(theirs) & {"loss", "eval_loss", "preference_loss", "logp_rejected"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (theirs["step"], name)


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3), (1, 2)])
def test_every_source_of_a_reference_gives_the_same_training(
    tmp_path: Path, ranks: int, stage: int
) -> None:
    recipe = recipe_in(
        tmp_path, stage=stage, lora=LORA | {"dropout": 0.0}, checkpoint={"export": False},
        train={"max_steps": 3, "eval_every_steps": 2}, loss={"name": "dpo-nll"},
    )  # fmt: skip
    sources = ("model", "adapter", "precomputed")
    recipes = [
        yaml.safe_load(recipe.read_text())
        | {"loss": {"name": "dpo-nll", "reference": source}, "output_dir": str(tmp_path / source)}
        for source in sources
    ]
    for done in on_ranks(training.run_each, [recipes], ranks=ranks):
        assert done.code == 0, done.output
    first = lines(tmp_path / "model")
    assert first[0]["eval_preference_loss"] == pytest.approx(np.log(2), abs=1e-6)
    for source in sources[1:]:
        for line, expected in zip(lines(tmp_path / source), first, strict=True):
            for name, value in expected.items():
                if isinstance(value, float):
                    close = pytest.approx(value, rel=1e-4, abs=1e-5)
                    assert line[name] == close, (source, name)


def test_precomputed_log_probs_have_a_column_for_each_completion(tmp_path: Path) -> None:
    recipe = recipe_in(
        tmp_path, loss={"name": "dpo", "reference": "precomputed"}, checkpoint={"export": False},
        train={"max_steps": 2, "eval_every_steps": None},
    )  # fmt: skip
    done = run_recipe(recipe, tmp_path / "first")
    assert done.code == 0 and done.output.count("computed, and kept in") == 2, done.output
    kept = tmp_path / "first" / "reference"
    again = run_recipe(recipe, tmp_path / "again", "--loss.reference_cache", kept)
    assert again.output.count("log-probs of the reference: read from") == 2
    assert lines(tmp_path / "again") == lines(tmp_path / "first")
    tables = {len(table): table for file in kept.iterdir() for table in [np.load(file)["logps"]]}
    # One row for each held-out row, checked text by text; unused columns are 0.
    plain = Unrolled(tmp_path / "model")
    for row, logps in zip(HELD_OUT_ROWS, tables[len(HELD_OUT)], strict=True):
        rejected = [row["rejected"]] if isinstance(row["rejected"], str) else row["rejected"]
        with torch.no_grad():
            texts = (row["chosen"], *rejected)
            expected = [plain.score(row["prompt"], text)[0].item() for text in texts]
        assert logps[: len(expected)].tolist() == pytest.approx(expected, rel=1e-5)
        assert not logps[len(expected) :].any()


def test_the_export_gives_the_last_evaluation_by_plain_transformers(whole: dict[str, Path]) -> None:
    """So the held-out metrics and margins are means over comparisons, and the export is right."""
    for kind, run in whole.items():
        base = run / "export" if kind == "full" else run.parent / "model"
        plain = Unrolled(base, None if kind == "full" else run / "export")
        margins, rejected_logps = [], []
        for row in HELD_OUT_ROWS:
            rejected = [row["rejected"]] if isinstance(row["rejected"], str) else row["rejected"]
            with torch.no_grad():
                chosen = plain.score(row["prompt"], row["chosen"])[0]
                logps = [plain.score(row["prompt"], text)[0] for text in rejected]
            margins.append([BETA * (chosen - logp).item() for logp in logps])
            rejected_logps += [logp.item() for logp in logps]
        flat = [margin for of_row in margins for margin in of_row]
        (last,) = [line for line in lines(run) if line["step"] == 8 and "eval_loss" in line]
        assert last["eval_reward_margin"] == pytest.approx(np.mean(flat), rel=1e-4)
        assert last["eval_reward_accuracy"] == np.mean([margin > 0 for margin in flat])
        assert last["eval_logp_rejected"] == pytest.approx(np.mean(rejected_logps), rel=1e-5)
        losses = [np.mean(np.log1p(np.exp(-np.array(of_row)))) for of_row in margins]
        assert last["eval_preference_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        kept = [margin.reward_margin for margin in read_margins(run) if margin.step == 8]
        assert kept == pytest.approx([np.mean(of_row) for of_row in margins], rel=1e-4)


def test_a_step_counts_pairs_and_comparisons(whole: dict[str, Path]) -> None:
    steps = [line for line in lines(whole["full"]) if "loss" in line]
    assert {line["pairs"] for line in steps} <= {6, 4}
    per_epoch = steps[:5]  # 28 rows in steps of 6
    assert sum(line["pairs"] for line in per_epoch) == 4 * len(REJECTED)
    assert sum(line["comparisons"] for line in per_epoch) == 4 * sum(REJECTED)


def test_samples_and_the_report_have_all_rejected_texts(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    run = whole["full"]
    by_prompt = {row["prompt"]: row for row in HELD_OUT_ROWS}
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {0, 2, 4, 6, 8}
    for sample in samples:
        given = by_prompt[sample["prompt"]]["rejected"]
        alone = given[0] if len(given) == 1 else given
        assert sample["rejected"] == alone
    page = tmp_path / "page.html"
    assert cli.main(["report", str(run), "--output", str(page)]) == 0
    text = page.read_text()
    for sample in samples:
        rejected = sample["rejected"]
        for one in [rejected] if isinstance(rejected, str) else rejected:
            assert one in text


def test_a_dry_run_counts_and_shows_them(whole: dict[str, Path], tmp_path: Path) -> None:
    recipe, output = whole["full"].parent / "recipe.yaml", tmp_path / "out"
    (done,) = main_on_ranks("--config", recipe, "--output_dir", output, "--dry-run")
    assert done.code == 0, done.output
    assert "rejected completions of these pairs: 100" in done.output
    shown = done.output.partition("training pair 1 of 28")[2].partition("training pair 2")[0]
    assert shown.partition("  tokens")[0].count("\n    rejected") == REJECTED[0]
    assert not output.exists()
