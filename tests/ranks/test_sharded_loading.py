"""Under ZeRO-3 no rank ever holds the whole model: each parameter is read, split and freed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import save_tiny_adapter, save_tiny_model
from launch import on_ranks
from workers import loading

RANKS, FLOAT_BYTES = 2, 4
LORA = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Kind of loading -> memory of each rank, for a model of 200 MB in layers of 17 MB."""
    folder = tmp_path_factory.mktemp("sharded")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    sizes |= {"num_key_value_heads": 8, "head_dim": 64, "num_hidden_layers": 12}
    save_tiny_model(folder / "model", **sizes)
    save_tiny_adapter(folder / "model", folder / "adapter")
    config_file = folder / "all_sharded.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config_file.write_text(json.dumps({"zero_optimization": zero}))
    adapter = {"adapter": str(folder / "adapter"), "adapter_mode": "merge"}
    # Full training, a new adapter, and an adapter that is merged while loading.
    recipes = {
        name: {
            "model": {"name_or_path": str(folder / "model"), "dtype": "float32", **model},
            "data": {"format": "sample"},
            "deepspeed": str(config_file),
            **more,
        }
        for name, model, more in (
            ("full", {}, {}),
            ("lora", {}, {"lora": LORA}),
            ("merged", adapter, {}),
        )
    }
    for done in on_ranks(loading.load_sharded, [recipes, str(folder)], ranks=RANKS):
        assert done.code == 0, done.output
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]
        for name in recipes
    }


@pytest.mark.parametrize("how", ["full", "lora", "merged"])
def test_each_rank_holds_its_half_and_nothing_else(loaded: Any, how: str) -> None:
    for rank in loaded[how]:
        assert rank["here"] == pytest.approx(rank["whole"] / RANKS, rel=1e-3)
        assert rank["gathered"] == 0


@pytest.mark.parametrize("how", ["full", "lora", "merged"])
def test_no_rank_holds_the_whole_model_while_it_loads(loaded: Any, how: str) -> None:
    for rank in loaded[how]:
        whole = rank["whole"] * FLOAT_BYTES
        assert whole > 190e6
        assert 0.45 * whole < rank["grown_bytes"] < 0.75 * whole, rank["grown_bytes"] / whole
