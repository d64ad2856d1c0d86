"""Commands end with exit code 2 and one paragraph for base folders that cannot be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bad_inputs import assert_one_paragraph
from doors.folder_changes import GATE, added, code_of_its_own, quantized
from doors.folder_kinds import REFUSED
from export_runs import LORA
from exported import copy_run
from helpers import save_tiny_model
from launch import deepspeed, main_on_ranks, write_recipe
from model_files import settings
from translation_runs import translate, write

from cpo_ds import cli

BIAS = "model.layers.0.self_attn.q_proj.bias"


def train(folder: Path, **sections: Any) -> list[Any]:
    recipe = write_recipe(folder.parent, settings(folder, train={"max_steps": 1}, **sections))
    return ["--config", recipe, "--output_dir", folder.parent / "out"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def test_the_launcher_at_stage_3(folder: Path) -> None:
    added(BIAS, 32)(folder)
    done = deepspeed(*train(folder, deepspeed="ds_configs/zero3.json"))
    assert_one_paragraph(done, str(folder), BIAS, "config.json")
    assert not (folder.parent / "out" / "config.yaml").exists()


@pytest.mark.parametrize(
    "kind",
    [
        "safetensors and pickles that differ",
        "a pickle with code",
        "GPTQ",
        "a run's folder",
        "config.json is a list",
        "config.json with unknown positions",
        "code of its own, of another type",
    ],
)
def test_training(folder: Path, kind: str) -> None:
    change, said = REFUSED[kind]
    change(folder)
    (done,) = main_on_ranks(*train(folder))
    assert_one_paragraph(done, said, str(folder))


def test_code_is_not_run_and_the_log_says_so(folder: Path) -> None:
    code_of_its_own("llama")(folder)
    (done,) = main_on_ranks(*train(folder, lora=LORA))
    assert done.code == 0, done.output
    assert "is not run: transformers' own llama is used" in done.output
    assert not (folder / "code-was-run").exists()


def test_an_export_names_no_code_that_it_lacks(folder: Path) -> None:
    code_of_its_own("llama")(folder)
    (done,) = main_on_ranks(*train(folder))
    assert done.code == 0, done.output
    assert "auto_map" not in (folder.parent / "out" / "export" / "config.json").read_text()


@pytest.mark.parametrize("kind", ["a shard that is cut short", "an empty folder", "no tokenizer"])
def test_candidates(folder: Path, kind: str) -> None:
    change, said = REFUSED[kind]
    change(folder)
    source = write(folder.parent / "source.txt", "the old house")
    done, *_ = translate(source, folder, folder.parent / "out.jsonl", ranks=2)
    assert_one_paragraph(done, said, str(folder))


def test_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe(folder.parent, settings(folder)))
    assert cli.main(["plan", "--config", recipe, "--device", "A100-80GB"]) == 0
    quantized(quant_method="awq", bits=4)(folder)
    assert cli.main(["plan", "--config", recipe, "--device", "A100-80GB"]) == 2
    assert "names the method awq" in capsys.readouterr().err


def test_a_merge(export_runs: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    run, base = copy_run(export_runs["LoRA, untied, ZeRO-3"], tmp_path)
    merge = ["export", str(run), "--merge", "--output"]
    assert cli.main([*merge, str(tmp_path / "fine")]) == 0
    added(GATE.removeprefix("model."), 48, 32)(base)
    assert cli.main([*merge, str(tmp_path / "refused")]) == 2
    assert "two weights that transformers reads" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
