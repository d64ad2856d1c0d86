"""Rows of 1, 2, 3 and 8 rejected texts train as unrolled pairs whose NLL counts once, in every cut.

Two steps of the real trainer are compared with plain transformers (`unrolled`), which reads the
same rows text by text. The second step is compared at the weights that the first one left, so that
DPO's log-ratios are no longer 0.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_adapter, save_tiny_model
from launch import on_ranks
from preference_data import write
from unrolled import OBJECTIVES, Unrolled, loss_of
from workers import training

LOSS, GRADIENT = 1e-5, 1e-3
REJECTED = (3, 1, 8, 2, 1, 8, 3, 2, 1)  # 9 rows: with two ranks their loads differ
WHOLE, PARTS = 100_000, 260  # unique tokens of a micro-batch; the largest row has fewer than 260
ZERO = {0: "zero0", 2: "zero2", 3: "SHARD_ALL"}

Changes = dict[str, Any]
CASES: dict[str, Changes] = {}
for _training in ("full", "lora"):
    for _stage, _file in ZERO.items():
        for _budget in (WHOLE, PARTS):
            CASES[f"{_training}, ZeRO-{_stage}, {_budget} tokens"] = {
                "deepspeed": _file, "batch.tokens_per_rank": _budget, "training": _training,
            }  # fmt: skip
    for _backend in ("reference", "sdpa", "blocks"):
        CASES[f"{_training}, {_backend} attention"] = {
            "model.attention": _backend, "training": _training,
        }  # fmt: skip
    for _chunk, _stage in ((1, 0), (7, 3)):
        CASES[f"{_training}, chunks of {_chunk}, ZeRO-{_stage}"] = {
            "model.head_chunk_tokens": _chunk, "deepspeed": ZERO[_stage], "training": _training,
            "batch.tokens_per_rank": PARTS,
        }  # fmt: skip
    for _stage in (0, 3):
        CASES[f"{_training}, recomputed, ZeRO-{_stage}"] = {
            "model.gradient_checkpointing": True, "deepspeed": ZERO[_stage],
            "batch.tokens_per_rank": PARTS, "training": _training,
        }  # fmt: skip
    CASES[f"{_training}, transformers' layers"] = {
        "model.kernels": "transformers", "training": _training,
    }  # fmt: skip
for _sharing in ("prompt", "none"):
    CASES[f"sharing {_sharing}"] = {
        "batch.share_prefix": _sharing, "batch.tokens_per_rank": 2 * PARTS,
    }  # fmt: skip
CASES["NLL of pairs"] = {"loss.nll_reduction": "pair", "batch.tokens_per_rank": PARTS}
for _objective in OBJECTIVES:
    for _stage in (0, 3):
        CASES[f"{_objective}, ZeRO-{_stage}"] = {
            "objective": _objective, "deepspeed": ZERO[_stage], "batch.tokens_per_rank": PARTS,
        }  # fmt: skip
for _source in ("adapter", "precomputed"):
    CASES[f"dpo-nll, reference {_source}"] = {
        "objective": "dpo-nll", "loss.reference": _source, "training": "new lora",
        "batch.tokens_per_rank": PARTS,
    }  # fmt: skip


def random_rows() -> list[dict[str, Any]]:
    """Rows whose completions often begin alike, two or three at a time."""
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return "".join(rng.choice("abcdefghijklmnop ") for _ in range(rng.randint(low, high)))

    rows = []
    for count in REJECTED:
        beginnings = [text(0, 6), text(0, 6)]
        rejected = [rng.choice(beginnings) + text(5, 14) for _ in range(count)]
        chosen = beginnings[0] + text(5, 14)
        rows.append({"prompt": text(20, 30), "chosen": chosen, "rejected": rejected})
    return rows


def recipe(folder: Path, changes: Changes, rows: str = "many.jsonl") -> dict[str, Any]:
    changes = dict(changes)
    loss = OBJECTIVES[changes.pop("objective", "cpo")][0]
    kind = changes.pop("training", "full")
    flat: dict[str, Any] = {
        "model.name_or_path": str(folder / "model"),
        "model.dtype": "float32",
        "data.format": "pairs",
        "data.add_bos": "always",
        "data.path": str(folder / rows),
        "batch.pairs": len(REJECTED),
        "batch.tokens_per_rank": WHOLE,
        "train.epochs": 2,
        "optim.warmup_ratio": 0.0,
        "optim.learning_rate": 1e-2,
        "optim.eps": 1e-6,
        "logging.tensorboard": False,
        "deepspeed": "zero0",
    } | {f"loss.{name}": value for name, value in loss.items()}
    if kind == "lora":
        flat["model.adapter"] = str(folder / "adapter")
    if kind == "new lora":
        flat |= {"lora.rank": 4, "lora.dropout": 0.0, "lora.target_modules": ["q_proj"]}
    values: dict[str, Any] = {}
    for dotted, value in (flat | changes).items():
        *sections, name = dotted.split(".")
        section = values.setdefault(sections[0], {}) if sections else values
        section[name] = str(folder / "shard_all.json") if value == "SHARD_ALL" else value
    return values


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    save_tiny_model(folder / "model", "llama", tie_word_embeddings=True)
    save_tiny_adapter(folder / "model", folder / "adapter")
    rows = random_rows()
    write(folder / "many.jsonl", rows)
    ones = [row | {"rejected": row["rejected"][:1]} for row in rows]
    write(folder / "lists_of_one.jsonl", ones)
    write(folder / "texts.jsonl", [row | {"rejected": row["rejected"][0]} for row in ones])
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    (folder / "shard_all.json").write_text(json.dumps({"zero_optimization": zero}))
    return folder


@pytest.fixture(scope="module")
def records(inputs: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """(ranks, case) -> losses, gradients and weights of two steps."""
    recipes = {str(n): recipe(inputs, changes) for n, changes in enumerate(CASES.values())}
    for rows in ("lists_of_one", "texts"):
        for stage, file in ZERO.items():
            changes = {"deepspeed": file, "batch.tokens_per_rank": PARTS}
            recipes[f"{rows}-{stage}"] = recipe(inputs, changes, f"{rows}.jsonl")
    by_case = {}
    for ranks in (1, 2):
        folder = inputs / str(ranks)
        for done in on_ranks(training.train_each, [recipes, str(folder), {}], ranks=ranks):
            assert done.code == 0, done.output
        for name in recipes:
            case = [*CASES][int(name)] if name.isdigit() else name
            by_case[ranks, case] = torch.load(folder / f"{name}.pt")
    return by_case


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_and_gradients_are_those_of_unrolled_pairs(
    inputs: Path, records: Any, ranks: int, case: str
) -> None:
    record, changes = records[ranks, case], CASES[case]
    objective = changes.get("objective", "cpo")
    reduction = changes.get("loss.nll_reduction", "token")
    adapter = inputs / "adapter" if changes.get("training") == "lora" else None
    if changes.get("training") == "new lora":
        adapter = new_adapter(inputs, record)
    rows = random_rows()
    before = Unrolled(inputs / "model", adapter).load(record["start"])
    assert len(record["losses"]) == len(record["gradients"]) == 2
    for step, weights in enumerate(record["at_steps"]):
        policy = Unrolled(inputs / "model", adapter).load(weights)
        loss = loss_of(rows, policy, before, objective, reduction)
        loss.backward()
        assert record["losses"][step] == pytest.approx(loss.item(), rel=LOSS), (case, step)
        expected, actual = policy.gradients(), record["gradients"][step]
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            error = (actual[name] - gradient).norm()
            assert error <= GRADIENT * gradient.norm(), (case, step, name)


def new_adapter(inputs: Path, record: dict[str, Any]) -> Path:
    """A folder with an adapter of the same kind as a new one; its values are loaded later."""
    folder = inputs / "new-adapter"
    if not folder.exists():
        save_tiny_adapter(inputs / "model", folder, target_modules=["q_proj"], lora_alpha=32)
    return folder


def test_steps_are_cut_as_they_should_be(records: Any) -> None:
    whole, parts = f"full, ZeRO-0, {WHOLE} tokens", f"full, ZeRO-0, {PARTS} tokens"
    assert records[1, whole]["micro_batches"] == [1, 1]
    assert min(records[1, parts]["micro_batches"]) > 2 and records[2, parts]["micro_batches"][0] > 1


@pytest.mark.parametrize("stage", ZERO)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_list_of_one_text_trains_like_the_text_bit_for_bit(
    records: Any, ranks: int, stage: int
) -> None:
    one, text = (records[ranks, f"{rows}-{stage}"] for rows in ("lists_of_one", "texts"))
    assert one["losses"] == text["losses"]
    for name in ("start", "weights"):
        assert all(torch.equal(one[name][key], text[name][key]) for key in text[name])
    for ours, theirs in zip(one["gradients"], text["gradients"], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_negative_control_one_pair_of_each_row_is_another_training(
    inputs: Path, records: Any
) -> None:
    record = records[1, f"full, ZeRO-0, {WHOLE} tokens"]
    policy = Unrolled(inputs / "model").load(record["start"])
    firsts = [row | {"rejected": row["rejected"][:1]} for row in random_rows()]
    loss = loss_of(firsts, policy, policy, "cpo", "token")
    assert record["losses"][0] != pytest.approx(loss.item(), rel=100 * LOSS)
