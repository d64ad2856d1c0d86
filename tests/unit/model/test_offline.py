"""A model's outline without its weights."""

import pytest
import torch
from helpers import save_tiny_adapter, save_tiny_model

from cpo_ds.model.load import load_policy
from cpo_ds.model.offline import outline
from cpo_ds.recipe import parse_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("adapter", ["none", "new", "continued", "merged, and a new one"])
def test_an_outline_has_the_precision_that_training_loads(tmp_path, adapter, dtype):
    base = save_tiny_model(tmp_path / "base")
    model = {"name_or_path": str(base), "dtype": dtype}
    if adapter not in ("none", "new"):
        start = save_tiny_adapter(base, tmp_path / "adapter")
        mode = "continue" if adapter == "continued" else "merge"
        model |= {"adapter": str(start), "adapter_mode": mode}
    lora = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    values = {"model": model, "data": {"format": "sample"}, "lora": lora}
    config = parse_config(values | ({"lora": None} if adapter == "none" else {}), "test")
    policy, _ = load_policy(config, device=torch.device("cpu"))

    def described(model):
        named = model.named_parameters()
        return {name: (p.shape, p.dtype, p.requires_grad) for name, p in named}

    assert described(outline(config)) == described(policy.language_model)
    assert all(p.dtype == getattr(torch, dtype) for p in outline(config).parameters())
