"""Recipes that `cpo-ds import trl` writes have the settings that TRL itself makes of the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from cpo_ds.cli import main
from cpo_ds.config import Config
from cpo_ds.data.plan import steps_per_epoch
from cpo_ds.losses import PairLogps, nll_weight, pair_terms
from cpo_ds.recipe import load_config
from cpo_ds.run.learning_rate import learning_rate
from cpo_ds.run.trainer import planned_steps
from cpo_ds.start.from_trl import TRL_DEFAULTS

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402

ROWS = 1003
CHOSEN, REJECTED = torch.tensor([-20.0, -35.0, -8.0]), torch.tensor([-25.0, -30.0, -8.5])
LENGTHS = torch.tensor([10, 12, 4]), torch.tensor([9, 12, 5])
CASES: list[dict[str, Any]] = [
    {},
    {"learning_rate": 1e-4, "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 0.01},
    {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5, "num_train_epochs": 1},
    {"lr_scheduler_type": "cosine", "warmup_steps": 13, "weight_decay": 0.1, "adam_beta2": 0.95},
    {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 60},
    {"lr_scheduler_type": "constant", "warmup_steps": 5, "num_train_epochs": 1.5},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.4, "label_smoothing": 0.1},
    {"loss_type": "simpo", "cpo_alpha": 0.0},
    {"loss_type": "ipo", "beta": 0.3, "cpo_alpha": 0.5, "adam_epsilon": 1e-6},
    {"loss_type": "hinge", "label_smoothing": 0.2, "max_grad_norm": 0.3, "seed": 7},
    {"label_smoothing": 0.05, "beta": 0.25, "cpo_alpha": 0.0},
]


def both(settings: dict[str, Any], folder: Path, gpus: int) -> tuple[Config, Any]:
    """The recipe of a file, and the configuration that TRL makes of the same settings."""
    file, recipe = folder / "cpo.yaml", folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"output_dir": "x"} | settings), encoding="utf-8")
    options = ["--gpus", str(gpus), "--rows", str(ROWS), "--output", str(recipe)]
    assert main(["import", "trl", str(file), *options]) == 0
    config, _ = load_config(["--config", str(recipe)])
    return config, CPOConfig(output_dir="x", **({"bf16": False, "use_cpu": True} | settings))


@pytest.mark.parametrize("settings", CASES)
def test_batch_schedule_and_loss_are_those_of_trl(settings: dict[str, Any], tmp_path: Path) -> None:
    config, theirs = both(settings, tmp_path, gpus=2)

    # The batch and the number of steps.
    of_a_step = theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps * 2
    assert config.batch.pairs == of_a_step
    total = planned_steps(config, ROWS)
    epochs = theirs.num_train_epochs * steps_per_epoch(ROWS, of_a_step)
    assert total == (theirs.max_steps if theirs.max_steps > 0 else -(-epochs // 1))

    # The optimizer and the learning rate, whose course is shifted by one step after the warm-up.
    optim = config.optim
    assert (optim.weight_decay, optim.eps) == (theirs.weight_decay, theirs.adam_epsilon)
    assert optim.betas == (theirs.adam_beta1, theirs.adam_beta2)
    assert (optim.max_grad_norm, config.train.seed) == (theirs.max_grad_norm, theirs.seed)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=theirs.learning_rate)
    scheduler = transformers.get_scheduler(
        theirs.lr_scheduler_type, optimizer, theirs.get_warmup_steps(total), total
    )
    for step in range(1, total + 1):
        optimizer.step()
        scheduler.step()  # now at `step`, counted from 0, as ours counts from 1
        rate = learning_rate(step, total, optim)
        shift = 2.0 / max(1, total - theirs.get_warmup_steps(total))
        assert rate == pytest.approx(scheduler.get_last_lr()[0], abs=theirs.learning_rate * shift)

    # The loss of three pairs.
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **vars(theirs))
    of_tokens = theirs.loss_type in ("simpo", "ipo")
    chosen, rejected = (
        (CHOSEN / LENGTHS[0], REJECTED / LENGTHS[1]) if of_tokens else (CHOSEN, REJECTED)
    )
    expected, *_ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    counts = LENGTHS[0], LENGTHS[1][:, None], torch.ones(len(CHOSEN), 1)
    ours = pair_terms(PairLogps(CHOSEN, REJECTED[:, None], *counts), config.loss)
    torch.testing.assert_close(ours.preference, expected)
    assert nll_weight(config.loss) == theirs.cpo_alpha and config.loss.nll_reduction == "token"
    assert config.data.max_tokens == theirs.max_length


@pytest.mark.parametrize("rslora", [False, True])
def test_the_adapter_is_that_of_trl(rslora: bool, tmp_path: Path) -> None:
    settings = {"use_peft": True, "lora_r": 8, "lora_alpha": 24, "lora_target_modules": ["q_proj"],
                "use_rslora": rslora, "lora_dropout": 0.1}  # fmt: skip
    (tmp_path / "m.yaml").write_text(
        yaml.safe_dump(settings | {"disable_dropout": False}), encoding="utf-8"
    )
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["import", "trl", str(tmp_path / "m.yaml"), "--output", recipe]) == 0
    lora = load_config(["--config", recipe])[0].lora
    theirs = trl.get_peft_config(trl.ModelConfig(**settings))
    assert lora is not None and (lora.rank, lora.dropout) == (theirs.r, theirs.lora_dropout)
    scale = theirs.lora_alpha / (theirs.r**0.5 if rslora else theirs.r)
    assert lora.alpha / lora.rank == pytest.approx(scale)
    targets = theirs.target_modules
    assert set(lora.target_modules) == ({targets} if isinstance(targets, str) else set(targets))


def test_the_defaults_are_those_of_trl() -> None:
    theirs: dict[str, Any] = {}
    for kind in (trl.ScriptArguments, trl.ModelConfig, CPOConfig):
        fields = dataclasses.fields(kind)
        theirs |= {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    older = {"warmup_ratio"}  # transformers 5 has it in warmup_steps
    special = {"bf16", "gradient_checkpointing"}  # set after the fields
    different = {
        name: (value, theirs.get(name))
        for name, value in TRL_DEFAULTS.items()
        if name not in older | special and theirs.get(name) != value
    }
    assert not different
    assert CPOConfig(output_dir="x", use_cpu=True, bf16=False).gradient_checkpointing
