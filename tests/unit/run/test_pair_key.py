"""A start never takes pairs for its own that other rows, tokenizers or settings made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair_rows
import pytest
from doors import tokenizers as kinds
from pair_rows import append, changed, edit, settle

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.run import pair_cache
from cpo_ds.run.pair_cache import cache_folder
from cpo_ds.run.pairs import open_inputs
from cpo_ds.settings.data import DataConfig


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = pair_rows.write_rows(tmp_path / "rows.jsonl", "x-alma", 60)
    return pair_rows.make(tmp_path, path, data={"eval_fraction": 0.2})


# What a start may find changed, and must not take the old pairs for.
CHANGES: dict[str, Callable[[Path, Config], Config]] = {
    "a row": lambda folder, c: edit(folder / "rows.jsonl", b"das", b"dat", c),
    "the order of rows": lambda folder, c: reverse(folder / "rows.jsonl", c),
    "a row more": lambda folder, c: append(folder / "rows.jsonl", c),
    "the tokenizer": lambda folder, c: save(c, kinds.byte_level(kinds.GEMMA)),
    "the template": lambda folder, c: save(c, kinds.byte_level(kinds.LLAMA3, puts_bos=True)),
    "the end of a turn": lambda folder, c: save(
        c, kinds.byte_level(kinds.GEMMA, puts_bos=True), stops=["<end_of_turn>"]
    ),
    "rotary positions": lambda folder, c: save(
        c,
        kinds.byte_level(kinds.GEMMA, puts_bos=True),
        stops=["</s>"],
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        max_position_embeddings=64,
    ),
    "sharing": lambda folder, c: changed(c, "batch", share_prefix="prompt"),
    "scores for a margin": lambda folder, c: changed(c, "loss", score_margin=0.5),
    "scores to rank by": lambda folder, c: changed(c, "loss", name="plackett-luce"),
    "the seed of the split": lambda folder, c: changed(c, "train", seed=1),
}
DATA: dict[str, Any] = {
    "format": "sample",
    "split": "test",
    "directions": ["en-de"],
    "languages": {"bn": "Bengali"},
    "scorer": "kiwi",
    "prompt_style": "chat",
    "max_prompt_tokens": 100,
    "max_tokens": 200,
    "eval_fraction": 0.3,
    "add_bos": "never",
    "chat_template_kwargs": {"x": 1},
    "template_date": "2026-01-31",
    "special_tokens": "parsed",
}
NOT_IN_KEY = {"path", "eval_path", "cache", "selected_by"}  # contents count, wherever they are
CHANGES |= {
    f"data.{name}": lambda folder, c, name=name: changed(c, "data", **{name: DATA[name]})
    for name in DATA
}


def reverse(path: Path, config: Config) -> Config:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[::-1]))
    return config


def save(config: Config, tokenizer: Any, **settings: Any) -> Config:
    kinds.save_folder(Path(config.model.name_or_path), tokenizer, **{"stops": ["</s>"]} | settings)
    return config


def test_every_setting_of_the_data_is_tried() -> None:
    assert set(DATA) | NOT_IN_KEY == set(DataConfig.model_fields)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_never_taken_for_the_old_pairs(
    config: Config, tmp_path: Path, change: str
) -> None:
    settle(tmp_path / "rows.jsonl")
    inputs, folder = open_inputs(config, print), cache_folder(config)
    folder.mkdir(parents=True)
    before = pair_cache._key(inputs, folder)
    assert before == pair_cache._key(open_inputs(config, print), folder)
    other = CHANGES[change](tmp_path, config)
    # Settings that contradict each other are refused elsewhere; here the key alone counts.
    try:
        after = pair_cache._key(open_inputs(other, print), folder)
    except UserError:
        after = pair_cache._key(inputs._replace(config=other), folder)
    assert after != before
