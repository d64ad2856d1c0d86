"""A sentence's translation in a batch is that of the sentence alone, for every family."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from translation_runs import ending_model

from cpo_ds.model.load import SUPPORTED_MODEL_TYPES
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.translate.decoding import Decoding
from cpo_ds.translate.job import Translation
from cpo_ds.translate.local_model import LocalModel
from cpo_ds.translate.sampling import sampling_arguments

SLIDING = ("mistral", "gemma2", "gemma3_text", "cohere2")  # with windows shorter than the prompts


def prompts() -> list[tuple[int, ...]]:
    draw = random.Random(0)
    lengths = [4, 23, 40, 12]
    return [tuple(draw.randrange(5, 120) for _ in range(length)) for length in lengths]


def arguments(samples: bool, seeds: list[int]) -> dict[str, Any]:
    fixed = {"do_sample": False, "max_new_tokens": 12}
    if not samples:
        return fixed | {"num_beams": 5}
    decoding = Decoding(1, 12, 1, temperature=1.3, top_p=0.95)
    return fixed | {"num_beams": 1} | sampling_arguments(decoding, seeds)


def load(folder: Path, family: str) -> LocalModel:
    overrides = {"sliding_window": 16} if family in SLIDING else {}
    name = str(ending_model(folder / "tiny", family, **overrides))
    return LocalModel(name, None, "float32", load_tokenizer(name), torch.device("cpu"))


@pytest.mark.parametrize("family", SUPPORTED_MODEL_TYPES)
def test_a_batch_changes_no_translation(tmp_path: Path, family: str) -> None:
    model, texts = load(tmp_path, family), prompts()
    for samples in (False, True):
        seeds = list(range(len(texts)))
        batch = model.translate(texts, 0, **arguments(samples, seeds))
        alone: list[Translation] = []
        for text, seed in zip(texts, seeds, strict=True):
            alone += model.translate([text], 0, **arguments(samples, [seed]))
        assert batch == alone


def test_it_would_if_padding_were_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = load(tmp_path, "llama"), prompts()
    generate = model._model.generate

    def without_mask(attention_mask: torch.Tensor, **given: Any) -> Any:
        return generate(attention_mask=torch.ones_like(attention_mask), **given)

    expected = model.translate(texts, 0, **arguments(False, []))
    monkeypatch.setattr(model._model, "generate", without_mask)
    assert model.translate(texts, 0, **arguments(False, [])) != expected


def test_it_would_if_a_batch_drew_as_a_whole(tmp_path: Path) -> None:
    model, texts = load(tmp_path, "llama"), prompts()
    sampled = {"do_sample": True, "num_beams": 1, "max_new_tokens": 12, "temperature": 1.3}
    batch = model.translate(texts, 0, **sampled)
    assert batch[1:] != model.translate(texts[1:], 0, **sampled)
