"""One global batch gives the same loss, gradients and weights however it is divided.

Everything is compared with one rank, one micro-batch a step, ZeRO-0. 17 pairs in steps of 8 make a
last step of one pair, so that with two ranks one of them runs a stand-in.
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
from workers import training

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import step_indices, step_totals
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.load import load_policy
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs

LOSS, GRADIENT, UPDATE = 1e-5, 1e-3, 1e-3
PAIRS, STEPS = 8, 3
WHOLE, HALF, QUARTER, ONE_PAIR = 100_000, 360, 180, 99  # unique tokens; no pair has fewer than 50
# ZeRO-3 keeps small parameters whole on every rank unless it is told not to.
SHARD_ALL = {"stage": 3, "stage3_param_persistence_threshold": 0}

KINDS = ("full", "lora", "many")  # many: up to four rejected completions of a prompt
CUTS: dict[str, dict[str, Any]] = {
    "one micro-batch": {},
    "half": {"batch.tokens_per_rank": HALF},
    "quarter": {"batch.tokens_per_rank": QUARTER},
    "packing off": {"batch.tokens_per_rank": ONE_PAIR},
    "sharing prompt": {"batch.share_prefix": "prompt"},
    "sharing none": {"batch.share_prefix": "none", "batch.tokens_per_rank": HALF},
    "chunks of 1": {"model.head_chunk_tokens": 1},
    "chunks of 7": {"model.head_chunk_tokens": 7, "batch.tokens_per_rank": HALF},
    "gradient checkpointing": {"model.gradient_checkpointing": True},
    "reference attention": {"model.attention": "reference"},
    "transformers' layers": {"model.kernels": "transformers"},
    "transformers' layers, zero2": {
        "model.kernels": "transformers",
        "deepspeed": "ds_configs/zero2.json",
    },
    "transformers' layers, all sharded": {
        "model.kernels": "transformers",
        "deepspeed": "SHARD_ALL",
    },
    "zero1": {"deepspeed": "ds_configs/zero1.json", "batch.tokens_per_rank": HALF},
    "zero2": {"deepspeed": "ds_configs/zero2.json", "batch.tokens_per_rank": HALF},
    "zero3": {"deepspeed": "ds_configs/zero3.json", "batch.tokens_per_rank": HALF},
    "zero3 offload": {"deepspeed": "ds_configs/zero3-offload.json"},
    "zero3 all sharded": {"deepspeed": "SHARD_ALL"},
    "zero3 all at once": {
        "deepspeed": "SHARD_ALL",
        "batch.tokens_per_rank": ONE_PAIR,
        "model.gradient_checkpointing": True,
        "model.head_chunk_tokens": 5,
    },
}
# Several rejected completions meet other code in the layout, the head and the plan alone.
MANY_CUTS = (
    "one micro-batch",
    "half",
    "sharing prompt",
    "sharing none",
    "chunks of 7",
    "gradient checkpointing",
    "reference attention",
    "transformers' layers",
    "zero2",
    "zero3",
    "zero3 all sharded",
)
CASES = [(kind, cut) for kind in KINDS for cut in CUTS if kind != "many" or cut in MANY_CUTS]
MISTAKES = {
    "micro-batch means": ("mean of means", {"batch.tokens_per_rank": HALF}),
    "counted stand-ins": ("stand-ins", {}),
}


def recipe(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    flat = {
        "model.name_or_path": str(folder / "model"),
        "model.dtype": "float32",
        "data.format": "pairs",
        "data.add_bos": "always",  # the cuts below count its token
        "data.path": str(folder / ("many.jsonl" if kind == "many" else "pairs.jsonl")),
        "batch.pairs": PAIRS,
        "batch.tokens_per_rank": WHOLE,
        "optim.warmup_ratio": 0.0,
        "optim.learning_rate": 1e-2,
        "optim.eps": 1e-6,  # by default AdamW blows up errors of vanishing gradients
        "logging.tensorboard": False,
        "deepspeed": "ds_configs/zero0.json",
    }
    if kind == "lora":  # one that has moved already: a new one's A gets no gradient at first
        flat["model.adapter"] = str(folder / "adapter")
    values: dict[str, Any] = {}
    for dotted, value in (flat | changes).items():
        *sections, name = dotted.split(".")
        section = values.setdefault(sections[0], {}) if sections else values
        section[name] = str(folder / "shard_all.json") if value == "SHARD_ALL" else value
    return values


def random_rows(count: int) -> list[dict[str, str]]:
    """Pairs of 50 to 99 unique tokens, whose completions often begin alike."""
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return "".join(rng.choice("abcdefghijklmnop ") for _ in range(rng.randint(low, high)))

    rows = []
    for _ in range(count):
        common = text(0, 8)
        pair = {"chosen": common + text(10, 22), "rejected": common + text(10, 22)}
        rows.append({"prompt": text(20, 30)} | pair)
    return rows


def many_rejected(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The rows with up to four rejected completions, those of the rows after them."""
    texts = [row["rejected"] for row in rows]
    return [
        row | {"rejected": (texts[number:] + texts)[: 1 + number % 4]}
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("invariance")
    save_tiny_model(folder / "model", "llama", tie_word_embeddings=True)
    save_tiny_adapter(folder / "model", folder / "adapter")
    rows = random_rows(2 * PAIRS + 1)
    write(folder / "pairs.jsonl", rows)
    write(folder / "many.jsonl", many_rejected(rows))
    (folder / "shard_all.json").write_text(json.dumps({"zero_optimization": SHARD_ALL}))
    return folder


@pytest.fixture(scope="module")
def records(inputs: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """(ranks, kind, cut) -> losses, gradients and weights of that training."""
    by_case = {}
    for ranks in (1, 2):
        recipes = {f"{kind}-{cut}": recipe(inputs, kind, **CUTS[cut]) for kind, cut in CASES}
        recipes |= {
            f"{kind}-{name}": recipe(inputs, kind, **changes)
            for kind in KINDS
            for name, (_, changes) in MISTAKES.items()
        }
        mistakes = {f"{kind}-{name}": m for kind in KINDS for name, (m, _) in MISTAKES.items()}
        folder = inputs / str(ranks)
        for done in on_ranks(training.train_each, [recipes, str(folder), mistakes], ranks=ranks):
            assert done.code == 0, done.output
        for name in recipes:
            kind, cut = name.split("-", 1)
            by_case[ranks, kind, cut] = torch.load(folder / f"{name}.pt")
    return by_case


def largest_errors(actual: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float, float]:
    """Relative errors of losses, gradients and of the weights' change; the latter two norm-wise.

    Over all steps and parameters. Gradients after the first step come after an update.
    """

    def worst(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        assert a.keys() == b.keys() and a
        return max(((a[name] - b[name]).norm() / b[name].norm()).item() for name in b)

    def changes(record: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {n: record["weights"][n] - record["start"][n] for n in record["gradients"][0]}

    losses = zip(actual["losses"], expected["losses"], strict=True)
    gradients = zip(actual["gradients"], expected["gradients"], strict=True)
    return (
        max(abs(a - b) / abs(b) for a, b in losses),
        max(worst(a, b) for a, b in gradients),
        worst(changes(actual), changes(expected)),
    )


@pytest.mark.parametrize(("kind", "cut"), CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_same_loss_gradients_and_weights(records: Any, ranks: int, kind: str, cut: str) -> None:
    expected = records[1, kind, "one micro-batch"]
    loss, gradient, update = largest_errors(records[ranks, kind, cut], expected)
    assert loss < LOSS and gradient < GRADIENT and update < UPDATE, (loss, gradient, update)


def test_the_cuts_are_what_they_say(records: Any) -> None:
    def micro_batches(ranks: int, cut: str) -> list[int]:
        return records[ranks, "full", cut]["micro_batches"]

    assert micro_batches(1, "one micro-batch") == micro_batches(2, "one micro-batch") == [1, 1, 1]
    assert micro_batches(1, "half") == [2, 2, 1]
    assert micro_batches(1, "quarter") == [4, 4, 1] and micro_batches(2, "quarter") == [2, 2, 1]
    assert micro_batches(1, "packing off") == [8, 8, 1]
    assert micro_batches(2, "packing off") == [4, 4, 1]
    for ranks in (1, 2):
        single = records[ranks, "full", "packing off"]["pairs_in_each"]
        assert all(count == 1 for step in single for count in step)
    assert records[1, "full", "half"]["stand_ins"] == 0
    assert records[2, "full", "half"]["stand_ins"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_what_it_should_and_nothing_else(records: Any, kind: str) -> None:
    record = records[2, kind, "zero3 all sharded"]
    assert len(record["losses"]) == STEPS
    trained = set(record["gradients"][0])
    assert all(("lora" in name) == (kind == "lora") for name in trained)
    for name, before in record["start"].items():
        assert torch.equal(record["weights"][name], before) == (name not in trained), name


@pytest.mark.parametrize(("ranks", "mistake"), [(1, "micro-batch means"), (2, "counted stand-ins")])
@pytest.mark.parametrize("kind", KINDS)
def test_negative_control_the_usual_mistakes_are_found(
    records: Any, kind: str, ranks: int, mistake: str
) -> None:
    _, gradient, _ = largest_errors(
        records[ranks, kind, mistake], records[1, kind, "one micro-batch"]
    )
    assert gradient > 10 * GRADIENT, gradient


def test_the_engine_gives_the_gradient_of_plain_autograd(inputs: Path, records: Any) -> None:
    """The engine's gradients are those of policy and losses, whose parity is tested apart."""
    config = parse_config(recipe(inputs, "full"), "test")
    pairs = prepare_pairs(config, prints_counts=False).train
    policy, _ = load_policy(config, device=torch.device("cpu"))
    indices = tuple(step_indices(len(pairs), PAIRS, config.train.seed, 0).tolist())
    batch = pack(pairs, indices)
    logps = batch.logps(*policy(batch))
    totals = step_totals([[indices]], pairs)
    loss = step_share(pair_terms(logps, config.loss), totals, config.loss)
    loss.backward()
    record = records[1, "full", "one micro-batch"]
    assert record["losses"][0] == pytest.approx(loss.item(), rel=1e-6)
    plain = {n: p.grad for n, p in policy.language_model.named_parameters()}
    for name, gradient in record["gradients"][0].items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)
