"""scripts/demo_lesson.py: what it says of a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import demo_lesson
import pytest
from finished_run import write_run
from helpers import save_tiny_adapter, save_tiny_model

from cpo_ds.config import Config
from cpo_ds.data.rows import read_rows
from cpo_ds.recipe import load_config
from cpo_ds.run.folder import write_config


@pytest.fixture(scope="module")
def demo() -> Config:
    return load_config(["--config", "demo"])[0]


def line(loss: float, margin: float, accuracy: float) -> dict[str, Any]:
    return {
        "eval_pairs": 40, "eval_loss": loss, "eval_reward_margin": margin,
        "eval_reward_accuracy": accuracy,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (line(3.0, 0.9, 0.9), "learned to expect the better translations, and to tell them from"),
        (line(3.0, 0.9, 0.7), "the better translations, but not to tell them from the worse ones"),
        (line(3.0, 0.4, 0.7), "the better translations, but not to tell them from the worse ones"),
        (line(4.5, 0.9, 0.9), "learned to tell better translations from worse ones, but expects"),
        (line(3.99, 0.4004, 0.7), "did not learn anything that holds for other pairs"),
    ],
)
def test_the_verdict_is_one_sentence_with_its_numbers(after: dict[str, Any], said: str) -> None:
    sentence = demo_lesson.verdict(line(4.0, 0.4, 0.7), after, beta=0.1)
    assert said in sentence and "\n" not in sentence and sentence.count(". ") == 0
    assert f"the loss went from 4.00 to {after['eval_loss']:.2f}" in sentence
    assert "of them, before in 28." in sentence


def test_the_meaning_fits_the_objective(demo: Config) -> None:
    assert "beta (0.1) times the log-probability" in demo_lesson.meanings(demo)[0]
    loss = demo.loss.model_copy(update={"name": "dpo"})
    assert "as dpo defines it" in demo_lesson.meanings(demo.model_copy(update={"loss": loss}))[0]


def test_three_short_held_out_sources_of_different_directions(demo: Config) -> None:
    held_out = demo_lesson.held_out_rows(demo)
    rows = demo_lesson.three_rows(held_out, demo)
    assert len({row["language_pair"] for row in rows}) == 3
    every = [row.prompt for row in read_rows(demo.data, None)[0]]
    for row in rows:
        assert sum(row["source"] in prompt for prompt in every) == 1  # so it is in no training pair
        of_direction = [r for r in held_out if r.direction == row["language_pair"]]
        assert row["source"] in min(of_direction, key=lambda r: len(r.prompt)).prompt
        assert row["reference"] in {r.chosen for r in of_direction}


def test_pairs_without_a_source_have_no_translations(demo: Config) -> None:
    data = demo.data.model_copy(update={"format": "pairs", "path": "absent.csv"})
    assert demo_lesson.held_out_rows(demo.model_copy(update={"data": data})) == []


def test_a_translation_is_shown_in_one_line_each() -> None:
    row = {
        "language_pair": "de-en", "source": "Ja.\nNein.", "reference": " Yes.",
        "candidates": {"before": "", "after": "word " * 50},
    }  # fmt: skip
    shown = demo_lesson.table_of(row)
    assert shown[:2] == ["  de-en   Ja. Nein.", "  before  (nothing)"]
    assert len(shown[2]) <= 100 and shown[2].endswith("...") and shown[3] == "  better  Yes."


def test_a_finished_run_is_told_with_translations_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run = save_tiny_model(tmp_path / "model"), tmp_path / "run"
    write_run(run)
    config, _ = load_config(["--config", "demo", "--model.name_or_path", str(model)])
    write_config(config, run, 1)
    save_tiny_adapter(model, run / "export")
    assert demo_lesson.main([str(run)]) == 0
    told = capsys.readouterr().out
    assert "Verdict: the model learned to expect the better translations" in told
    names = re.findall(r"^  (before|after|better|..-..) +\S", told, flags=re.MULTILINE)
    assert [names[1:4], names[5:8], names[9:]] == [["before", "after", "better"]] * 3
    assert len({*names[::4]}) == 3
    assert "Reward margin: " in told and "cpo-ds translate --model" in told

    shutil.rmtree(model)
    assert demo_lesson.main([str(run)]) == 0
    told = capsys.readouterr().out
    assert "There are none: there is no model" in told and "Next:" in told


def test_a_folder_without_a_run_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo_lesson.main([str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("cpo_ds: error: there is no ")
