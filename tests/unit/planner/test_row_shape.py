"""Plans for rows with several rejected translations: how many there are, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preference_data import PAIR, TRIPLET, write, write_parquet
from repository import ROOT

from cpo_ds.cli import main
from cpo_ds.planner.activations import pair_of_lengths
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.row_shape import PAIR as ONE
from cpo_ds.planner.row_shape import RowShape, shape_of_rows
from cpo_ds.recipe import parse_config

LISTS = [PAIR | {"rejected": [" He", " Ho", " Hu"]}, PAIR, PAIR | {"rejected": []}]


def config_of(path: Path | str, format: str = "pairs") -> Any:
    values = {"model": {"name_or_path": "x"}, "data": {"format": format, "path": str(path)}}
    return parse_config(values, "test")


def plan(capsys: Any, *words: object) -> tuple[int, str, str]:
    recipe = ("--config", ROOT / "recipes/own-pairs.yaml", "--shape", "tiny", "--device", "H100")
    code = main(["plan", *map(str, recipe), *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_rows_of_the_recipe_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", LISTS)
    rows = shape_of_rows(config_of(path))
    assert rows == RowShape(2.0, f"the mean of the first rows of {path}")  # 3 and 1
    assert (rows.tokens, rows.scored_tokens) == (55 + 3 * 45, 3 * 45)
    assert rows.lengths == (55, 45, 45, 45)
    assert shape_of_rows(config_of(path), rejected=8).rejected == 8
    parquet = [row | {"rejected": list(row["rejected"])} for row in LISTS[:1]]
    assert shape_of_rows(config_of(write_parquet(tmp_path / "p.parquet", parquet))).rejected == 3


def test_conversations_are_counted(tmp_path: Path) -> None:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    user = [{"role": "user", "content": "Hi?"}]
    row = {"prompt": user, "chosen": turn("Hallo"), "rejected": [turn("He"), turn("Ho")]}
    one = row | {"rejected": turn("He")}
    for number, rows in ((2.0, [row]), (1.0, [one]), (1.5, [row, one])):
        path = write(tmp_path / f"{number}.jsonl", rows)
        assert shape_of_rows(config_of(path)).rejected == number


def test_rows_that_cannot_be_looked_at_are_pairs_and_said_to_be(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    for path in (broken, tmp_path / "none.jsonl", "someone/on-the-hub"):
        rows = shape_of_rows(config_of(path))
        assert rows.rejected == 1 and "--rejected gives another number" in rows.source
    assert shape_of_rows(config_of(write(tmp_path / "t.jsonl", [TRIPLET]), "triplets")) == ONE


def test_more_rejected_translations_cost_time_and_memory(capsys: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", LISTS)
    asked = [("--rejected", 1), ("--rejected", 8), ("--data.path", path)]
    one, eight, own = (json.loads(plan(capsys, "--json", *words)[1]) for words in asked)
    assert (one["rejected"], eight["rejected"], own["rejected"]) == (1, 8, 2)
    # A token of a row with more branches keeps more keys and values of its prefix.
    parts = [values["memory_gib"]["activations"] for values in (one, own, eight)]
    assert parts == sorted(parts) and parts[0] < parts[2]
    computed = [values["time"]["compute_seconds"] for values in (one, own, eight)]
    assert computed[1] > 190 / 145 * computed[0] and computed[2] > 460 / 145 * computed[0]
    assert eight["time"]["micro_batches"] >= one["time"]["micro_batches"]


def test_the_plan_says_what_rows_it_is_for(capsys: Any, tmp_path: Path) -> None:
    _, text, _ = plan(capsys, "--data.path", write(tmp_path / "p.jsonl", LISTS))
    assert "rows are taken to have 190 tokens: a prompt of 55 and 3 translations of 45" in text
    assert "rejected translations of a row: 2, the mean of the first rows of " in text
    assert " pairs (128 comparisons) takes about" in text
    _, text, _ = plan(capsys, "--rejected", 8)
    assert "rejected translations of a row: 8, as --rejected says" in text
    code, _, error = plan(capsys, "--rejected", 0)
    assert code == 2 and "--rejected is 0; it must be above 0" in error


def test_a_recommended_micro_batch_holds_a_row(capsys: Any) -> None:
    words = ("--rejected", 50, "--gpus", 1, "--json")
    values = json.loads(plan(capsys, *words)[1])
    assert values["recommended"]["tokens_per_rank"] >= RowShape(50).tokens


def test_a_pair_of_lengths_has_all_branches() -> None:
    pair = pair_of_lengths(*RowShape(3.4).lengths)
    assert pair.segments == (55, 45, 45, 45, 45) and pair.num_comparisons == 3


def test_the_memory_of_a_pass_is_measured_for_such_rows() -> None:
    config = config_of("x")
    one, eight = (
        Outlines("tiny", rows).passes(config, stage=0).per_token.held for rows in (ONE, RowShape(8))
    )
    assert one < eight < 2 * one
