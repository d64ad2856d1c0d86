"""Greedy continuations in packed rows against transformers' `generate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_model

from cpo_ds.model.load import load_policy
from cpo_ds.recipe import parse_config
from cpo_ds.run.greedy import Answer, Beginning, continue_greedily, rules_of_model

PROMPTS = [(5, 9, 11, 3), (7,), (8, 8, 2, 30, 31, 12, 6), (21, 4)]
LIMITS = [12, 9, 12, 1]
BEGINNINGS = [Beginning(*both) for both in zip(PROMPTS, LIMITS, strict=True)]


def of_transformers(model: Any, beginning: Beginning, stop: int) -> Answer:
    prompt = beginning.prompt
    tokens = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=beginning.limit, do_sample=False, eos_token_id=stop, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    if stop in tokens:
        return Answer(tuple(tokens[: tokens.index(stop)]), True)
    return Answer(tuple(tokens), False)


def load(folder: Path, plain: Any) -> Any:
    """The policy of a run, of the same weights."""
    plain.save_pretrained(folder)
    model = {"name_or_path": str(folder), "dtype": "float32", "attention": "reference"}
    values = {"model": model, "data": {"format": "sample"}}
    policy, _ = load_policy(parse_config(values, "test"), device=torch.device("cpu"))
    return policy.eval()


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 7}),
        ("gemma2", {"sliding_window": 6, "final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_continuations_equal_those_of_generate(
    tmp_path: Path, family: str, overrides: dict
) -> None:
    plain = tiny_model(family, **overrides).eval()
    policy = load(tmp_path, plain)
    # A token that a continuation has in its middle ends that one there.
    free = of_transformers(plain, BEGINNINGS[0], stop=-1).tokens
    stop = free[5]
    expected = [of_transformers(plain, beginning, stop) for beginning in BEGINNINGS]
    for room in (1, 40, 1000):
        with torch.no_grad():
            answers = continue_greedily(
                BEGINNINGS, partial(policy, predicts=True), {stop}, tokens_at_once=room
            )
        assert answers == expected
    assert answers[0].is_whole and answers[0].tokens == free[: len(answers[0].tokens)]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 8},
        {"suppress_tokens": [11, 12], "begin_suppress_tokens": [4]},
        {"encoder_repetition_penalty": 0.5, "forced_eos_token_id": 7},
    ],
)
def test_settings_of_the_model_itself_count_as_in_generate(tmp_path: Path, settings: dict) -> None:
    plain = tiny_model("llama").eval()
    without = [of_transformers(plain, beginning, -1) for beginning in BEGINNINGS]
    stop = without[0].tokens[5]
    without = [of_transformers(plain, beginning, stop) for beginning in BEGINNINGS]
    plain.generation_config.update(**settings)
    policy = load(tmp_path, plain)
    expected = [of_transformers(plain, beginning, stop) for beginning in BEGINNINGS]
    model = policy.causal_lm
    with torch.no_grad():
        answers = continue_greedily(
            BEGINNINGS,
            partial(policy, predicts=True),
            {stop},
            tokens_at_once=40,
            rules_of=lambda one: rules_of_model(model, {stop}, one, torch.device("cpu")),
        )
    assert answers == expected != without


def test_a_prompt_without_room_for_an_answer_has_none() -> None:
    def fails(batch: object) -> torch.Tensor:
        raise AssertionError(batch)

    answers = continue_greedily([Beginning((1, 2), 0)], fails, {3}, tokens_at_once=10)
    assert answers == [Answer((), False)]


def test_each_rank_makes_as_many_passes_as_the_longest() -> None:
    shapes = []

    def predict(batch: Any) -> torch.Tensor:
        shapes.append(batch.input_ids.shape[1])
        return torch.eye(5)[[1] * len(batch.score_positions)]

    others = [True, True, True, True, False]  # whether any rank goes on
    answers = continue_greedily(
        [Beginning((1, 2), 2)],
        predict,
        {3},
        tokens_at_once=10,
        goes_on=lambda has_more: others.pop(0),
        stand_in=(4, 4, 4),
    )
    # A row has two more tokens than the sequence. The last two passes are over the stand-in.
    assert answers == [Answer((1, 1), False)] and shapes == [4, 5, 5, 5] and not others
