"""`cpo-ds translate`: inputs, models by folder, and commands that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from translation_runs import write, write_json_rows

from cpo_ds import cli
from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.translate.inputs import read_input
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.model_choice import ModelChoice, choose_model


def read(**given: Any) -> Sources:
    nothing = dict.fromkeys(("path", "text", "test_set", "pair", "references"))
    return read_input(**nothing | given)


# Inputs.


@pytest.mark.parametrize("as_list", [False, True])
def test_folders_of_alma_are_read(tmp_path: Path, as_list: bool) -> None:
    """Each direction has a file; the direction is in its name, the texts under its codes."""
    folder = tmp_path / "human_written_data"
    for direction, texts in {
        "de-en": [("Eins.", "One."), ("", "x"), ("Zwei.", "")],
        "en-de": [("Three.", "Drei.")],
    }.items():
        codes = direction.split("-")
        rows = [{"translation": dict(zip(codes, pair, strict=True))} for pair in texts]
        file = folder / "deen" / f"test.{direction}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(rows)] if as_list else [json.dumps(row) for row in rows]
        write(file, *lines)
    write(folder / "deen" / "train.de-en.json", "no test set")
    sources = read(path=folder)
    assert sources.skipped == {"empty source": 1}
    assert [row.values for row in sources.rows] == [
        {"language_pair": "de-en", "source": "Eins.", "reference": "One."},
        {"language_pair": "de-en", "source": "Zwei."},
        {"language_pair": "en-de", "source": "Three.", "reference": "Drei."},
    ]
    assert read(path=folder, pair="en-de").rows == sources.rows[2:]
    assert read(path=folder / "deen" / "test.en-de.json").rows == sources.rows[2:]
    with pytest.raises(UserError, match=r"no test file of --pair cs-en; it has de-en, en-de\."):
        read(path=folder, pair="cs-en")


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "test.de-en.json: not valid JSON"),
        ('{"translation": {"de": "x"}}\n{"translation": {"en": "x"}}', "line 2: needs tr"),
        ('{"source": "x"}', r"line 1: needs translation\.de and translation\.en"),
        ("[3]", "row 1: needs translation.de"),
        ('{"translation": {"de": " ", "en": "x"}}', "has no sentence"),
        ("", "has no sentence"),
    ],
)
def test_damaged_files_of_alma_are_said(tmp_path: Path, line: str, said: str) -> None:
    file = write(tmp_path / "test.de-en.json", line)
    with pytest.raises(UserError, match=said):
        read(path=file)


def test_a_sentence_of_the_command_line() -> None:
    (row,) = read(text="Hallo.", pair="de-en").rows
    assert row.values == {"language_pair": "de-en", "source": "Hallo."}
    for given, said in (
        ({"text": "x"}, "--text needs --pair"),
        ({"text": " ", "pair": "de-en"}, "--text is empty"),
        ({"text": "x", "pair": "german"}, "--pair: unknown direction"),
    ):
        with pytest.raises(UserError, match=said):
            read(**given)


# Models.


def json_file(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def test_what_a_folder_stands_for(tmp_path: Path) -> None:
    base, adapter, run = tmp_path / "base", tmp_path / "lora", tmp_path / "run"
    json_file(base / "config.json", {})
    assert choose_model(str(base), None) == ModelChoice(str(base))
    assert choose_model(str(base), str(adapter)) == ModelChoice(str(base), str(adapter))
    json_file(adapter / "adapter_config.json", {"base_model_name_or_path": str(base)})
    assert choose_model(str(adapter), None) == ModelChoice(str(base), str(adapter))
    with pytest.raises(UserError, match="is an adapter, and so is --adapter"):
        choose_model(str(adapter), str(adapter))
    # A run without an export, then with one: its recipe belongs to it.
    recipe = {
        "model": {"name_or_path": str(base), "quantization": "nf4"},
        "lora": {"rank": 4},
        "data": {"format": "sample", "add_bos": "always", "prompt_style": "chat"},
    }
    values = Config.model_validate(recipe).model_dump(mode="json")
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no export; make one .*: cpo-ds export "):
        choose_model(str(run), None)
    with pytest.raises(UserError, match=r"is a checkpoint; make an export .*step-00000002"):
        choose_model(str(run / "checkpoints" / "step-00000002"), None)
    settings = {"base_model_name_or_path": str(base)}
    json_file(run / "export" / "adapter_config.json", settings)
    for name in (run, run / "export"):
        choice = choose_model(str(name), None)
        assert (choice.model, choice.adapter) == (str(base), str(run / "export"))
        assert choice.recipe is not None and choice.recipe.data.add_bos == "always"
        assert choice.quantization == "nf4"
    json_file(run / "export" / "adapter_config.json", {})
    with pytest.raises(UserError, match="does not name the adapter's base model"):
        choose_model(str(run), None)


# Commands that are refused, before anything is loaded.


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "say what to translate by one of --input, --text and --test-set."),
        (["--input", "{rows}", "--text", "x"], "not by --input and --text."),
        (["--input", "{rows}"], "give --output"),
        (["--input", "{rows}", "--output", "{rows}"], "is the input"),
        (["--input", "{rows}", "--output", "o.json"], "must end in .jsonl"),
        (["--input", "{rows}", "--output", "o.jsonl", "--temperature", "1"], "without --samples"),
        (["--text", "x", "--samples", "2", "--beam", "5"], "leave --beam out"),
        (["--text", "x", "--samples", "1", "--rerank", "mbr"], "at least --samples 2"),
        (["--text", "x", "--rerank", "mbr"], "--rerank chooses among samples"),
        (["--text", "x", "--samples", "2", "--rerank", "kiwi"], "--rerank kiwi needs --output"),
        (
            ["--input", "{rows}", "--output", "o.jsonl", "--samples", "2", "--rerank", "chrf"],
            "--rerank chrf would compare with the reference; give mbr",
        ),
        (["--text", "x", "--beam", "0"], "--beam is 0; give a number of at least 1"),
        (["--text", "x", "--samples", "2", "--top-p", "1.5"], "--top-p is 1.5"),
        (["--text", "x", "--samples", "2", "--temperature", "0"], "--temperature must be above 0"),
        (["--text", "x", "--ranks", "2"], "leave --ranks, --hostfile and --shard out"),
        (["--text", "x", "--shard"], "leave --ranks, --hostfile and --shard out"),
        (["--text", "x", "--references", "{rows}"], "--references belongs to --input"),
        (["--test-set", "wmt22:en-de", "--pair", "en-de", "--output", "o.jsonl"], "leave --pair"),
        (["--text", "x", "--name", " "], "--name gives the system no name"),
        (["--text", "x", "--chat-template-kwargs", "{{}}1"], "write a JSON object"),
        (["--text", "x", "--prompt", "few-shot"], "--prompt few-shot needs --examples"),
        (["--text", "x", "--language", "xx"], "write CODE=NAME"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    rows = write_json_rows(tmp_path / "r.jsonl", [{"language_pair": "en-de", "source": "x"}])
    given = [option.format(rows=rows) for option in options]
    assert cli.main(["translate", "--model", "m/m", "--adapter", "a/a", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error
