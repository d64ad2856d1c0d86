"""Padding of batches of prompts: it changes no translation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import save_tiny_adapter, save_tiny_model
from translation_runs import SENTENCES, with_padding

from cpo_ds.data.prompts import alma_prompt
from cpo_ds.translate.job import Translation
from cpo_ds.translate.local_model import LocalModel, padding_id
from cpo_ds.translate.tokens import tokenize_prompts

# Models of transformers.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


# Padding.


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that ends some answers by itself, so that a batch fills them up."""
    folder = save_tiny_model(tmp_path_factory.mktemp("ending") / "tiny")
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        causal_lm.get_output_embeddings().weight[2] *= 2.5  # the end, likelier
    causal_lm.save_pretrained(folder)
    return folder


def answers(model: Path, beams: int, adapter: Path | None = None) -> list[Translation]:
    """Translations of one batch whose prompts differ in length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    prompts = tokenize_prompts([alma_prompt(text, "en", "de") for text in SENTENCES], tokenizer)
    assert len({len(prompt) for prompt in prompts}) > 3
    loading = ("float32", tokenizer, torch.device("cpu"))
    local = LocalModel(str(model), str(adapter) if adapter else None, *loading)
    return local.translate(prompts, 0, num_beams=beams, do_sample=False, max_new_tokens=12)


def test_what_pads_has_an_embedding() -> None:
    assert padding_id((3, 2), 4) == 3
    assert padding_id((4, None, 2), 4) == padding_id((-1, 2, 3), 4) == 2
    assert padding_id((None, 4, 5), 4) == padding_id((), 4) == 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("change", ["tokenizer", "beyond", "-1", "-1000", "end"])
def test_padding_without_an_embedding_changes_no_translation(
    tmp_path: Path, ending_model: Path, change: str, beams: int
) -> None:
    expected = answers(ending_model, beams)
    assert len({answer.is_whole for answer in expected}) == 2  # some end, some do not
    assert answers(with_padding(ending_model, tmp_path / "m", change), beams) == expected


def test_an_end_without_an_embedding_is_no_padding(tmp_path: Path, model: Path) -> None:
    """The tokenizer has only that token to pad with, and no answer ends by it."""
    folders = [shutil.copytree(model, tmp_path / name) for name in ("padded", "bare")]
    for folder in folders:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"eos_token": "<END>"})
        if folder.name == "bare":
            tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
        for name in ("config.json", "generation_config.json"):
            values = json.loads((folder / name).read_text()) | {"eos_token_id": None}
            (folder / name).write_text(json.dumps(values))
    assert answers(folders[0], 1) == answers(folders[1], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [5, 6]},
    ],
    ids=str,
)
def test_padding_without_an_embedding_with_an_adapter(
    tmp_path: Path, ending_model: Path, settings: dict[str, Any]
) -> None:
    adapter = save_tiny_adapter(ending_model, tmp_path / "lora", **settings)
    changed = with_padding(ending_model, tmp_path / "m", "tokenizer")
    assert answers(changed, 1, adapter) == answers(ending_model, 1, adapter)


def test_padding_is_kept_where_the_embeddings_were_resized_for_it(
    tmp_path: Path, ending_model: Path
) -> None:
    changed = with_padding(ending_model, tmp_path / "m", "tokenizer")
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(changed)
    causal_lm.resize_token_embeddings(causal_lm.config.vocab_size + 1, mean_resizing=False)
    with torch.no_grad():
        causal_lm.get_output_embeddings().weight[-1] = 0  # never said
    causal_lm.save_pretrained(changed)
    assert answers(changed, 1) == answers(ending_model, 1)
