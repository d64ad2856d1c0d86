"""`cpo-ds translate` with tiny models: as plain `generate`, on any ranks, after any kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
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
    rows[1] |= {"reference": "das Haus", "candidates": {"other": "Haus", "mute": "", "x": None}}
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


@pytest.mark.parametrize("long", ["refuse", "split", "serve"])
def test_long_sources_are_never_silently_empty(tmp_path: Path, model: Path, long: str) -> None:
    text = LONG_ENOUGH * 4
    rows = [{"language_pair": "en-de", "source": "by the sea"}]
    rows += [{"language_pair": "en-de", "source": text}]
    source = write_json_rows(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out.jsonl"
    options = ("--model", model, "--input", source, "--output", output, "--name", "x", *SHORT)
    lengths = [
        len(tiny_tokenizer()(alma_prompt((LONG_ENOUGH * n).strip(), "en", "de"))["input_ids"])
        for n in (2, 3, 4)
    ]
    limit, length = lengths[0], len(tiny_tokenizer()(alma_prompt(text, "en", "de"))["input_ids"])
    assert limit < lengths[1] < lengths[2]  # two sentences fit, three do not
    options += ("--max-prompt-tokens", limit, "--long", long)
    (run,) = translate_rows(*options)
    if long == "refuse":
        assert run.code == 2 and not output.exists()
        assert f"1 of 2 prompts have more than {limit} tokens, the first that of " in run.output
        assert f"rows.jsonl, line 2 with {length}; give --long split" in run.output
        return
    assert run.code == 0, run.output
    made = rows_of(output)[1]["candidates"]["x"]
    assert settings_of(output)["long_sources"] == 1
    if long == "serve":
        assert f"  prompt longer than {limit} tokens, served whole: 1\n" in run.output
        answer = plain_generate(model, rows[1], num_beams=5, max_new_tokens=12)
        assert made == clean_as_alma(answer)[0]
        return
    parts = settings_of(output)["parts_of_split_sources"]
    assert (
        parts == 2 and f"  prompt longer than {limit} tokens, split into 2 parts: 1\n" in run.output
    )
    # Sentences are kept together, as many as fit; each part is translated for itself.
    texts = [(LONG_ENOUGH * 2).strip()] * 2
    answers = [
        clean_as_alma(
            plain_generate(model, rows[1] | {"source": part}, num_beams=5, max_new_tokens=12)
        )[0]
        for part in texts
    ]
    assert made == " ".join(answer for answer in answers if answer)


def test_a_sentence_is_printed_and_nothing_else(model: Path) -> None:
    row = {"language_pair": "en-de", "source": "the old house"}
    expected = clean_as_alma(plain_generate(model, row, num_beams=1, max_new_tokens=12))[0]
    options = ["--text", row["source"], "--pair", "en-de", "--beam", "1", *SHORT[:2]]
    command = [sys.executable, "-m", "cpo_ds.cli", "translate", "--model", str(model), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | launch.ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}\n" and "1 different sentences" in done.stderr


def test_a_run_stands_for_its_export_and_its_prompts(
    tmp_path: Path, source: Path, export_runs: dict[str, dict[str, Any]]
) -> None:
    """The folder of a run is its export with the recipe's tokens; the export alone is the same."""
    recipe = next(run for run in export_runs.values() if "lora" in run)
    run, output = Path(recipe["output_dir"]), tmp_path / "run.jsonl"
    options = ("--input", source, "--name", "r", *SHORT)
    (done,) = translate_rows("--model", run, *options, "--output", output)
    assert done.code == 0, done.output
    assert f"prompts and tokens as in {run}/config.yaml" in done.output
    by_hand = tmp_path / "parts.jsonl"
    adapter = ("--adapter", run / "export", "--model", recipe["model"]["name_or_path"])
    (done,) = translate_rows(*adapter, *options, "--output", by_hand)
    assert done.code == 0, done.output
    assert by_hand.read_bytes() == output.read_bytes()
    (done,) = translate_rows("--model", run, *options, "--add-bos", "always", "--output", by_hand)
    assert settings_of(by_hand)["tokens"]["add_bos"] == "always"


@pytest.mark.parametrize(
    "rows, options, said",
    [
        ([{"language_pair": "en-xx", "source": "x"}], [], "the language 'xx' of en-xx, which is"),
        ([{"language_pair": "en", "source": "x"}], [], "line 1: field language_pair has an unkn"),
        ([{"source": "x"}], [], "line 1: field language_pair is missing"),
        ([{"language_pair": "en-de", "source": " "}], [], "has no row with a source"),
        ([], [], "rows.jsonl is empty"),
        (
            [{"language_pair": "en-de", "source": "x", "candidates": {"tiny-2": "y"}}],
            ["--samples", "3"],
            "there is a candidate of tiny-2 already",
        ),
        ([{"language_pair": "en-de", "source": "x"}], ["--max-new-tokens", "512"], "too short for"),
        ([{"language_pair": "en-de", "source": "the old " * 300}], [], "--long split, or shorten"),
    ],
)
def test_bad_rows_are_said(
    tmp_path: Path, model: Path, rows: list[dict[str, Any]], options: list[str], said: str
) -> None:
    source, output = write_json_rows(tmp_path / "rows.jsonl", rows), tmp_path / "o.jsonl"
    (run,) = translate_rows("--model", model, "--input", source, "--output", output, *options)
    assert run.code == 2 and "Traceback" not in run.output, run.output
    assert said in run.output.splitlines()[-1] and not output.exists()
    assert not kept_keys(output)


def test_settings_of_the_model_apply_or_are_refused(
    tmp_path: Path, model: Path, source: Path
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    file = copy / "generation_config.json"
    own = {"repetition_penalty": 1.8, "do_sample": True, "num_return_sequences": 3}
    own |= {"return_dict_in_generate": True, "temperature": 0.6}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    output = tmp_path / "o.jsonl"
    options = ("--model", copy, "--input", source, "--output", output, "--name", "x", *SHORT)
    (run,) = translate_rows(*options)
    assert run.code == 0, run.output
    assert "generation_config.json that apply: repetition_penalty 1.8\n" in run.output
    assert "asks for sampling" in run.output.splitlines()[-1]
    first = rows_of(source)[0]
    settings = {"num_return_sequences": 1, "return_dict_in_generate": False}
    answer = plain_generate(copy, first, num_beams=5, max_new_tokens=12, **settings)
    assert rows_of(output)[0]["candidates"]["x"] == clean_as_alma(answer)[0]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"penalty_alpha": 0.6}))
    (run,) = translate_rows(*options[:-4], "--output", tmp_path / "p.jsonl")
    assert run.code == 2 and "sets penalty_alpha 0.6" in run.output.splitlines()[-1]
