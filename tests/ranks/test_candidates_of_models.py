"""`cpo-ds prepare candidates` with a model of transformers, on one rank or two."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import launch
import pytest
import torch
import transformers
from helpers import save_tiny_adapter, save_tiny_model, tiny_tokenizer
from translation_runs import (
    GREEDY,
    SENTENCES,
    kept_keys,
    rows_of,
    run_on_rank,
    translate,
    with_padding,
    write,
)

from cpo_ds.data.prompts import alma_prompt
from cpo_ds.translate.cleaning import clean

# Models of transformers.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "s.txt", *SENTENCES, "", "the old " * 300)


def plain_generate(model: Path, text: str, beams: int) -> str:
    """A translation by transformers alone, one sentence at a time."""
    tokenizer = tiny_tokenizer()
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([tokenizer(alma_prompt(text, "en", "de"))["input_ids"]])
    made = causal_lm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=12,
    )
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 3])
def test_translations_are_those_of_plain_generate(
    tmp_path: Path, model: Path, source: Path, beams: int
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--dtype", "float32", "--max-new-tokens", "12", "--batch-tokens", "200"]
    (run,) = translate(source, model, output, *options, "--beams", str(beams))
    assert run.code == 0, run.output
    assert "11 different sentences\n" in run.output and "Loading" not in run.output
    assert "no translation, prompt longer than the model's context: 1\n" in run.output
    rows = rows_of(output)
    assert [row["source"] for row in rows] == [*SENTENCES, "the old " * 300]
    assert rows[-1]["candidates"] == {}
    for values in rows[:-1]:
        expected = clean(plain_generate(model, values["source"], beams), "German")[0]
        assert values["candidates"] == ({"tiny": expected} if expected else {})


def test_the_launcher_gives_the_same_on_two_ranks(
    tmp_path: Path, model: Path, source: Path
) -> None:
    adapter = save_tiny_adapter(model, tmp_path / "lora")
    options = [*GREEDY, "--batch-tokens", "150", "--prompt", "chat", "--adapter", str(adapter)]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    (run,) = translate(source, model, one, *options)
    assert run.code == 0, run.output
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "candidates"]
    command += ["--input", str(source), "--language-pair", "en-de", "--output", str(two)]
    done = launch.finish(launch.start([*command, "--model", str(model), *options, "--ranks", "2"]))
    assert done.code == 0, done.output
    assert two.read_bytes() == one.read_bytes()
    assert done.output.replace("two.jsonl", "one.jsonl") == run.output
    shares = [
        sum(len(json.loads(line)) for line in path.read_text().split("\n") if line)
        for path in sorted(Path(f"{two}.cache").glob("translations.*"))
    ]
    assert sum(shares) == 11 and min(shares) > 0 and len(shares) == 2
    assert "tiny+lora" in rows_of(one)[0]["candidates"]
    plain = tmp_path / "plain.jsonl"
    translate(source, model, plain, *GREEDY, "--prompt", "chat", "--name", "tiny+lora")
    assert plain.read_bytes() != one.read_bytes()  # the adapter counts


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, model: Path, source: Path) -> None:
    """Sampled, so that seeds matter: each batch has its own, whatever was translated before it."""
    options = [*GREEDY, "--temperature", "1.5", "--batch-tokens", "150", "--seed", "3"]
    whole, killed = tmp_path / "a" / "out.jsonl", tmp_path / "b" / "out.jsonl"
    (run,) = translate(source, model, whole, *options)
    assert run.code == 0, run.output
    first, _ = translate(source, model, killed, *options, ranks=2, die_after=1)
    assert first.code == -signal.SIGKILL and not killed.exists()
    before = kept_keys(killed)
    assert 0 < len(before) < 11
    (run,) = translate(source, model, killed, *options)
    assert run.code == 0, run.output
    assert f"{len(before)} of them translated before\n" in run.output
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(kept_keys(killed)) == sorted(kept_keys(whole))  # each once
    (again,) = translate(source, model, killed, *options)
    assert "11 different sentences, 11 of them translated before\n" in again.output
    assert "translated in" not in again.output and killed.read_bytes() == whole.read_bytes()
    reversed_lines = write(tmp_path / "r.txt", *reversed(source.read_text().splitlines()))
    other = tmp_path / "r.jsonl"
    (run,) = translate(reversed_lines, model, other, *options)
    assert rows_of(other)[::-1] == rows_of(whole)
    (run,) = translate(source, model, other, *options[:-1], "4")
    assert run.code == 0 and other.read_bytes() != whole.read_bytes()  # another seed


@pytest.mark.parametrize(
    "change, said",
    [
        ("missing", "there is no model"),
        ("weights", "model.safetensors cannot be read: it is cut short or damaged"),
        ("template", "the model's tokenizer has no chat template"),
        ("adapter", "there is no LoRA adapter"),
        ("name", "line 1: there is a candidate of x already"),
        ("context", "the model's context of 512 tokens is too short"),
        ("tokens", "300 embeddings; take the tokenizer that belongs to the model"),
    ],
)
def test_what_a_model_lacks_is_said(tmp_path: Path, model: Path, change: str, said: str) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    row = {"language_pair": "en-de", "source": "One.", "candidates": {"x": "Eins."}}
    rows = write(tmp_path / "rows.jsonl", json.dumps(row))
    options = []
    if change == "missing":
        copy = tmp_path / "nowhere"
    elif change == "weights":
        (copy / "model.safetensors").write_bytes(b"no weights")
    elif change == "template":
        (copy / "chat_template.jinja").unlink()
        options = ["--prompt", "gpt4"]
    elif change == "adapter":
        options = ["--adapter", str(tmp_path / "nowhere")]
    elif change == "name":
        options = ["--name", "x"]
    elif change == "tokens":
        copy = save_tiny_model(tmp_path / "small", vocab_size=300)
    else:
        options = ["--max-new-tokens", "512"]
    output = tmp_path / "out.jsonl"
    arguments = [0, "--input", str(rows), "--output", str(output), "--model", str(copy)]
    (run,) = launch.on_ranks(run_on_rank, [*arguments, *GREEDY, *options])
    assert run.code == 2 and "Traceback" not in run.output, run.output
    assert said in run.output.splitlines()[-1] and not output.exists()
    assert not kept_keys(output)  # nothing was translated


def test_the_command_with_padding_beyond_the_embedding(
    tmp_path: Path, model: Path, source: Path
) -> None:
    outputs = []
    for folder in (model, with_padding(model, tmp_path / model.name, "tokenizer")):
        outputs.append(tmp_path / f"{len(outputs)}.jsonl")
        (run,) = translate(source, folder, outputs[-1], *GREEDY)
        assert run.code == 0, run.output
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
