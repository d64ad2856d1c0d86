"""Objectives that read scores train alike on one rank and on two, however the batch is cut."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launch import main_on_ranks, on_ranks
from preference_data import write
from runs import TIMED, lines, small_recipe
from workers import training

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import step_indices, step_totals
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.load import load_policy
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs

RANKED: dict[str, Any] = {"name": "plackett-luce", "beta": 0.5}
MARGINS: dict[str, Any] = {"name": "dpo-nll", "score_margin": 1.5}
ONE_PAIR = 250  # unique tokens; of few pairs at most
RUNS: dict[str, dict[str, Any]] = {
    "ranked": {"loss": RANKED},
    "ranked, cut": {"loss": RANKED, "batch": {"tokens_per_rank": ONE_PAIR}},
    "ranked, not shared": {"loss": RANKED, "batch": {"share_prefix": "none"}},
    "margins": {"loss": MARGINS},
    "margins, precomputed": {"loss": MARGINS | {"reference": "precomputed"}},
    "margins, cut": {"loss": MARGINS, "batch": {"tokens_per_rank": ONE_PAIR}},
    "no margin": {"loss": {"name": "dpo-nll"}},
}


def random_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with one to four rejected texts, whose scores often tie."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return "".join(rng.choice("abcdefghijklmnop ") for _ in range(rng.randint(low, high))) + "."

    rows = []
    for number in range(count):
        rejected = [text(5, 20) for _ in range(1 + number % 4)]
        scores = [rng.choice([0.9, 0.5, 0.25]) for _ in rejected]
        row = {"prompt": text(15, 25), "chosen": text(5, 20), "rejected": rejected}
        rows.append(row | {"chosen_score": 0.9, "rejected_score": scores})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    write(folder / "train.jsonl", random_rows(17, seed=0))
    write(folder / "held.jsonl", random_rows(5, seed=1))
    return folder


def values_of(folder: Path, name: str, ranks: int) -> dict[str, Any]:
    paths = {"path": str(folder / "train.jsonl"), "eval_path": str(folder / "held.jsonl")}
    recipe = small_recipe(
        folder / "recipe",
        stage=3,
        data={"format": "pairs", "directions": None, "eval_fraction": 0.0, **paths},
        batch={"pairs": 8, "tokens_per_rank": 100_000},
        train={"max_steps": 3, "eval_every_steps": 2},
        checkpoint={"export": False, "every_steps": None},
    )
    values: dict[str, Any] = yaml.safe_load(recipe.read_text())
    for section, settings in RUNS[name].items():
        values[section] = values.get(section, {}) | settings
    return values | {"output_dir": str(folder / f"{name} {ranks}")}


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(run, ranks) -> the lines of its metrics, without timings."""
    for ranks in (1, 2):
        recipes = [values_of(folder, name, ranks) for name in RUNS]
        for done in on_ranks(training.run_each, [recipes], ranks=ranks):
            assert done.code == 0, done.output
            assert done.output.count(
                "comparisons with equal scores, which have no margin and no order in a ranking: "
            ) in (
                0,  # on ranks that print nothing
                2 * (len(RUNS) - 1),  # of training and held-out rows
            )
    return {(name, ranks): lines(folder / f"{name} {ranks}") for name in RUNS for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", [name for name in RUNS if name != "no margin"])
def test_the_same_metrics_however_it_is_run(runs: Any, name: str, ranks: int) -> None:
    expected, actual = runs[name.partition(",")[0], 1], runs[name, ranks]
    assert len(actual) == len(expected) == 6
    names = {"preference_loss", "nll_loss", "reward_accuracy", "reward_margin", "comparisons"}
    assert names <= set().union(*expected)
    skipped = TIMED | {"unique_tokens", "padded_tokens", "micro_batches"}
    for line, of_first in zip(actual, expected, strict=True):
        for key, value in of_first.items():
            if isinstance(value, float) and not any(part in key for part in skipped):
                assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, key)


def test_margins_change_the_loss_and_nothing_before_training(runs: Any) -> None:
    """DPO begins with rewards of 0, so that the loss is that of the margins alone."""
    plain, first = runs["no margin", 2][0], runs["margins", 2][0]
    assert plain["eval_preference_loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
    of_rows = []
    for row in random_rows(5, seed=1):
        margins = 1.5 * (0.9 - torch.tensor(row["rejected_score"]))
        of_rows.append(-torch.nn.functional.logsigmoid(-margins).mean())
    expected = torch.stack(of_rows).mean().item()
    assert first["eval_preference_loss"] == pytest.approx(expected, rel=1e-4)
    assert first["eval_nll_loss"] == plain["eval_nll_loss"]
    assert set(first) == set(plain)  # no name in the log is new


def test_the_first_step_is_that_of_policy_and_losses(folder: Path, runs: Any) -> None:
    """Their parity with transformers is tested apart."""
    config = parse_config(values_of(folder, "ranked", 2), "test")
    pairs = prepare_pairs(config, prints_counts=False).train
    policy, _ = load_policy(config, device=torch.device("cpu"))
    indices = tuple(step_indices(len(pairs), 8, config.train.seed, 0).tolist())
    batch = pack(pairs, indices)
    with torch.no_grad():
        terms = pair_terms(batch.logps(*policy(batch)), config.loss)
    totals = step_totals([[indices]], pairs)
    share = step_share(terms, totals, config.loss).item()
    step = next(line for line in runs["ranked, cut", 2] if "loss" in line)
    assert step["loss"] == pytest.approx(share, rel=1e-5)
    assert (step["pairs"], step["comparisons"]) == (totals.pairs, totals.comparisons)


def test_rows_without_scores_end_a_run_with_a_message(folder: Path, tmp_path: Path) -> None:
    rows = random_rows(4, seed=2)
    del rows[2]["chosen_score"], rows[2]["rejected_score"]
    values = values_of(folder, "ranked", 2) | {"output_dir": str(tmp_path / "run")}
    values["data"] |= {"path": str(write(tmp_path / "rows.jsonl", rows))}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    first, second = main_on_ranks("--config", tmp_path / "recipe.yaml", ranks=2)
    assert first.code == 2 and second.code != 0
    assert "1 of 4 pairs have no scores, the first" in first.output
    assert "rows.jsonl, line 3. loss.name: plackett-luce" in first.output.replace("\n", " ")
