"""DPO: the numbers of TRL's DPOTrainer, and one training whatever its reference comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import yaml
from helpers import save_tiny_model, tiny_tokenizer
from launch import main_on_ranks, on_ranks
from runs import LORA, lines, small_recipe
from trl import DPOConfig, DPOTrainer
from workers import training

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import epoch_order, step_totals
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.load import load_policy, load_reference
from cpo_ds.ranks.place import Place
from cpo_ds.recipe import parse_config
from cpo_ds.schema import PairLogps, PreferenceRow

ROWS = [  # prompts end in a space, so that no token merges over the boundary, where TRL cuts others
    PreferenceRow(f"Translate this: {source} \nGerman: ", chosen, rejected, "", f"row {number}")
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
) -> DPOTrainer:
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
        {"prompt": tokenizer.bos_token + r.prompt, "chosen": r.chosen, "rejected": r.rejected}
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
    models: dict[str, Path], theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    trainer = trl_trainer(models["policy"], models["reference"], ROWS, **theirs)
    batch = trainer.data_collator(list(trainer.train_dataset))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    config = our_config(models["policy"], ours)
    policy, _ = load_policy(config, device=torch.device("cpu"))
    reference = load_reference(our_config(models["reference"], ours), device=torch.device("cpu"))
    pairs, _ = tokenize_rows(ROWS, tiny_tokenizer(), max_prompt_tokens=1000, max_tokens=1000)
    everything = tuple(range(len(pairs)))
    packed = pack(pairs, everything)
    counts = (packed.num_chosen_tokens, packed.num_rejected_tokens)
    logps = PairLogps(*policy(packed), *counts, *reference(packed))
    terms = pair_terms(logps, config.loss)
    loss = step_share(terms, step_totals([[everything]], pairs), config.loss)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(np.log(2), rel=1e-3)  # the models do differ
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    for name, rewards in (("chosen", terms.rewards_chosen), ("rejected", terms.rewards_rejected)):
        # A reward is the small difference of two log-probs, each of which holds to 1e-5.
        close = 1e-5 * config.loss.beta * logps.chosen.abs().max().item()
        assert rewards.mean().item() == pytest.approx(metrics[f"rewards/{name}"][-1], abs=close)
    mine = dict(policy.causal_lm.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        error = (mine[name].grad - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-3, name
    assert all(p.grad is None for p in reference.parameters())


def test_trl_trains_along_the_same_curve(models: dict[str, Path], tmp_path: Path) -> None:
    """Four steps of TRL's own trainer; a reference that moved along would stay at log 2."""
    settings = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 1.0}
    seed, steps = 7, 4
    rows = [row for _ in range(steps) for row in ROWS]
    order = epoch_order(len(rows), seed, 0)
    trainer = trl_trainer(
        models["policy"], None, [rows[i] for i in order], **settings, max_steps=steps,
        per_device_train_batch_size=len(ROWS), train_sampling_strategy="sequential",
        lr_scheduler_type="constant", logging_steps=1, optim="adamw_torch_fused",
    )  # fmt: skip
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]

    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected})
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


# How a recipe gets its reference, by kind of training; all of a kind must train alike.
REFERENCES = {"lora": ("model", "adapter", "precomputed"), "full": ("model", "precomputed")}


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3), (1, 2)])
@pytest.mark.parametrize("kind", REFERENCES)
def test_one_training_whatever_the_reference_comes_from(
    tmp_path: Path, kind: str, ranks: int, stage: int
) -> None:
    runs = {}
    recipe = small_recipe(
        tmp_path,
        stage=stage,
        loss={"name": "dpo"},
        lora=LORA | {"dropout": 0.0} if kind == "lora" else None,
        data={"directions": ["en-de", "zh-en"]},
        train={"max_steps": 3, "eval_every_steps": 2},
        batch={"pairs": 6, "tokens_per_rank": 600},
        checkpoint={"export": False},
    )
    recipes = [
        yaml.safe_load(recipe.read_text())
        | {"loss": {"name": "dpo", "reference": reference}, "output_dir": str(tmp_path / reference)}
        for reference in REFERENCES[kind]
    ]
    for done in on_ranks(training.run_each, [recipes], ranks=ranks):
        assert done.code == 0, done.output
    for reference in REFERENCES[kind]:
        runs[reference] = lines(tmp_path / reference)
    first = runs["model"]
    assert first[0]["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first[0]["eval_reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert [line["loss"] for line in first if "loss" in line][-1] != pytest.approx(np.log(2))
    for reference, found in runs.items():
        assert len(found) == len(first)
        for line, expected in zip(found, first, strict=True):
            for name, value in expected.items():
                if isinstance(value, float):
                    close = pytest.approx(value, rel=1e-4, abs=1e-5)
                    assert line[name] == close, (reference, name)


def test_precomputed_log_probs_are_kept_and_a_resume_has_the_same_ones(tmp_path: Path) -> None:
    """Two ranks, ZeRO-3, all parameters: after a step the reference is in the files alone."""
    recipe = small_recipe(
        tmp_path,
        loss={"name": "dpo", "reference": "precomputed"},
        data={"directions": ["en-de", "zh-en"]},
        train={"eval_every_steps": 2},
        batch={"pairs": 6, "tokens_per_rank": 600},
        checkpoint={"export": False, "every_steps": 2},
    )

    def run(name: str, steps: int, *more: str) -> str:
        told = ["--config", recipe, "--output_dir", tmp_path / name, "--train.max_steps", steps]
        done = main_on_ranks(*told, *more, ranks=2)
        assert all(rank.code == 0 for rank in done), done[0].output
        return done[0].output

    assert run("whole", 4, "--optim.schedule", "constant").count("computed, and kept in") == 2
    constant = ("--optim.schedule", "constant")
    run("halves", 2, *constant)
    files = sorted((tmp_path / "halves" / "reference").iterdir())
    assert len(files) == 2
    files[0].unlink()
    damaged = bytearray(files[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[1].write_bytes(damaged)
    resumed = run("halves", 4, *constant)
    assert "resumed from" in resumed and resumed.count("computed, and kept in") == 2
    assert f"{files[1]} is damaged" in resumed
    assert lines(tmp_path / "halves") == lines(tmp_path / "whole")
    again = run("again", 1, "--loss.reference_cache", str(tmp_path / "halves" / "reference"))
    assert again.count("read from") == 2 and ": computed" not in again
    other = run("other", 1, "--loss.reference_cache", str(tmp_path / "halves" / "reference"),
                "--data.eval_fraction", "0.2")  # fmt: skip
    assert other.count("computed, and kept in") == 2  # other pairs


LORA_AND_DPO = {"lora": {}, "loss": {"name": "dpo", "reference": "adapter"}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"loss": {"name": "dpo", "reference": "adapter"}}, "the recipe trains none"),
        (
            LORA_AND_DPO | {"model": {"name_or_path": "x", "adapter": "y"}},
            "the recipe trains one on",
        ),
        ({"loss": {"name": "cpo", "reference": "precomputed"}}, "no effect with loss.name: cpo"),
        ({"loss": {"name": "dpo", "alpha": 0.5}}, "dpo-nll is dpo with an NLL term"),
        ({"loss": {"name": "dpo", "reference_cache": "x"}}, "but with reference: precomputed"),
    ],
)
def test_impossible_references_are_refused(sections: dict[str, Any], words: str) -> None:
    values = {"model": {"name_or_path": "x"}, "data": {"format": "sample"}} | sections
    with pytest.raises(UserError, match=words):
        parse_config(values, "test")


def test_a_merged_adapter_may_be_switched_off_for_a_new_one() -> None:
    model = {"name_or_path": "x", "adapter": "y", "adapter_mode": "merge"}
    parse_config({"model": model, "data": {"format": "sample"}} | LORA_AND_DPO, "test")


def test_a_second_model_in_hierarchical_partitions_is_refused(tmp_path: Path) -> None:
    """DeepSpeed makes its groups anew for the second model, and fails on an assertion."""
    file = tmp_path / "hpz.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}))
    config = our_config(Path("x"), {"name": "dpo"})
    config = config.model_copy(update={"deepspeed": str(file)})
    two_hosts = Place("deepspeed", world_size=4, local_world_size=2)
    with pytest.raises(UserError, match=r"set loss\.reference to precomputed"):
        read_deepspeed_settings(config, planned=two_hosts)
