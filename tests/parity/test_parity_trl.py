"""The same tokens, log-probs, rewards, loss and gradients as TRL's CPOTrainer, in float32.

TRL's own batch and loss on the one side (its padded forward pass over the whole batch), one packed
micro-batch on the other. Nothing is truncated: TRL's truncation keeps other parts.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from helpers import save_tiny_model, sequences, tiny_tokenizer
from repository import WMT22
from trl.experimental.cpo import CPOConfig, CPOTrainer

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
    """Merges at the end of the prompt, common beginnings, one-character completions."""
    texts = [
        ("Translate this: the old house by the sea\nGerman:", "ein Haus", "ein Haus am Meer"),
        ("the h", "ouse by the sea", "ut"),
        ("x", "y", "z"),
        ("English: 42", "42", "4"),
        ("Věta: ", "Ahoj, světe!", "Ahoj světe"),
        ("zh ", "你好，世界。", "世界你好"),
    ]  # fmt: skip
    return [PreferenceRow(*text, "", f"random:{i}") for i, text in enumerate(texts)]


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
            some = rows.setdefault(way, [])
            if not chosen or not rejected or chosen == rejected or len(some) == per_direction:
                continue
            if len(f"{row['source']}{chosen}{rejected}".encode()) <= longest:
                prompt = alma_prompt(row["source"], *way.split("-"))
                some.append(PreferenceRow(prompt, chosen, rejected, way, f"wmt22:{number}"))
    return [row for some in rows.values() for row in some]


ROWS = {"random": random_rows, "wmt22": wmt22_rows}


@dataclasses.dataclass
class Setting:
    """A model folder, rows, and TRL's trainer for them."""

    folder: Path
    rows: list[PreferenceRow]
    trainer: CPOTrainer


@pytest.fixture(scope="module", params=[("llama", "random"), ("qwen2", "wmt22")], ids="-".join)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    family, name = request.param
    rows = ROWS[name]()
    folder = tmp_path_factory.mktemp(family)
    tied = {"tie_word_embeddings": family == "qwen2"}
    save_tiny_model(folder, family, max_position_embeddings=4096, **tied)
    return Setting(folder, rows, make_trainer(folder, rows))


def make_trainer(folder: Path, rows: list[PreferenceRow]) -> CPOTrainer:
    texts = [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in rows]
    arguments = CPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=100_000,
        report_to="none",
        disable_tqdm=True,
    )
    return CPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tiny_tokenizer(),
    )


def trl_loss(trainer: CPOTrainer, batch: dict[str, Any], **settings: Any) -> Any:
    """TRL's (log-probs of both sides, loss, metrics) of a batch; adds gradients to its model.

    It keeps its settings in attributes of their names, which spares a new trainer for each loss.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(CPOConfig)}
    for name in ("loss_type", "beta", "label_smoothing", "cpo_alpha", "simpo_gamma"):
        setattr(trainer, name, settings.get(name, defaults[name]))
    with torch.no_grad():
        chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    return (chosen, rejected), loss.item(), metrics


def trl_batch(trainer: CPOTrainer, first: int = 0, last: int | None = None) -> dict[str, Any]:
    trainer.model.zero_grad()
    return trainer.data_collator(list(trainer.train_dataset)[first:last])


def our_config(folder: Path, loss: dict[str, Any]) -> Config:
    model = {"name_or_path": str(folder), "dtype": "float32"}
    return parse_config({"model": model, "data": {"format": "sample"}, "loss": loss}, "test")


def our_pairs(rows: list[PreferenceRow]) -> list[TokenizedPair]:
    pairs, _ = tokenize_rows(rows, tiny_tokenizer(), max_prompt_tokens=100_000, max_tokens=100_000)
    return pairs


def our_forward(config: Config, pairs: list[TokenizedPair]) -> tuple[PolicyModel, PairLogps, float]:
    """Policy, log-probs and loss of one micro-batch with all pairs; gradients are in the policy."""
    policy, _ = load_policy(config, device=torch.device("cpu"))
    everything = tuple(range(len(pairs)))
    batch = pack(pairs, everything)
    logps = PairLogps(*policy(batch), batch.num_chosen_tokens, batch.num_rejected_tokens)
    terms = pair_terms(logps, config.loss)
    loss = step_share(terms, step_totals([[everything]], pairs), config.loss)
    loss.backward()
    return policy, logps, loss.item()


def largest_gradient_error(trainer: CPOTrainer, ours: PolicyModel, scale: float = 1.0) -> float:
    """Norm-wise and relative, over all parameters; TRL's gradients are multiplied by `scale`."""
    mine = dict(ours.causal_lm.named_parameters())
    theirs = {name: p.grad * scale for name, p in trainer.model.named_parameters()}
    assert theirs.keys() == mine.keys()
    return max(((mine[n].grad - g).norm() / g.norm()).item() for n, g in theirs.items())


def test_same_tokens(setting: Setting) -> None:
    batch = trl_batch(setting.trainer)
    pairs = our_pairs(setting.rows)
    assert len(pairs) == len(setting.rows)
    for index, pair in enumerate(pairs):
        starts = (pair.chosen_start, pair.rejected_start)
        sides = zip(("chosen", "rejected"), sequences(pair), starts, strict=True)
        for side, tokens, start in sides:
            length = int(batch[f"{side}_attention_mask"][index].sum())
            assert batch[f"{side}_input_ids"][index, :length].tolist() == tokens
            scored = [-100] * start + tokens[start:]
            assert batch[f"{side}_labels"][index, :length].tolist() == scored


def test_the_random_rows_merge_at_the_boundary_and_share_beginnings() -> None:
    pairs, report = tokenize_rows(
        random_rows(), tiny_tokenizer(), max_prompt_tokens=1000, max_tokens=1000
    )
    assert report.merged_boundaries >= 1
    assert any(p.num_prefix > max(p.chosen_start, p.rejected_start) for p in pairs)


@pytest.mark.parametrize(("theirs", "ours"), LOSSES, ids=IDS)
def test_same_log_probs_rewards_loss_and_gradients(
    setting: Setting, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    trainer = setting.trainer
    (chosen, rejected), loss, metrics = trl_loss(trainer, trl_batch(trainer), **theirs)
    config = our_config(setting.folder, ours)
    policy, logps, our_loss = our_forward(config, our_pairs(setting.rows))

    average = theirs["loss_type"] in ("simpo", "ipo")
    lengths = (logps.num_chosen_tokens, logps.num_rejected_tokens) if average else (1.0, 1.0)
    torch.testing.assert_close(logps.chosen / lengths[0], chosen, rtol=1e-5, atol=0)
    torch.testing.assert_close(logps.rejected / lengths[1], rejected, rtol=1e-5, atol=0)
    terms = pair_terms(logps, config.loss)
    for name, rewards in (("chosen", terms.rewards_chosen), ("rejected", terms.rewards_rejected)):
        assert rewards.mean().item() == pytest.approx(metrics[f"rewards/{name}"], rel=1e-5)
    assert our_loss == pytest.approx(loss, rel=1e-5)
    assert largest_gradient_error(trainer, policy) < 1e-3


def test_negative_control_two_micro_batches_of_trl_differ(setting: Setting) -> None:
    """TRL's NLL is a mean over each micro-batch, so the mean of two is another loss than ours."""
    trainer, half = setting.trainer, len(setting.rows) // 2
    first, second = trl_batch(trainer, 0, half), trl_batch(trainer, half)
    losses = [trl_loss(trainer, batch)[1] for batch in (first, second)]
    policy, _, our_loss = our_forward(our_config(setting.folder, {}), our_pairs(setting.rows))
    assert our_loss != pytest.approx(sum(losses) / 2, rel=1e-3)
    assert largest_gradient_error(trainer, policy, scale=0.5) > 1e-2


def test_negative_control_swapped_completions_differ(setting: Setting) -> None:
    trainer = setting.trainer
    _, loss, _ = trl_loss(trainer, trl_batch(trainer))
    swapped = [
        PreferenceRow(r.prompt, r.rejected, r.chosen, r.direction, r.origin) for r in setting.rows
    ]
    policy, _, our_loss = our_forward(our_config(setting.folder, {}), our_pairs(swapped))
    assert our_loss != pytest.approx(loss, rel=1e-3)
    assert largest_gradient_error(trainer, policy) > 1e-2
