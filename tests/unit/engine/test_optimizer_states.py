"""`optim.states: bfloat16`: what it needs, what DeepSpeed is told, and what rounding loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.config import OptimConfig
from cpo_ds.engine.rounding import lost_share, rounding_line
from cpo_ds.engine.settings import DeepSpeedSettings, read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.ranks.place import Place
from cpo_ds.recipe import parse_config

OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
KEYS = ("bf16_master_weights_and_grads", "bf16_optimizer_states")


def read(
    folder: Path,
    zero: dict[str, Any],
    dtype: str = "bfloat16",
    states: str = "bfloat16",
    **more: Any,
) -> DeepSpeedSettings:
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": zero} | more))
    values = {
        "model": {"name_or_path": "m", "dtype": dtype},
        "data": {"format": "sample"},
        "optim": {"states": states},
        "deepspeed": str(file),
    }
    return read_deepspeed_settings(parse_config(values, "test"), Place("none", 2, 2))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_is_told(tmp_path: Path, stage: int) -> None:
    told = read(tmp_path, {"stage": stage}).as_deepspeed()["bf16"]
    assert told == {"enabled": True} | dict.fromkeys(KEYS, True)
    plain = read(tmp_path, {"stage": stage}, states="float32").as_deepspeed()["bf16"]
    assert plain == {"enabled": True}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_precision_is_refused(tmp_path: Path, stage: int, dtype: str) -> None:
    if stage == 0 and dtype == "float16":  # refused for itself
        return
    with pytest.raises(UserError, match=rf"optim\.states is bfloat16 and model\.dtype is {dtype}"):
        read(tmp_path, {"stage": stage}, dtype)


@pytest.mark.parametrize(
    ("zero", "more", "words"),
    [
        ({"stage": 0}, {}, "sets ZeRO stage 0, which has none"),
        ({"stage": 2} | OFFLOADED, {}, "offloads the optimizer"),
        ({"stage": 3} | OFFLOADED, {}, "offloads the optimizer"),
        ({"stage": 1}, {"data_types": {"grad_accum_dtype": "fp32"}}, "grad_accum_dtype at stage 1"),
    ],
)
def test_what_deepspeed_would_refuse_or_ignore(
    tmp_path: Path, zero: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"optim.states is bfloat16 and .*{words}.*to float32"):
        read(tmp_path, zero, **more)
    read(tmp_path, zero, states="float32", **more)


def test_gradients_may_be_added_up_in_float32_above_stage_1(tmp_path: Path) -> None:
    read(tmp_path, {"stage": 2}, data_types={"grad_accum_dtype": "fp32"})


@pytest.mark.parametrize("key", KEYS)
def test_deepspeeds_own_keys_belong_to_the_recipe(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"sets bf16, .* \(model\.dtype and optim\.states\)"):
        read(tmp_path, {"stage": 3}, bf16={"enabled": True, key: True})


@given(
    update=st.floats(1e-8, 1e-2),
    scale=st.floats(1e-5, 1.0),
    seed=st.integers(0, 2**16),
)
def test_lost_updates_are_those_that_leave_a_weight_as_it_is(
    update: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.randn(500, generator=generator) * scale).bfloat16()
    moved = (weights.abs().double() + update).bfloat16()
    expected = (moved == weights.abs()).double().mean().item()
    ways = lost_share([("one", weights[:100]), ("other", weights[100:])], update)
    # At a tie, when the update is a power of two, every second weight stays.
    if torch.frexp(torch.tensor(update))[0] != 0.5:
        assert ways == pytest.approx(expected)


def test_the_line_names_learning_rate_and_beta() -> None:
    weights = [("w", torch.tensor([1e-4, 1.0, -1.0, 2.0]).bfloat16())]
    line = rounding_line(weights, OptimConfig(learning_rate=2e-6))
    assert line.startswith("warning: optimizer states are bfloat16")
    assert "2e-06, is lost in rounding for 75.0% of the weights" in line
    assert "optim.betas[1], 0.999, many second moments never fall" in line
    line = rounding_line(weights, OptimConfig(learning_rate=0.1, betas=(0.9, 0.99)))
    assert line.startswith("optimizer states") and "0.0%" in line and "betas" not in line


@pytest.mark.parametrize(("beta", "falls"), [(0.999, False), (0.99, True)])
def test_second_moments_fall_only_if_beta_is_small_enough(beta: float, falls: bool) -> None:
    """torch's fused AdamW computes in float32 and rounds what it keeps."""
    parameter = torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16))
    adamw = torch.optim.AdamW([parameter], lr=0.0, betas=(0.9, beta), fused=True)
    parameter.grad = torch.linspace(0.1, 1, 100).bfloat16()
    adamw.step()
    first = adamw.state[parameter]["exp_avg_sq"].clone()
    assert first.dtype == torch.bfloat16
    for _ in range(200):
        parameter.grad = torch.zeros_like(parameter)
        adamw.step()
    assert bool((adamw.state[parameter]["exp_avg_sq"] < 0.5 * first).all()) == falls
    assert torch.equal(adamw.state[parameter]["exp_avg_sq"], first) != falls
