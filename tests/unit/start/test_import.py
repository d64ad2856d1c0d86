"""`cpo-ds import`: recipes from the files of TRL, ALMA and LLaMA-Factory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from foreign_configs import ALMA_SCRIPT, LLAMA_FACTORY_FILE, TRL_SCRIPT, write_all

from cpo_ds.cli import main
from cpo_ds.config import Config
from cpo_ds.recipe import load_config
from cpo_ds.start.shell_script import read_command


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path)


def imported(trainer: str, file: str | dict[str, Any], *options: str) -> Config:
    if isinstance(file, dict):
        Path("settings.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
        file = "settings.yaml"
    assert main(["import", trainer, file, "--force", *options]) == 0
    return load_config(["--config", "recipe.yaml"])[0]


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(["import", *command]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and said.startswith("cpo_ds: error: ") and said.endswith(".")
    return said


def test_a_script_of_alma(capsys: pytest.CaptureFixture[str]) -> None:
    config = imported("alma", "alma/runs/cpo.sh", "--rows", "1600")
    shipped, _ = load_config(["--config", "alma-13b-r-lora"])
    said = capsys.readouterr().out

    assert config.model.adapter == shipped.model.adapter and config.lora is None
    assert config.model.adapter_mode == "continue"
    assert config.optim == shipped.optim and config.loss == shipped.loss
    assert config.data.directions == ["de-en", "cs-en", "en-de"]
    for name in ("format", "path", "scorer", "max_tokens", "max_prompt_tokens"):
        assert getattr(config.data, name) == getattr(shipped.data, name)
    assert config.batch.pairs == 16  # 2 x 1 x the 8 processes of accelerate's file
    assert config.logging.every_steps == 5  # 0.05 of 100 steps
    assert (config.deepspeed, config.output_dir) == ("zero2", "./alma-cpo")
    assert "take 128" in said and "bash ./evals/eval_generation.sh --folder" in said
    assert "- use_fast_tokenizer False: " in said and "ignore_pad_token_for_loss: " in said


def test_a_script_of_trl(capsys: pytest.CaptureFixture[str]) -> None:
    config = imported("trl", "trl.sh")
    said = capsys.readouterr().out
    assert config.batch.pairs == 32 and config.train.max_steps == 1000
    assert (config.optim.warmup_ratio, config.optim.schedule) == (0.15, "linear")
    assert config.lora is not None and config.lora.target_modules == ["q_proj", "k_proj"]
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (16, 16.0, 0.0)
    assert config.data.add_bos == "always" and config.logging.tensorboard
    assert "- optim rmsprop: every run here takes AdamW" in said
    assert "- frobnicate 3: no setting of this name is known" in said
    assert "no_remove_unused_columns: " in said and "- eval_steps 500: " in said
    assert config.logging.trackers == ["wandb"] and "- report_to" not in said


def test_a_file_of_llama_factory(capsys: pytest.CaptureFixture[str]) -> None:
    config = imported("llama-factory", "lf.yaml", "--gpus", "2")
    said = capsys.readouterr().out
    assert config.batch.pairs == 16 and config.train.epochs == 3
    assert (config.loss.name, config.loss.reference) == ("dpo", "adapter")
    assert config.lora is not None and config.lora.target_modules == "all-linear"
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 16.0, 0.0)
    assert (config.optim.learning_rate, config.optim.schedule) == (5e-6, "cosine")
    assert (config.data.max_tokens, config.data.path) == (2048, "dpo_en_demo.jsonl")
    for name in ("template llama3", "max_samples 1000", "trust_remote_code True", "dataset"):
        assert f"- {name}" in said
    assert "set data.path in it" in said


@pytest.mark.parametrize(
    ("trainer", "file"),
    [("alma", "alma/runs/cpo.sh"), ("trl", "trl.sh"), ("llama-factory", "lf.yaml")],
)
def test_every_setting_is_in_the_recipe_or_in_the_list(trainer: str, file: str) -> None:
    imported(trainer, file)
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    values = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(" # " in line or line.endswith(":") for line in values)
    if file.endswith(".yaml"):
        names = list(yaml.safe_load(LLAMA_FACTORY_FILE))
    else:
        script = {"alma": ALMA_SCRIPT, "trl": TRL_SCRIPT}[trainer]
        names = list(read_command(script, file).options)
    taken = {"stage", "finetuning_type", "use_peft", "gradient_accumulation_steps",
             "evaluation_strategy", "save_strategy", "tokenizer_name"}  # fmt: skip
    assert len(names) >= 18 and not [
        name for name in names if name not in text and name not in taken
    ]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, ("cpo", 1.0)),
        ({"cpo_alpha": 0}, ("cpo", 0.0)),
        ({"loss_type": "simpo"}, ("cpo-simpo", 1.0)),
        ({"loss_type": "simpo", "cpo_alpha": "0"}, ("simpo", 1.0)),
        ({"loss_type": "alphapo"}, ("simpo", 1.0)),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, ("ipo", 1.0)),
        ({"loss_type": "hinge"}, ("hinge", 1.0)),
        ({"relax_cofficient_1": 0.8}, ("arpo", 1.0)),
    ],
)
def test_objectives_of_trl(settings: dict[str, Any], wanted: tuple[str, float]) -> None:
    loss = imported("trl", {"learning_rate": 1e-5} | settings).loss
    assert (loss.name, loss.alpha) == wanted


def test_names_that_mean_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    config = imported("trl", {"beta": 0.2, "alpha": 0.5, "cpo_alpha": 0.3, "max_length": None})
    said = capsys.readouterr().out
    assert config.loss.alpha == 0.3 and "- alpha 0.5: there is no AlphaPO" in said
    assert config.data.max_tokens == 4096 and "micro-batch" in said


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"pref_loss": "orpo"}, "cpo"),
        ({"pref_loss": "simpo"}, "simpo"),
        ({"pref_loss": "simpo", "pref_ftx": 1.0}, "cpo-simpo"),
        ({"pref_ftx": 0.5}, "dpo-nll"),
        ({"pref_loss": "ipo"}, "ipo"),
        ({"pref_loss": "kto_pair"}, "cpo"),
        ({"finetuning_type": "full"}, "dpo"),
        ({"adapter_name_or_path": "owner/adapter"}, "dpo"),
        ({"quantization_bit": 4}, "dpo"),
    ],
)
def test_objectives_of_llama_factory(
    settings: dict[str, Any], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = imported("llama-factory", yaml.safe_load(LLAMA_FACTORY_FILE) | settings)
    said = capsys.readouterr().out
    assert config.loss.name == wanted
    if "pref_ftx" in settings:
        assert config.loss.nll_reduction == "pair" and config.loss.alpha == settings["pref_ftx"]
    if settings.get("pref_loss") in ("orpo", "kto_pair", "ipo"):
        assert f"- pref_loss {settings['pref_loss']}: " in said


def test_numbers_of_steps_become_shares_only_if_the_rows_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"warmup_steps": 7, "num_train_epochs": 1.5, "learning_rate": "1e-4"}
    config = imported("trl", settings, "--gpus", "2", "--rows", "1000")
    assert (config.batch.pairs, config.train.epochs, config.train.max_steps) == (16, 2, 95)
    assert config.optim.warmup_ratio == pytest.approx(7 / 95, abs=1e-6)
    capsys.readouterr()
    assert imported("trl", settings).optim.warmup_ratio == 0.1
    said = capsys.readouterr().out
    assert "optim.warmup_ratio: 0.1: warmup_steps is 7" in said and "it is rounded up" in said


def test_nothing_of_a_script_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "touch ran; LR=$(touch ran; echo 1e-3)\nexport GPUS=2\n"
        "torchrun --nproc_per_node $GPUS --nnodes 2 cpo.py --learning_rate $LR "
        "--per_device_train_batch_size 4 --output_dir `touch ran` && touch ran\n"
    )
    Path("evil.sh").write_text(script, encoding="utf-8")
    config = imported("trl", "evil.sh")
    said = capsys.readouterr().out
    assert not Path("ran").exists()
    assert config.batch.pairs == 16 and config.optim.learning_rate == 1e-6
    assert "- learning_rate: $" in said and "known only when the script runs" in said


@pytest.mark.parametrize(
    "script",
    [
        "ARGS=\"--beta 0.3 --output_dir 'a b'\"\npython cpo.py $ARGS --seed 7\n",
        'ARGS=(\n  --beta 0.3  # b\n  --output_dir "a b"\n)\npython c.py "${ARGS[@]}" --seed 7\n',
        "python cpo.py \\\r\n --beta=0.3 \\\r\n --output-dir 'a b' --seed 7\r\n",
        "cd x && A=1 python -m torch.distributed.run c.py --beta 0.3 --output_dir 'a b' --seed 7",
        "accelerate launch -m my.cpo --beta 0.3 --output_dir 'a b' --seed 7; echo --done",
        "--beta 0.3 --output_dir 'a b' --seed 7",
    ],
)
def test_ways_to_write_a_command(script: str) -> None:
    Path("cpo.sh").write_bytes(script.encode())
    config = imported("trl", "cpo.sh")
    assert (config.loss.beta, config.output_dir, config.train.seed) == (0.3, "a b", 7)


def test_a_command_that_names_a_file() -> None:
    command = "FORCE_TORCHRUN=1 llamafactory-cli train lf.yaml learning_rate=1e-5 seed=7\n"
    Path("lf.sh").write_text(command, encoding="utf-8")
    config = imported("llama-factory", "lf.sh")
    assert (config.optim.learning_rate, config.train.seed, config.lora is None) == (1e-5, 7, False)


def test_a_name_over_two_lines_stays_in_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"beta": 0.1, "a\nloss: {beta: 9}\n#": 1, "output_dir": "a # b", "optim": "x\ny: 1"}
    config = imported("trl", settings)
    assert (config.loss.beta, config.output_dir) == (0.1, "a # b")
    assert "- a loss: {beta: 9} # 1: no setting of this name" in capsys.readouterr().out


def test_a_deepspeed_file_gives_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    Path("ds.json").write_text(json.dumps(stages), encoding="utf-8")
    assert imported("trl", {"beta": 0.1, "deepspeed": "ds.json"}).deepspeed == "zero3-offload"
    assert imported("trl", {"beta": 0.1, "deepspeed": "gone.json"}).deepspeed == "auto"
    assert "no such file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trainer", "name", "text", "wanted"),
    [
        ("trl", "gone.yaml", None, "there is no file gone.yaml"),
        ("trl", "alma", None, "is a folder"),
        ("trl", "empty.yaml", "\n", "is empty"),
        ("trl", "list.yaml", "- beta\n", "holds no settings"),
        ("trl", "tab.yaml", "beta:\n\t0.1\n", "is not valid YAML: line 2"),
        ("trl", "cut.json", '{"beta": 0.1', "is not valid JSON"),
        (
            "trl",
            "train.py",
            "CPOConfig(beta=0.1)\n",
            "is a Python script, which import does not run",
        ),
        ("trl", "echo.sh", "echo hello\n", "starts no command with options"),
        ("trl", "open.sh", "python cpo.py --beta '0.1\n", "close the quotes"),
        ("trl", "other.yaml", "colour: red\n", "sets nothing that trl knows"),
        ("trl", "word.yaml", "learning_rate: fast\n", "learning_rate must be a number"),
        ("trl", "nan.yaml", "beta: .nan\n", "beta must be a finite number"),
        ("trl", "zero.yaml", "learning_rate: 0\n", "optim.learning_rate"),
        ("trl", "half.yaml", "per_device_train_batch_size: 1.5\n", "must be a whole number"),
        ("trl", "yes.yaml", "bf16: maybe\n", "bf16 must be true or false"),
        ("trl", "lf.yaml", None, "take cpo-ds import llama-factory lf.yaml"),
        ("trl", "alma/configs/train_bf16.yaml", None, "configuration of accelerate or DeepSpeed"),
        ("alma", "sft.sh", "python run_llmmt.py --mmt_data_path d --beta 1\n", "no cpo_data_path"),
        ("llama-factory", "sft.yaml", "stage: sft\n", "stage is sft"),
        ("llama-factory", "f.yaml", "stage: dpo\nfinetuning_type: oft\n", "finetuning_type: oft"),
    ],
)
def test_wrong_files(
    trainer: str, name: str, text: str | None, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        Path(name).write_text(text, encoding="utf-8")
    assert wanted in refused(capsys, trainer, name)
    assert not Path("recipe.yaml").exists()


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--gpus two" in refused(capsys, "trl", "trl.sh", "--gpus", "two")
    imported("trl", "trl.sh")
    capsys.readouterr()
    assert "exists already" in refused(capsys, "trl", "trl.sh")
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no text in UTF-8" in refused(capsys, "trl", "bytes.yaml")
