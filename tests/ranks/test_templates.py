"""Chat templates and tokenizers in whole runs: the day of the first start, ends, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import assert_one_paragraph
from doors import tokenizers as kinds
from helpers import save_tiny_model
from launch import Finished, main_on_ranks, on_ranks, write_recipe
from runs import lines
from translation_runs import GREEDY, kept_keys
from workers import calendar_days


def model_with(folder: Path, tokenizer: Any) -> Path:
    save_tiny_model(folder, vocab_size=500)
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def recipe(folder: Path, model: Path, **data: Any) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"the old house {n} </s>"}],
            "chosen": [{"role": "assistant", "content": f"das alte Haus {n}"}],
            "rejected": [{"role": "assistant", "content": f"Haus <|end|> {n}"}],
        }
        for n in range(8)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    values = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"format": "pairs", "path": str(path)} | data,
        "batch": {"pairs": 4},
        "train": {"max_steps": 4, "epochs": 2},
        "checkpoint": {"every_steps": 2, "export": False},
        "logging": {"tensorboard": False},
        "deepspeed": str(folder / "zero.json"),
    }
    return write_recipe(folder, values)


def train_on(day: str, *arguments: object) -> Finished:
    (done,) = on_ranks(calendar_days.train_on, [day, *map(str, arguments)])
    return done


def test_a_run_resumed_on_another_day_has_the_same_tokens(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", kinds.byte_level(kinds.DATED))
    file = recipe(tmp_path, model)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for output, steps, day in (
        (whole, 4, "2026-01-31"),
        (halves, 2, "2026-01-31"),
        (halves, 4, "2026-02-01"),
    ):
        done = train_on(day, "--config", file, "--output_dir", output, f"--train.max_steps={steps}")
        assert done.code == 0, done.output
    assert "resumed from" in done.output and "template_date" not in done.output
    assert lines(halves)[-1] == lines(whole)[-1]
    assert "template_date: '2026-01-31'" in (halves / "config.yaml").read_text()
    # A recipe that names another day is another run.
    named = ("--config", file, "--output_dir", halves, "--data.template_date=2026-02-01")
    done = train_on("2026-02-01", *named, "--train.max_steps=6")
    assert_one_paragraph(done, "is of another run", "training pairs")


def test_candidates_of_another_day_are_those_of_the_first(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", kinds.byte_level(kinds.DATED))
    (tmp_path / "in.txt").write_text("the old house\nby the sea </s>\n")
    output = tmp_path / "out.jsonl"
    command = ["prepare", "candidates", "--input", str(tmp_path / "in.txt"), *GREEDY]
    command += ["--language-pair", "en-de", "--output", str(output), "--model", str(model)]
    kept = []
    for day in ("2026-01-31", "2026-02-01"):
        (done,) = on_ranks(calendar_days.run_cli_on, [day, *command, "--prompt", "chat"])
        assert done.code == 0, done.output
        kept.append(kept_keys(output))
        output.unlink()
    assert kept[0] == kept[1] and len(kept[0]) == 2


BROKEN: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "several templates": (
        kinds.byte_level({"rag": kinds.CHATML, "tools": kinds.CHATML}),
        {},
        ("chat templates rag, tools", "chat_template_kwargs: {chat_template: rag}"),
    ),
    "argument": (
        kinds.byte_level(kinds.QWEN3),
        {"chat_template_kwargs": {"enable_thinkin": False}},
        ("no argument enable_thinkin", "did you mean enable_thinking?"),
    ),
    "system message": (
        kinds.byte_level(kinds.NEEDS_SYSTEM),
        {},
        ("rows.jsonl, line 1", "refuses this conversation (no system)"),
    ),
    "parts": (kinds.byte_level(kinds.PARTS), {}, ("leaves out or changes the user's text",)),
    "no end": (
        kinds.byte_level("{% for m in messages %}{{ m.content }} {% endfor %}", eos_token=None),
        {},
        ("no end-of-sequence token", "tokenizer_config.json"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_cannot_be_served_is_one_paragraph(tmp_path: Path, name: str) -> None:
    tokenizer, data, parts = BROKEN[name]
    file = recipe(tmp_path, model_with(tmp_path / "model", tokenizer), **data)
    (done,) = main_on_ranks("--config", file, "--output_dir", tmp_path / "run")
    assert_one_paragraph(done, *parts)


def test_a_damaged_tokenizer_is_one_paragraph(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", kinds.byte_level(kinds.CHATML))
    file = recipe(tmp_path, model)
    (model / "tokenizer.json").write_text('{"model": {}}')
    (done,) = main_on_ranks("--config", file, "--output_dir", tmp_path / "run")
    assert_one_paragraph(done, f"the tokenizer in {model} cannot be read")
