"""Greedy continuations in packed rows against transformers' `generate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import tiny_model

from cpo_ds.model.load import load_policy
from cpo_ds.recipe import parse_config
from cpo_ds.run.greedy import Beginning, continue_greedily

PROMPTS = [(5, 9, 11, 3), (7,), (8, 8, 2, 30, 31, 12, 6), (21, 4)]


def of_transformers(model: object, prompt: tuple[int, ...], limit: int, stop: int) -> list[int]:
    tokens = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=limit, do_sample=False, eos_token_id=stop, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


@pytest.mark.parametrize("room", [1, 40, 1000])
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
    tmp_path: Path, family: str, overrides: dict, room: int
) -> None:
    plain = tiny_model(family, **overrides).eval()
    plain.save_pretrained(tmp_path)
    values = {
        "model": {"name_or_path": str(tmp_path), "dtype": "float32", "attention": "reference"},
        "data": {"format": "sample"},
    }
    policy, _ = load_policy(parse_config(values, "test"), device=torch.device("cpu"))
    policy.eval()
    # A token that a continuation has in its middle ends that one there.
    free = of_transformers(plain, PROMPTS[0], 12, stop=-1)
    stop = free[5]
    limits = [12, 9, 12, 1]
    expected = [
        of_transformers(plain, prompt, limit, stop)
        for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    beginnings = [
        Beginning(prompt, frozenset({stop}), limit)
        for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    with torch.no_grad():
        answers = continue_greedily(beginnings, partial(policy, predicts=True), room)
    assert answers == expected
    assert len(answers[0]) <= 5 and answers[0] == free[: len(answers[0])]


def test_a_prompt_without_room_for_an_answer_has_none() -> None:
    def fails(batch: object) -> torch.Tensor:
        raise AssertionError(batch)

    assert continue_greedily([Beginning((1, 2), frozenset({3}), 0)], fails, 10) == [[]]
