"""`cpo-ds translate --shard`: which models it refuses, and errors that advise it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_kinds import OTHER_KINDS, REFUSED_KINDS, save_adapter
from helpers import save_tiny_model

from cpo_ds.errors import UserError
from cpo_ds.model.adapter import SPLIT_KINDS
from cpo_ds.model.load import read_model_config
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.translate import local_model
from cpo_ds.translate.local_model import LocalModel, check_shardable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_adapters_that_need_whole_weights_are_refused_by_kind(tmp_path: Path, model: Path) -> None:
    config = read_model_config(str(model))
    for kind, settings in (OTHER_KINDS | REFUSED_KINDS).items():
        if kind not in ("LN_TUNING", "LOHA", "IA3"):
            continue
        adapter = str(save_adapter(model, tmp_path / kind, settings()))
        if kind in SPLIT_KINDS:
            check_shardable(adapter, None, config)
            continue
        with pytest.raises(UserError, match=f"is of the kind {kind}, .* leave --shard out, or"):
            check_shardable(adapter, None, config)


def test_quantized_models_are_refused(model: Path) -> None:
    config = read_model_config(str(model))
    check_shardable(None, None, config)
    with pytest.raises(UserError, match="cannot split a quantized model"):
        check_shardable(None, "nf4", config)
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UserError, match="cannot split a quantized model"):
        check_shardable(None, None, config)


@pytest.mark.parametrize("moment", ["loading", "translating"])
def test_too_little_memory_names_shard(
    monkeypatch: pytest.MonkeyPatch, model: Path, moment: str
) -> None:
    def no_room(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    name = str(model)
    loading = (name, None, "float32", load_tokenizer(name), CPU)
    if moment == "loading":
        monkeypatch.setattr(local_model, "load_causal_lm", no_room)
        with pytest.raises(UserError, match=r"little memory for the model; .* --ranks N --shard"):
            LocalModel(*loading)
        return
    loaded = LocalModel(*loading)
    monkeypatch.setattr(loaded._model, "generate", no_room)
    with pytest.raises(UserError, match=r"lower --batch-tokens .* --ranks N --shard"):
        loaded.translate([[3, 4]], 0)
