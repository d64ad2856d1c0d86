"""`cpo-ds init` and `cpo-ds recipes`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from preference_data import ALMA, PAIR, TRIPLET, write

from cpo_ds.cli import main
from cpo_ds.config import Config
from cpo_ds.recipe import load_config
from cpo_ds.shipped import RECIPES
from cpo_ds.start.init_command import batch_pairs
from cpo_ds.start.recipe_text import Value, as_yaml, rewritten

X_ALMA = {"source": "Hi", "chosen": "Hallo", "reject": "Hal", "directions": "en-de"}
CHAT = {side: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": side}]
        for side in ("chosen", "rejected")}  # fmt: skip
LOW_SCORES = TRIPLET | {"scores": {"chrf": dict.fromkeys(TRIPLET["candidates"], 1.0)}}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)  # of nvidia-smi: no GPU here


def made(rows: list[dict[str, Any]], *options: str) -> Config:
    write(Path("rows.jsonl"), rows)
    command = ["init", "--model", "owner/name", "--data", "rows.jsonl", "--output", "mine.yaml"]
    assert main([*command, *options]) == 0
    return load_config(["--config", "mine.yaml"])[0]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (PAIR, "pairs"),
        (CHAT, "pairs"),
        (X_ALMA, "x-alma"),
        ({"translation": ALMA}, "alma-r"),
        (TRIPLET, "triplets"),
        (LOW_SCORES, "triplets"),
    ],
)
def test_the_format_is_that_of_the_rows(row: dict[str, Any], wanted: str) -> None:
    config = made([row] * 3)
    assert config.data.format == wanted and config.data.path == "rows.jsonl"
    assert config.data.scorer == ("chrf" if row is LOW_SCORES else "kiwi_xcomet")
    assert config.output_dir == "runs/mine"


def test_it_differs_from_the_recipe_for_own_pairs_in_little() -> None:
    config, (shipped, _) = made([PAIR] * 2000), load_config(["--config", "own-pairs"])
    for name in ("loss", "optim", "lora", "train", "checkpoint", "deepspeed", "logging"):
        assert getattr(config, name) == getattr(shipped, name), name
    assert config.batch.pairs == 64 and config.data.eval_fraction == 0.05
    text = Path("mine.yaml").read_text()
    assert "path: rows.jsonl # 2,000 rows" in text and "# bfloat16 on GPUs" in text


def test_all_parameters_get_a_smaller_learning_rate_and_no_adapter() -> None:
    config = made([PAIR], "--method", "full", "--run", "runs/x")
    assert config.lora is None and config.optim.learning_rate == 2e-6
    assert config.output_dir == "runs/x"


def test_the_next_commands_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    made([PAIR], "--gpus", "4", "--device", "h100")
    printed = capsys.readouterr().out
    assert "cpo-ds plan --config mine.yaml --device H100 --gpus 4" in printed
    assert "cpo-ds train --config mine.yaml --gpus 4\n" in printed


def test_nothing_is_overwritten_without_being_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("mine")
    write(Path("rows.jsonl"), [PAIR])
    init = ["init", "--model", "m", "--data", "rows.jsonl", "--output", "mine.yaml"]
    copy = ["recipes", "own-pairs", "--copy", "mine.yaml"]
    for command in (init, copy):
        assert main(command) == 2 and "exists already" in capsys.readouterr().err
        assert Path("mine.yaml").read_text() == "mine"
    assert main([*copy, "--force"]) == 0 == main([*init, "--force"])
    assert load_config(["--config", "mine.yaml"])[0].model.name_or_path == "m"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model is missing; give it, as in cpo-ds init --model NAME --data PATH"),
        (["--model", "m"], "--data is missing"),
        (["--model", "./m"], "there is no model ./m"),
        (["--model", ".", "--data", "d"], ". holds no config.json"),
        (["--model", "m", "--data", "no.jsonl"], "'no.jsonl' does not exist"),
        (["--model", "m", "--data", "owner/name"], "say its format by --format"),
        (["--model", "m", "--data", "odd.jsonl"], "no format fits the fields text, label"),
        (["--model", "m", "--data", "near.jsonl"], "as data.format: pairs, near.jsonl, line 1: "),
        (["--model", "m", "--data", "near.jsonl", "--format", "x-alma"], "field directions is"),
        (["--model", "m", "--data", "good.jsonl", "--gpus", "0"], "0 is no number of GPUs"),
        (["--model", "m", "--data", "good.jsonl", "--method", "lroa"], "invalid choice: 'lroa'"),
        (["--model", "m", "--data", "d", "--device", "H1000"], "there is no device H1000"),
        (["--model", "m", "--data", "good.jsonl", "--output", "mine.txt"], "must end in .yaml"),
    ],
)
def test_what_cannot_be_used_is_said(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write(Path("odd.jsonl"), [{"text": "a", "label": 1}])
    write(Path("near.jsonl"), [{"prompt": "a", "chosen": "b"}])
    write(Path("good.jsonl"), [PAIR])
    assert main(["init", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(Path().glob("*.yaml"))


def test_a_published_data_set_needs_no_download() -> None:
    command = ["init", "--model", "m", "--data", "haoranxu/ALMA-R-Preference"]
    assert main(command) == 0
    assert load_config(["--config", "recipe.yaml"])[0].data.format == "alma-r"


def test_it_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("rows.jsonl"), [PAIR])
    ours, its = os.openpty()
    command = [sys.executable, "-m", "cpo_ds.cli", "init", "--output", "asked.yaml"]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        os.write(ours, b"owner/name\nrosw.jsonl\nrows.jsonl\nboth\nfull\n2\n")
        assert process.wait(timeout=60) == 0
        printed = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "Model to train" in printed and "(lora or full) [lora]: " in printed
    assert "'rosw.jsonl' does not exist" in printed and "there is no method both" in printed
    config, _ = load_config(["--config", "asked.yaml"])
    assert config.model.name_or_path == "owner/name" and config.lora is None
    assert "cpo-ds train --config asked.yaml --gpus 2" in printed


def test_recipes_are_listed_printed_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(RECIPES.names())]] == RECIPES.names()
    assert all(len(line) < 100 for line in lines)
    assert main(["recipes", "demo"]) == 0 == main(["recipes", "demo", "--copy", "."])
    assert capsys.readouterr().out.startswith(Path("demo.yaml").read_text())
    assert main(["recipes", "dmeo"]) == 2 == main(["recipes", "--copy", "x.yaml"])
    assert "(did you mean demo?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1.0e-4"), (2.5e-6, "2.5e-6"), (0.05, "0.05"), ("a b", "a b"), ("1", '"1"'),
     ("a: b #c", '"a: b #c"'), ("", '""'), (["x"], "[x]"), (True, "true"), ("null", '"null"')],
)  # fmt: skip
def test_values_are_written_so_that_yaml_reads_the_same(value: Any, text: str) -> None:
    assert as_yaml(value) == text
    new = rewritten("# old\na:\n  b: 1 # why\nc: 2\n", "new", {"a.d": Value(value)}, ("c",))
    assert new == f"# new\na:\n  b: 1 # why\n  d: {text}\n"


@pytest.mark.parametrize(("rows", "pairs"), [(1, 8), (320, 16), (1000, 32), (10**6, 128)])
def test_few_rows_get_small_steps(rows: int, pairs: int) -> None:
    assert batch_pairs(rows) == pairs
