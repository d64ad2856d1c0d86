"""DPO: the losses, rewards, gradients and the curve of TRL's DPOTrainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from helpers import save_tiny_model, tiny_tokenizer
from launch import main_on_ranks
from merging_tokenizer import NO_LIMIT
from runs import lines, small_recipe
from trl_numbers import TrlNumbers, largest_sketch_error, sketch

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import epoch_order, step_totals
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.load import load_policy, load_reference
from cpo_ds.recipe import parse_config
from cpo_ds.schema import PreferenceRow

ROWS = [  # prompts end in a space: TRL cuts tokens that merge over the boundary otherwise
    PreferenceRow(f"Translate this: {source} \nGerman: ", chosen, (rejected,), "", f"row {number}")
    for number, (source, chosen, rejected) in enumerate(
        [
            ("the old house", "das alte Haus", "das alte Haus da"),
            ("42", "42", "43 und mehr als das"),
            ("by the sea", "am Meer", "ans Meer"),
            ("Ahoj", "Hallo, Welt!", "zh 你好"),
        ]
    )
]
SETTINGS = [  # TRL's and ours
    ({}, {"name": "dpo"}),
    ({"beta": 0.7}, {"name": "dpo", "beta": 0.7}),
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
     {"name": "dpo-nll", "alpha": 0.5}),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy and a reference that differ."""
    folder = tmp_path_factory.mktemp("dpo")
    sizes = {"max_position_embeddings": 4096}
    return {
        name: save_tiny_model(folder / name, seed=seed, **sizes)
        for name, seed in (("policy", 0), ("reference", 1))
    }


def trl_trainer(
    policy: Path, reference: Path | None, rows: list[PreferenceRow], **settings: Any
) -> Any:
    """TRL's DPOTrainer. Raises ImportError if TRL is not installed or has none."""
    from trl import DPOConfig, DPOTrainer

    def load(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    arguments = DPOConfig(
        output_dir=str(policy / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_length=100_000, report_to="none", disable_tqdm=True, save_strategy="no",
        disable_dropout=True, **settings,
    )  # fmt: skip
    tokenizer = tiny_tokenizer()
    # TRL's CPOTrainer, and we, begin with the tokenizer's first token; its DPOTrainer does not.
    texts = [
        {"prompt": tokenizer.bos_token + r.prompt, "chosen": r.chosen, "rejected": r.rejected[0]}
        for r in rows
    ]
    return DPOTrainer(
        model=load(policy),
        ref_model=load(reference) if reference else None,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer,
    )


def our_config(folder: Path, loss: dict[str, Any]) -> Any:
    model = {"name_or_path": str(folder), "dtype": "float32"}
    return parse_config({"model": model, "data": {"format": "sample"}, "loss": loss}, "test")


@pytest.mark.parametrize(("theirs", "ours"), SETTINGS, ids=["plain", "beta", "nll"])
def test_trl_gives_the_same_loss_rewards_and_gradients(
    models: dict[str, Path],
    theirs: dict[str, Any],
    ours: dict[str, Any],
    trl_numbers: TrlNumbers,
) -> None:
    gradients: dict[str, torch.Tensor] = {}

    def compute() -> dict[str, Any]:
        trainer = trl_trainer(models["policy"], models["reference"], ROWS, **theirs)
        loss = trainer.compute_loss(
            trainer.model, trainer.data_collator(list(trainer.train_dataset))
        )
        loss.backward()
        metrics = trainer._metrics["train" if trainer.model.training else "eval"]
        gradients.update((name, p.grad) for name, p in trainer.model.named_parameters())
        return {
            "loss": loss.item(),
            "rewards": [float(metrics[f"rewards/{side}"][-1]) for side in ("chosen", "rejected")],
            "gradients": sketch(gradients.items()),
        }

    # Rewards are small differences of log-probs.
    expected = trl_numbers.of(f"dpo: {theirs}", compute, tolerance=1e-4)
    config = our_config(models["policy"], ours)
    policy, _ = load_policy(config, device=torch.device("cpu"))
    reference = load_reference(our_config(models["reference"], ours), device=torch.device("cpu"))
    pairs, _ = tokenize_rows(ROWS, tiny_tokenizer(), **NO_LIMIT)
    everything = tuple(range(len(pairs)))
    packed = pack(pairs, everything)
    logps = packed.logps(*policy(packed), *reference(packed))
    terms = pair_terms(logps, config.loss)
    loss = step_share(terms, step_totals([[everything]], pairs), config.loss)
    loss.backward()

    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert loss.item() != pytest.approx(np.log(2), rel=1e-3)  # the models do differ
    for rewards, value in zip(
        (terms.rewards_chosen, terms.rewards_rejected), expected["rewards"], strict=True
    ):
        # A reward is the small difference of two log-probs, each of which holds to 1e-5.
        close = 1e-5 * config.loss.beta * logps.chosen.abs().max().item()
        assert rewards.mean().item() == pytest.approx(value, abs=close)
    mine = {name: p.grad for name, p in policy.causal_lm.named_parameters()}
    assert largest_sketch_error(sketch(mine.items()), expected["gradients"]) < 1e-3
    for name, gradient in gradients.items():  # TRL is installed
        assert (mine[name] - gradient).norm() / gradient.norm() < 1e-3, name
    assert all(p.grad is None for p in reference.parameters())


def test_trl_trains_along_the_same_curve(
    models: dict[str, Path], tmp_path: Path, trl_numbers: TrlNumbers
) -> None:
    """Four steps of TRL's own trainer; a reference that moved along would stay at log 2."""
    settings = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 1.0}
    seed, steps = 7, 4
    rows = [row for _ in range(steps) for row in ROWS]
    order = epoch_order(len(rows), seed, 0)

    def compute() -> list[float]:
        trainer = trl_trainer(
            models["policy"], None, [rows[i] for i in order], **settings, max_steps=steps,
            per_device_train_batch_size=len(ROWS), train_sampling_strategy="sequential",
            lr_scheduler_type="constant", logging_steps=1, optim="adamw_torch_fused",
        )  # fmt: skip
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    # TRL rounds what it logs to four digits.
    theirs = trl_numbers.of("dpo: curve", compute, tolerance=2e-4)
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected[0]})
            for r in rows
        )
    )
    recipe = small_recipe(
        tmp_path,
        stage=0,
        model={"name_or_path": str(models["policy"])},
        data={"format": "pairs", "path": str(data), "directions": None, "eval_fraction": 0.0},
        loss={"name": "dpo"},
        batch={"pairs": len(ROWS)},
        train={"max_steps": None, "seed": seed, "eval_every_steps": None},
        optim=settings | {"schedule": "constant", "warmup_ratio": 0.0},
        checkpoint={"export": False, "every_steps": None},
    )
    output = tmp_path / "run"
    (done,) = main_on_ranks("--config", recipe, "--output_dir", output)
    assert done.code == 0, done.output
    ours = [line["loss"] for line in lines(output)]
    assert len(ours) == len(theirs) == steps and ours[-1] < 0.69
    assert ours == pytest.approx(theirs, abs=2e-4)  # TRL rounds what it logs to four digits
