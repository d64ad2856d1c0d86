"""`cpo-ds translate` with tiny models: as plain `generate`, on any ranks, after any kill."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
import transformers
from helpers import save_tiny_adapter, tiny_tokenizer
from translation_runs import (
    SENTENCES,
    ending_model,
    kept_keys,
    rows_of,
    translate_rows,
    write_json_rows,
)

from cpo_ds.data.prompts import alma_prompt
from cpo_ds.translate.cleaning import clean_as_alma

SHORT = ("--max-new-tokens", "12", "--batch-tokens", "600")
LONG_ENOUGH = "the old house by the sea. "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, Any]] = [
        {"language_pair": "en-de" if n % 2 else "cs-en", "source": text, "id": n}
        for n, text in enumerate([*SENTENCES, LONG_ENOUGH * 10])
    ]
    rows[1] |= {"reference": "das Haus", "candidates": {"other": "Haus"}}
    return write_json_rows(tmp_path_factory.mktemp("source") / "rows.jsonl", rows)


def plain_generate(model: Path, row: dict[str, Any], **settings: Any) -> str:
    """A translation by transformers alone, one sentence at a time."""
    tokenizer = tiny_tokenizer()
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    prompt = alma_prompt(row["source"], *row["language_pair"].split("-"))
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    made = causal_lm.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings
    )
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def settings_of(output: Path) -> dict[str, Any]:
    return json.loads(Path(f"{output}.settings.json").read_text(encoding="utf-8"))


def test_the_published_protocol_is_plain_generate_with_five_beams(
    tmp_path: Path, model: Path, source: Path
) -> None:
    output = tmp_path / "out.jsonl"
    options = ("--input", source, "--output", output, "--name", "new", "--dtype", "float32")
    (run,) = translate_rows("--model", model, *options)
    assert run.code == 0, run.output
    assert run.output.splitlines()[-1] == "protocol: published", run.output
    given, made = rows_of(source), rows_of(output)
    for before, after in zip(given, made, strict=True):
        answer = plain_generate(model, before, num_beams=5, max_new_tokens=256)
        own = {"new": clean_as_alma(answer)[0]}
        assert after == before | {"candidates": before.get("candidates", {}) | own}
    assert settings_of(output)["protocol"] == "published"
    assert settings_of(output)["decoding"]["num_beams"] == 5


def test_two_ranks_by_the_launcher_give_the_bytes_of_one(
    tmp_path: Path, model: Path, source: Path
) -> None:
    adapter = save_tiny_adapter(model, tmp_path / "lora")
    one, two = tmp_path / "one" / "o.jsonl", tmp_path / "two" / "o.jsonl"
    options = ["translate", "--model", model, "--adapter", adapter, "--input", source, *SHORT]
    (run,) = translate_rows(*options[1:], "--output", one)
    assert run.code == 0, run.output
    command = [sys.executable, "-m", "cpo_ds.cli", *map(str, options), "--ranks", "2"]
    done = launch.finish(launch.start([*command, "--output", str(two)]))
    assert done.code == 0, done.output
    assert two.read_bytes() == one.read_bytes()
    assert settings_of(two) == settings_of(one)
    assert len(list(Path(f"{two}.cache").glob("translations.*"))) == 2


def test_samples_depend_on_their_row_alone(tmp_path: Path, model: Path, source: Path) -> None:
    """Killed and started again, in other batches, in another order, among other rows."""
    whole, killed = tmp_path / "a" / "o.jsonl", tmp_path / "b" / "o.jsonl"
    sampling = ("--samples", "3", "--temperature", "1.5", "--seed", "3", "--max-new-tokens", "12")
    options = ("--model", model, *sampling, "--name", "s", "--input", source)
    (run,) = translate_rows(*options, "--batch-tokens", "600", "--output", whole)
    assert run.code == 0, run.output
    first, _ = translate_rows(
        *options, "--batch-tokens", "600", "--output", killed, ranks=2, die_after=2
    )
    assert first.code == -signal.SIGKILL and not killed.exists() and kept_keys(killed)
    (run,) = translate_rows(*options, "--batch-tokens", "600", "--output", killed)
    assert run.code == 0 and "translated before" in run.output, run.output
    assert killed.read_bytes() == whole.read_bytes()
    assert settings_of(killed) == settings_of(whole)
    rows = rows_of(whole)
    assert all(len({row["candidates"][f"s-{n}"] for n in (1, 2, 3)}) > 1 for row in rows[:4])
    # One row alone, then some rows in reverse, in batches of another size.
    few = write_json_rows(tmp_path / "few.jsonl", rows_of(source)[7:3:-1])
    other = tmp_path / "few-out.jsonl"
    (run,) = translate_rows(*options[:-1], few, "--batch-tokens", "99999", "--output", other)
    assert run.code == 0, run.output
    assert rows_of(other) == rows[7:3:-1]
    # Another seed gives others.
    (run,) = translate_rows(*options, "--seed", "4", "--output", tmp_path / "seed.jsonl")
    assert rows_of(tmp_path / "seed.jsonl") != rows
