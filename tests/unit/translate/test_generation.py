"""Batches of prompts, translations that are kept, and models known by content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from rope_models import CHANGING, LIMIT

from cpo_ds.model.load import read_model_config
from cpo_ds.model.positions import longest_unchanged
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.prepare.by_model import Generation
from cpo_ds.translate.generate import Item, plan_batches
from cpo_ds.translate.job import KeptTranslations, Translation
from cpo_ds.translate.local_model import LocalModel, folder_fingerprint

# What is kept, and in which batches.


def test_kept_translations_survive_any_text(tmp_path: Path) -> None:
    kept = KeptTranslations(tmp_path / "out.jsonl")
    texts = ["a\u2028b\x85c\x0bd", "", '"\\', "你"]
    whole = {str(i): Translation(text, True, 1, 2) for i, text in enumerate(texts)}
    kept.add(whole)
    KeptTranslations(tmp_path / "out.jsonl", rank=1).add({"x": Translation("y", False, 0, 0)})
    assert kept.read() == whole | {"x": Translation("y", False, 0, 0)}


ITEMS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=12)


@given(ITEMS, st.integers(1, 3), st.integers(1, 120), st.randoms())
def test_batches_hold_every_prompt_once_whatever_the_order(
    prompts: list[list[int]], beams: int, budget: int, random: Any
) -> None:
    items = [Item(str(tokens), tuple(tokens)) for tokens in prompts]
    generation = Generation("float32", beams, 5, None, None, 0)
    batches = plan_batches(items, generation, budget)
    assert sorted(i.key for b in batches for i in b) == sorted({item.key for item in items})
    for batch in batches:
        longest = max(len(item.tokens) for item in batch)
        assert len(batch) == 1 or len(batch) * beams * (longest + 5) <= budget
    lengths = [len(item.tokens) for batch in batches for item in batch]
    assert lengths == sorted(lengths, reverse=True)
    random.shuffle(items)
    assert plan_batches(items, generation, budget) == batches


@given(ITEMS, st.integers(1, 16))
def test_prompts_that_may_get_too_long_are_alone(prompts: list[list[int]], longest: int) -> None:
    items = [Item(str(tokens), tuple(tokens)) for tokens in prompts]
    generation = Generation("float32", 1, 5, None, None, 0)
    batches = plan_batches(items, generation, 40, longest=longest)
    assert sorted(i.key for b in batches for i in b) == sorted({item.key for item in items})
    for batch in batches:
        assert len(batch) == 1 or all(len(item.tokens) + 5 <= longest for item in batch)


# Models of transformers.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_a_model_is_known_by_what_is_in_its_folder(tmp_path: Path, model: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    assert folder_fingerprint(copy) == folder_fingerprint(model)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "README.md").write_text("nothing that counts")
    seen = {folder_fingerprint(copy)}
    weights.write_bytes(data[: 2**12] + bytes(2**23) + b"x" * 2**12)  # larger than is read whole
    seen.add(folder_fingerprint(copy))
    weights.write_bytes(data[: 2**12] + bytes(2**23) + b"y" * 2**12)
    seen.add(folder_fingerprint(copy))
    (copy / "tokenizer.json").write_text("{}")
    seen.add(folder_fingerprint(copy))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["longrope", "longrope, phi3"])
def test_a_long_prompt_does_not_change_the_translation_of_a_short_one(
    tmp_path: Path, name: str
) -> None:
    """transformers chooses the frequencies of `longrope` by the longest prompt of a batch."""
    family, overrides = CHANGING[name]
    folder = str(save_tiny_model(tmp_path / "model", family, **overrides))
    model = LocalModel(folder, None, "float32", load_tokenizer(folder), torch.device("cpu"))
    generation = Generation("float32", 2, 8, None, None, 0)
    lengths = [LIMIT + 9, LIMIT - 4, *range(LIMIT - 8, LIMIT - 14, -1)]
    items = [Item(str(n), tuple((n + 7 * i) % 120 + 5 for i in range(n))) for n in lengths]

    def translated(batches: list[list[Item]]) -> dict[str, Translation]:
        return {
            item.key: translation
            for batch in batches
            for item, translation in zip(
                batch,
                model.translate([i.tokens for i in batch], 0, **generation.arguments),
                strict=True,
            )
        }

    alone = translated([[item] for item in items])
    unchanged = longest_unchanged(read_model_config(folder))
    planned = plan_batches(items, generation, 10**6, longest=unchanged)
    assert [len(batch) for batch in planned] == [1, 1, 6]
    assert translated(planned) == alone
    assert translated(plan_batches(items, generation, 10**6)) != alone  # negative control
