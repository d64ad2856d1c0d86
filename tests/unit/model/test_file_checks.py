"""Models whose files would be loaded wrongly are refused; plain ones are served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model
from model_files import change_json, separate_head, settings
from safetensors.torch import load_file, save_file

from cpo_ds.errors import UserError
from cpo_ds.model.file_checks import check_tied_head
from cpo_ds.model.load import load_model_config, load_policy
from cpo_ds.recipe import parse_config

CPU = torch.device("cpu")
Change = Callable[[Path], object]


def same_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def several_files(folder: Path) -> None:
    separate_head(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{'lm_head' in name}.safetensors" for name in weights}
    for file in set(files.values()):
        part = {name: weights[name] for name in weights if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    separate_head(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [separate_head, several_files, pickled])
def test_wherever_the_two_lie(tmp_path: Path, change: Change) -> None:
    folder = save_tiny_model(tmp_path, tie_word_embeddings=True)
    change(folder)
    with pytest.raises(UserError, match=r"tie_word_embeddings.*lm_head\.weight that is not model"):
        check_tied_head(str(folder), load_model_config(str(folder)))
    change_json(folder / "config.json", tie_word_embeddings=False)
    check_tied_head(str(folder), load_model_config(str(folder)))


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_a_tied_head_that_is_stored_twice_is_served(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpo_ds.model.file_checks._ROWS", rows)
    folder = save_tiny_model(tmp_path, tie_word_embeddings=True)
    check_tied_head(str(folder), load_model_config(str(folder)))
    same_head(folder)
    policy, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    embeddings = policy.causal_lm.get_input_embeddings().weight
    assert policy.head_weight is embeddings


def test_padding_without_an_embedding_is_no_obstacle(tmp_path: Path) -> None:
    """Nothing is padded in training, but torch refuses to make embeddings with such an id."""
    folder = save_tiny_model(tmp_path)
    expected, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    change_json(folder / "config.json", pad_token_id=99_999)
    loaded, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    assert loaded.fingerprint == expected.fingerprint
