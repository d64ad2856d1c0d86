"""The same tokens, log-probs, rewards, loss and gradients as TRL's CPOTrainer, in float32.

TRL runs a padded forward pass over the whole batch; cpo_ds runs one packed micro-batch. Nothing is
truncated, since TRL's truncation keeps other parts.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from helpers import save_tiny_model, sequences, tiny_tokenizer
from merging_tokenizer import NO_LIMIT
from repository import WMT22
from trl_numbers import TrlNumbers, largest_sketch_error, sketch

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.data.plan import step_totals
from cpo_ds.data.prompts import alma_prompt
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.load import load_policy
from cpo_ds.model.policy import PolicyModel
from cpo_ds.recipe import parse_config
from cpo_ds.schema import PairLogps, PreferenceRow, TokenizedPair

LOSSES = [  # TRL's settings and ours
    ({"loss_type": "sigmoid"}, {"name": "cpo"}),
    ({"loss_type": "sigmoid", "label_smoothing": 0.2, "cpo_alpha": 0.3},
     {"name": "cpo", "label_smoothing": 0.2, "alpha": 0.3}),
    ({"loss_type": "sigmoid", "cpo_alpha": 0.0, "beta": 0.5},
     {"name": "cpo", "alpha": 0.0, "beta": 0.5}),
    ({"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.2},
     {"name": "simpo", "beta": 2.0, "gamma": 1.2}),
    ({"loss_type": "simpo", "cpo_alpha": 0.7}, {"name": "cpo-simpo", "alpha": 0.7}),
    ({"loss_type": "hinge", "cpo_alpha": 0.5}, {"name": "hinge", "alpha": 0.5}),
    ({"loss_type": "ipo"}, {"name": "ipo"}),
]  # fmt: skip
IDS = [f"{theirs['loss_type']}-{i}" for i, (theirs, _) in enumerate(LOSSES)]


def random_rows() -> list[PreferenceRow]:
    """Rows with merges at the prompt's end, common beginnings and one-character completions."""
    texts = [
        ("Translate this: the old house by the sea\nGerman:", "ein Haus", "ein Haus am Meer"),
        ("the h", "ouse by the sea", "ut"),
        ("x", "y", "z"),
        ("English: 42", "42", "4"),
        ("Věta: ", "Ahoj, světe!", "Ahoj světe"),
        ("zh ", "你好，世界。", "世界你好"),
    ]  # fmt: skip
    return [
        PreferenceRow(text[0], text[1], (text[2],), "", f"random:{i}")
        for i, text in enumerate(texts)
    ]


def wmt22_rows(per_direction: int = 1, longest: int = 150) -> list[PreferenceRow]:
    """gpt-4 over alma-13b-lora with ALMA's prompt: a few short sources in each direction."""
    if not WMT22.exists():
        pytest.skip(f"no WMT22 translations at {WMT22}")
    rows: dict[str, list[PreferenceRow]] = {}
    with gzip.open(WMT22, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            way, texts = row["language_pair"], row["candidates"]
            chosen, rejected = texts.get("gpt-4"), texts.get("alma-13b-lora")
            kept = rows.setdefault(way, [])
            if not chosen or not rejected or chosen == rejected or len(kept) == per_direction:
                continue
            if len(f"{row['source']}{chosen}{rejected}".encode()) <= longest:
                prompt = alma_prompt(row["source"], *way.split("-"))
                kept.append(PreferenceRow(prompt, chosen, (rejected,), way, f"wmt22:{number}"))
    return [row for kept in rows.values() for row in kept]


ROWS = {"random": random_rows, "wmt22": wmt22_rows}


class Setting:
    """A model folder, rows, and TRL's trainer for them, which is made when it is first needed."""

    def __init__(self, name: str, folder: Path, rows: list[PreferenceRow]) -> None:
        self.name, self.folder, self.rows = name, folder, rows

    @functools.cached_property
    def trainer(self) -> Any:
        """A CPOTrainer. Raises ImportError if TRL is not installed or has none."""
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        texts = [
            {"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected[0]} for r in self.rows
        ]
        arguments = CPOConfig(
            output_dir=str(self.folder / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=100_000,
            report_to="none",
            disable_tqdm=True,
        )
        return CPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(self.folder),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(texts),
            processing_class=tiny_tokenizer(),
        )

    def batch(self, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """TRL's batch of the rows from `first` to `last`; clears its model's gradients."""
        self.trainer.model.zero_grad()
        return self.trainer.data_collator(list(self.trainer.train_dataset)[first:last])


@pytest.fixture(scope="module", params=[("llama", "random"), ("qwen2", "wmt22")], ids="-".join)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    family, name = request.param
    rows = ROWS[name]()
    folder = tmp_path_factory.mktemp(family)
    tied = {"tie_word_embeddings": family == "qwen2"}
    save_tiny_model(folder, family, max_position_embeddings=4096, **tied)
    return Setting(f"{family}-{name}", folder, rows)


def trl_numbers_of(trainer: Any, batch: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """TRL's log-probs of both sides, loss, rewards and gradients of a batch.

    The gradients are added to those that its model has. TRL keeps its settings in attributes of
    their names, which spares a new trainer for each loss.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(trainer.args)}
    for name in ("loss_type", "beta", "label_smoothing", "cpo_alpha", "simpo_gamma"):
        setattr(trainer, name, settings.get(name, defaults[name]))
    with torch.no_grad():
        chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    return {
        "chosen": chosen.tolist(),
        "rejected": rejected.tolist(),
        "loss": loss.item(),
        "rewards": [float(metrics[f"rewards/{side}"]) for side in ("chosen", "rejected")],
        "gradients": sketch((n, p.grad) for n, p in trainer.model.named_parameters()),
    }


def our_config(folder: Path, loss: dict[str, Any]) -> Config:
    model = {"name_or_path": str(folder), "dtype": "float32"}
    return parse_config({"model": model, "data": {"format": "sample"}, "loss": loss}, "test")


def our_pairs(rows: list[PreferenceRow]) -> list[TokenizedPair]:
    pairs, _ = tokenize_rows(rows, tiny_tokenizer(), **NO_LIMIT)
    return pairs


def our_forward(config: Config, pairs: list[TokenizedPair]) -> tuple[PolicyModel, PairLogps, float]:
    """Policy, log-probs and loss of one micro-batch with all pairs; gradients are in the policy."""
    policy, _ = load_policy(config, device=torch.device("cpu"))
    everything = tuple(range(len(pairs)))
    batch = pack(pairs, everything)
    logps = batch.logps(*policy(batch))
    terms = pair_terms(logps, config.loss)
    loss = step_share(terms, step_totals([[everything]], pairs), config.loss)
    loss.backward()
    return policy, logps, loss.item()


def gradients_of(policy: PolicyModel) -> dict[str, list[float]]:
    return sketch((n, p.grad) for n, p in policy.causal_lm.named_parameters())


def largest_gradient_error(trainer: Any, ours: PolicyModel) -> float:
    """The largest relative error of a parameter's gradient, by norms."""
    mine = dict(ours.causal_lm.named_parameters())
    theirs = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert theirs.keys() == mine.keys()
    return max(((mine[n].grad - g).norm() / g.norm()).item() for n, g in theirs.items())


def test_same_tokens(setting: Setting, trl_numbers: TrlNumbers) -> None:
    def compute() -> list[list[Any]]:
        batch = setting.batch()
        rows = []
        for index in range(len(setting.rows)):
            for side in ("chosen", "rejected"):
                length = int(batch[f"{side}_attention_mask"][index].sum())
                names = (f"{side}_input_ids", f"{side}_labels")
                rows.append([batch[name][index, :length].tolist() for name in names])
        return rows

    theirs = iter(trl_numbers.of(f"cpo batch: {setting.name}", compute))
    pairs = our_pairs(setting.rows)
    assert len(pairs) == len(setting.rows)
    for pair in pairs:
        starts = pair.starts
        for tokens, start in zip(sequences(pair), starts, strict=True):
            assert next(theirs) == [tokens, [-100] * start + tokens[start:]]


def test_the_random_rows_merge_at_the_boundary_and_share_beginnings() -> None:
    pairs, report = tokenize_rows(random_rows(), tiny_tokenizer(), **NO_LIMIT)
    assert report.merged_boundaries >= 1
    assert any(p.num_prefix > max(p.starts) for p in pairs)


@pytest.mark.parametrize(("theirs", "ours"), LOSSES, ids=IDS)
def test_same_log_probs_rewards_loss_and_gradients(
    setting: Setting, theirs: dict[str, Any], ours: dict[str, Any], trl_numbers: TrlNumbers
) -> None:
    expected = trl_numbers.of(
        f"cpo: {setting.name}, {theirs}",
        lambda: trl_numbers_of(setting.trainer, setting.batch(), **theirs),
    )
    config = our_config(setting.folder, ours)
    policy, logps, our_loss = our_forward(config, our_pairs(setting.rows))

    average = theirs["loss_type"] in ("simpo", "ipo")
    lengths = (logps.num_chosen_tokens, logps.num_rejected_tokens[:, 0]) if average else (1.0, 1.0)
    sides = (("chosen", logps.chosen), ("rejected", logps.rejected[:, 0]))
    for (side, logp), length in zip(sides, lengths, strict=True):
        torch.testing.assert_close(logp / length, torch.tensor(expected[side]), rtol=1e-5, atol=0)
    terms = pair_terms(logps, config.loss)
    for rewards, value in zip(
        (terms.rewards_chosen, terms.rewards_rejected), expected["rewards"], strict=True
    ):
        assert rewards.mean().item() == pytest.approx(value, rel=1e-5)
    assert our_loss == pytest.approx(expected["loss"], rel=1e-5)
    assert largest_sketch_error(gradients_of(policy), expected["gradients"]) < 1e-3
    if "trainer" in vars(setting):  # TRL is installed
        assert largest_gradient_error(setting.trainer, policy) < 1e-3


def test_negative_control_two_micro_batches_of_trl_differ(
    setting: Setting, trl_numbers: TrlNumbers
) -> None:
    """TRL's NLL is a mean over each micro-batch, so the mean of two is another loss than ours."""

    def compute() -> list[Any]:
        trainer, half = setting.trainer, len(setting.rows) // 2
        first, second = setting.batch(0, half), setting.batch(half)
        halves = [trl_numbers_of(trainer, batch) for batch in (first, second)]
        return [[numbers["loss"] for numbers in halves], halves[1]["gradients"]]

    losses, gradients = trl_numbers.of(f"cpo in two: {setting.name}", compute)
    policy, _, our_loss = our_forward(our_config(setting.folder, {}), our_pairs(setting.rows))
    assert our_loss != pytest.approx(sum(losses) / 2, rel=1e-3)
    assert largest_sketch_error(gradients_of(policy), gradients, scale=0.5) > 1e-2


def test_negative_control_swapped_completions_differ(
    setting: Setting, trl_numbers: TrlNumbers
) -> None:
    expected = trl_numbers.of(
        f"cpo: {setting.name}, defaults", lambda: trl_numbers_of(setting.trainer, setting.batch())
    )
    swapped = [
        PreferenceRow(r.prompt, r.rejected[0], (r.chosen,), r.direction, r.origin)
        for r in setting.rows
    ]
    policy, _, our_loss = our_forward(our_config(setting.folder, {}), our_pairs(swapped))
    assert our_loss != pytest.approx(expected["loss"], rel=1e-3)
    assert largest_sketch_error(gradients_of(policy), expected["gradients"]) > 1e-2
