"""Every rank maps the same pairs, on hosts with folders of their own too; a later start no rows."""

from __future__ import annotations

import json
from pathlib import Path

import pair_rows
from launch import on_ranks
from runs import lines, small_recipe, undisturbed_run
from workers import pair_sharing, training


def test_hosts_with_their_own_folders_get_the_file_once(tmp_path: Path) -> None:
    data = pair_rows.write_rows(tmp_path / "rows.jsonl", "x-alma", 300)
    config = pair_rows.make(tmp_path, data, data={"eval_fraction": 0.1})
    values = config.model_dump(mode="json") | {"output_dir": "out"}
    done = on_ranks(pair_sharing.load_on_hosts, [values, str(tmp_path)], ranks=2)
    assert [rank.code for rank in done] == [0, 0], done
    assert "is damaged" not in done[0].output  # rank 0's own file is whole
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    size = next((tmp_path / "host-0" / "out" / "pairs").glob("*.arrow")).stat().st_size
    for sent, seen, _ in (first, second):
        assert sent == [size, 0, size] and size > 20_000  # in several pieces
        assert seen == [first[1][0]] * 3
    assert first[2] == [*second[2], "files.json"]


def test_a_later_start_tokenizes_nothing_and_trains_the_same(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, stage=2, train={"max_steps": 4, "eval_every_steps": 2})
    whole, output = undisturbed_run(recipe, ranks=2), tmp_path / "two"
    for steps in (2, 4):
        options = ["--config", str(recipe), "--output_dir", str(output)]
        options += [f"--train.max_steps={steps}", "--optim.schedule=constant"]
        done = on_ranks(training.count_tokenized, options, ranks=2)
        assert [rank.code for rank in done] == [0, 0], done
        counts = [line for line in done[0].output.splitlines() if "pairs" in line[:20]]
        assert ("tokenized rows: 104" in done[0].output) == (steps == 2)
        assert ("pairs: read from" in done[0].output) == (steps == 4)
        assert "training pairs: 94" in counts and "held-out pairs: 10" in counts
    assert [line["step"] for line in lines(output)] == [line["step"] for line in lines(whole)]
