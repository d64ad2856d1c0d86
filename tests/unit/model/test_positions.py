"""Rotary positions of packed pairs against plain transformers, one sequence at a time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from helpers import save_tiny_model, sequences, tiny_config
from preference_data import write
from rope_models import CHANGING, LIMIT, UNCHANGING, logps_alone, rows_around_the_limit

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.model.load import load_policy
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.positions import longest_unchanged, rope_key
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs
from cpo_ds.run.reference import _fingerprint
from cpo_ds.schema import TokenizedPair

MODELS = UNCHANGING | CHANGING


def recipe(folder: Path, name: str, rows: int = 12, **data: Any) -> Config:
    family, overrides = MODELS[name]
    save_tiny_model(folder / "model", family, **overrides)
    write(folder / "pairs.jsonl", rows_around_the_limit(rows))
    return parse_config(
        {
            "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
            "data": {"format": "pairs", "path": str(folder / "pairs.jsonl"), **data},
        },
        "test",
    )


def load(config: Config) -> tuple[PolicyModel, Any]:
    """The policy, and the same model by plain transformers."""
    policy, _ = load_policy(config, device=torch.device("cpu"))
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        config.model.name_or_path, dtype=torch.float32, attn_implementation="eager"
    )
    return policy.eval(), plain


def packed_logps(policy: PolicyModel, pairs: list[TokenizedPair], at_once: int) -> torch.Tensor:
    with torch.no_grad():
        parts = [range(i, min(i + at_once, len(pairs))) for i in range(0, len(pairs), at_once)]
        return torch.cat(
            [
                torch.cat([x.view(len(part), -1) for x in policy(pack(pairs, tuple(part)))], 1)
                for part in parts
            ]
        )


@pytest.mark.parametrize("name", MODELS)
def test_each_sequence_gets_its_own_positions(tmp_path: Path, name: str) -> None:
    config = recipe(tmp_path, name)
    pairs = prepare_pairs(config, prints_counts=False).train
    policy, plain = load(config)
    expected = logps_alone(plain, pairs)
    for at_once in (len(pairs), 3, 1):
        actual = packed_logps(policy, pairs, at_once)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    # In another order, since `dynamic` keeps a state.
    actual = packed_logps(policy, pairs[::-1], 2)
    torch.testing.assert_close(actual, expected.flip(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CHANGING)
def test_each_of_several_rejected_texts_gets_its_own_positions(tmp_path: Path, name: str) -> None:
    config = recipe(tmp_path, name)
    rows = rows_around_the_limit(16)
    texts = [row["rejected"] for row in rows]
    lists = [row | {"rejected": texts[n : n + 1 + n % 4]} for n, row in enumerate(rows)]
    write(tmp_path / "pairs.jsonl", lists)
    pairs = prepare_pairs(config, prints_counts=False).train
    assert {pair.num_comparisons for pair in pairs} == {1, 2, 3, 4}
    assert {pair.num_prefix > 0 for pair in pairs} == {True, False}
    policy, plain = load(config)
    actual = packed_logps(policy, pairs, len(pairs))
    torch.testing.assert_close(actual, logps_alone(plain, pairs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CHANGING)
def test_negative_control_by_the_longest_position_of_the_row(tmp_path: Path, name: str) -> None:
    config = recipe(tmp_path, name)
    pairs = prepare_pairs(config, prints_counts=False).train
    policy, plain = load(config)
    rotary = policy.causal_lm.get_decoder().rotary_emb
    del rotary.forward  # back to transformers' own
    actual = packed_logps(policy, pairs, len(pairs))
    assert (actual - logps_alone(plain, pairs)).abs().max() > 0.02


@pytest.mark.parametrize("name", CHANGING)
def test_prefixes_are_shared_by_sequences_with_the_same_positions(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tmp_path, name, rows=30)
    pairs = prepare_pairs(config, prints_counts=True).train
    model_config = transformers.AutoConfig.from_pretrained(config.model.name_or_path)
    limit = longest_unchanged(model_config)
    unshared, lengths = 0, [tuple(map(len, sequences(pair))) for pair in pairs]
    for pair, (chosen, rejected) in zip(pairs, lengths, strict=True):
        is_shared = pair.num_prefix > 0
        assert is_shared == (rope_key(model_config, chosen) == rope_key(model_config, rejected))
        assert is_shared or max(chosen, rejected) > limit
        unshared += not is_shared
    assert 0 < unshared < len(pairs)
    assert any(min(of_pair) <= limit < max(of_pair) for of_pair in lengths)
    assert f"rotary positions differ by length: {unshared}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", CHANGING)
def test_pairs_within_the_limit_are_scored_as_by_any_model(tmp_path: Path, name: str) -> None:
    config = recipe(tmp_path, name, max_tokens=LIMIT)
    policy, plain = load(config)
    assert "forward" not in vars(policy.causal_lm.get_decoder().rotary_emb)
    pairs = prepare_pairs(config, prints_counts=False).train
    assert pairs and all(pair.num_prefix > 0 for pair in pairs)
    actual = packed_logps(policy, pairs, len(pairs))
    torch.testing.assert_close(actual, logps_alone(plain, pairs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["longrope", "dynamic", "linear"])
def test_reference_logps_of_older_versions_are_not_read(tmp_path: Path, name: str) -> None:
    """Their names would be those of pairs within the limit, whose log-probs were right."""
    files = []
    for limits in ({}, {"max_tokens": LIMIT}):
        config = recipe(tmp_path, name, **limits)
        engine: Any = SimpleNamespace(policy=load(config)[0])
        files.append(_fingerprint(engine, config, []))
    assert (files[0] != files[1]) == (name in CHANGING)


def test_keys_change_with_the_frequencies() -> None:
    def key(name: str, length: int) -> tuple[int, ...]:
        family, overrides = MODELS[name]
        return rope_key(tiny_config(family, **overrides), length)

    assert key("longrope", 1) == key("longrope", LIMIT) != key("longrope", LIMIT + 1)
    assert key("longrope", LIMIT + 1) == key("longrope", 9 * LIMIT)
    assert key("dynamic", 1) == key("dynamic", LIMIT) != key("dynamic", LIMIT + 1)
    assert key("dynamic", LIMIT + 1) != key("dynamic", LIMIT + 2)
    assert len({key("by type of layer", length) for length in (40, 41, 45, 46, 47)}) == 4
    for name, (family, overrides) in UNCHANGING.items():
        assert key(name, 1) == key(name, 9999)
        assert longest_unchanged(tiny_config(family, **overrides)) == sys.maxsize
