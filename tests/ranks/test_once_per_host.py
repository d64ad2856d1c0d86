"""Models are fetched once for all ranks of a host, and pairs are tokenized once for a run."""

from __future__ import annotations

from pathlib import Path

from launch import deepspeed_command, finish, on_ranks, start
from model_hub import model_hub
from runs import lines, small_recipe
from workers import training

ONE_STEP = {"max_steps": 1, "eval_every_steps": None}


def test_a_model_is_downloaded_once_for_all_ranks_of_a_host(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, stage=2, train=ONE_STEP, checkpoint={"export": False})
    options = ("--config", recipe, "--output-dir", tmp_path / "run")
    with model_hub(tmp_path / "model") as (address, fetched):
        command = deepspeed_command(*options, "--model.name_or_path", "someone/tiny")
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = finish(start(command, online | hub))
    assert done.code == 0, done.output
    assert fetched["model.safetensors"] == fetched["tokenizer.json"] == 1, fetched


def test_the_data_is_tokenized_by_one_rank_and_equal_on_all(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, train=ONE_STEP, checkpoint={"export": False})
    for ranks in (1, 2):
        options = ["--config", str(recipe), "--output_dir", str(tmp_path / str(ranks))]
        done = on_ranks(training.count_tokenized, options, ranks=ranks)
        assert [rank.code for rank in done] == [0] * ranks, done
        logs = [tmp_path / str(ranks) / "logs" / f"rank_{rank}.txt" for rank in range(ranks)]
        made = [log.read_text().count("tokenized rows: ") for log in logs]
        assert made == [1] + [0] * (ranks - 1)  # all rows together, by rank 0
    (alone, shared) = (lines(tmp_path / str(ranks))[-1] for ranks in (1, 2))
    assert alone["eval_pairs"] == shared["eval_pairs"]
    assert abs(alone["eval_loss"] - shared["eval_loss"]) < 1e-5 * alone["eval_loss"]
