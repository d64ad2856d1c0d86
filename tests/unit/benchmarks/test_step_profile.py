"""The split of a profiled step into parts and passes, of a real model under torch's profiler."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from measures.step_profile import BACKWARD, FORWARD, IDLE, RECOMPUTED, split_step
from measures.step_ranges import ATTENTION, MATRIX, NORM, ROPE, SWIGLU, mark_policy
from torch.profiler import ProfilerActivity, profile

from cpo_ds.model.logprobs import HeadTransform
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.shapes import shape_config


def split(*, recompute: bool) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_config(shape_config("tiny"))
    for layer in model.get_decoder().layers if recompute else ():
        model.gradient_checkpointing_enable({"use_reentrant": False})
        layer.gradient_checkpointing = True
    mark_policy(PolicyModel(model, HeadTransform()))
    ids = torch.arange(64)[None]
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        model.train().get_decoder()(input_ids=ids).last_hidden_state.sum().backward()
    return split_step(recorded.events(), 100.0, on_gpu=False)


def test_every_part_and_pass_has_its_time():
    plain, recomputed = split(recompute=False), split(recompute=True)
    assert {MATRIX, ATTENTION, NORM, ROPE, SWIGLU} <= set(plain["parts_seconds"])
    assert set(plain["passes_seconds"]) == {FORWARD, BACKWARD}
    assert set(recomputed["passes_seconds"]) == {FORWARD, BACKWARD, RECOMPUTED}
    assert recomputed["launches"] > plain["launches"]
    parts = plain["parts_seconds"]
    assert abs(sum(parts.values()) - 100.0) < 1e-3
    assert parts[IDLE] < 100.0
