"""Memory and seconds of a step, by the planner's formulas."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from cpo_ds.engine.zero import ZeroSettings, zero_settings
from cpo_ds.model.shapes import shape_config
from cpo_ds.planner.choice import RESERVE
from cpo_ds.planner.estimate import memory_plan
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.plan import read_zero
from cpo_ds.planner.states import Weights, state_memory
from cpo_ds.planner.step_time import StepTime, micro_batches_per_step
from cpo_ds.recipe import parse_config

weight_sizes = st.lists(st.integers(1, 10**9), min_size=1, max_size=8).map(tuple)


@given(weight_sizes, weight_sizes, st.integers(2, 64))
def test_each_stage_needs_less_than_the_one_before(trained, frozen, ranks):
    weights = Weights(trained, frozen)
    states = [
        state_memory(weights, ZeroSettings(stage, persistence_threshold=0), "bfloat16", ranks)
        for stage in range(4)
    ]
    standing = [s.parameters + s.optimizer + s.gradients for s in states]
    assert standing == sorted(standing, reverse=True)


@given(weight_sizes, st.integers(1, 64))
def test_states_are_split_evenly(trained, ranks):
    """arXiv 1910.02054: 16 bytes for each weight in mixed precision, split over the ranks."""
    zero = ZeroSettings(3, persistence_threshold=0)
    states = state_memory(Weights(trained), zero, "bfloat16", ranks)
    standing = states.parameters + states.optimizer + states.gradients
    assert standing == pytest.approx(16 * sum(trained) / ranks)


@pytest.mark.parametrize("stage", [1, 2, 3])
@given(weight_sizes, st.integers(1, 64))
def test_states_in_bfloat16_take_half_and_gradients_are_not_widened(stage, trained, ranks):
    zero = ZeroSettings(stage, persistence_threshold=0)
    wide, narrow = (
        state_memory(Weights(trained), zero, "bfloat16", ranks, states=states)
        for states in ("float32", "bfloat16")
    )
    part = sum(trained) / ranks
    assert (wide.optimizer, narrow.optimizer) == pytest.approx((12 * part, 6 * part))
    updated = min(part, zero.sub_group) if stage == 3 else part
    assert (wide.update, narrow.update) == pytest.approx((6 * updated, 2 * updated))
    for name in ("parameters", "gradients", "buckets", "gathered"):
        assert getattr(narrow, name) == getattr(wide, name)


def test_offloading_moves_states_to_the_host():
    weights = Weights((10**9,))
    zero = ZeroSettings(3, offload_optimizer=True, offload_parameters=True)
    states = state_memory(weights, zero, "bfloat16", 8)
    assert states.parameters == states.optimizer == states.gradients == 0
    assert states.host == (2 + 2 + 4 + 12) * 10**9 / 8


def test_dpo_counts_a_second_model():
    values = {"model": {"name_or_path": "x"}, "data": {"format": "sample"}}
    outlines = Outlines("tiny")
    plain = outlines.weights(parse_config(values, "test"))
    dpo = outlines.weights(parse_config(values | {"loss": {"name": "dpo"}}, "test"))
    assert plain.reference == () and sum(dpo.reference) == plain.num_policy


def test_a_base_in_4_bits_counts_its_own_bytes_and_one_restored_matrix():
    values = {
        "model": {"name_or_path": "x", "quantization": "nf4"},
        "data": {"format": "sample"},
        "lora": {"rank": 16},
    }
    weights = Outlines("llama-2-7b").weights(parse_config(values, "test"))
    layers, width, inner, words = 32, 4096, 11008, 32000
    assert sum(weights.quantized) == layers * (4 * width**2 + 3 * width * inner)
    assert weights.num_trained == layers * 16 * (width + inner)
    states = state_memory(weights, ZeroSettings(0), "bfloat16", 1)
    norms = (2 * layers + 1) * width
    in_bfloat16 = 2 * (2 * words * width + norms + weights.num_trained)
    # A byte for two weights, a byte of scale for 64, four bytes for the scale of 256 scales.
    packed = sum(weights.quantized) * (0.5 + 1 / 64 + 4 / 256 / 64)
    assert states.parameters == pytest.approx(in_bfloat16 + packed)
    assert states.gathered == 2 * width * inner


def test_fused_layers_fit_7b_lora_into_80_gb_without_recomputation():
    """16k tokens; one planner, so that no measurement is taken for another's."""
    outlines = Outlines("llama-2-7b")

    def gib(kernels, deepspeed, dropout=0.05):
        model = {"name_or_path": "x", "dtype": "bfloat16", "kernels": kernels}
        lora = {"rank": 16, "dropout": dropout}
        values = {"model": model, "data": {"format": "sample"}, "lora": lora}
        batch = {"tokens_per_rank": 16384}
        config = parse_config(values | {"batch": batch, "deepspeed": deepspeed}, "test")
        zero = read_zero(config, 1)
        passes = outlines.passes(config, stage=zero.stage)
        plan = memory_plan(config, outlines.weights(config), zero, passes, ranks=1, memory_gib=80.0)
        return plan.total / 2**30

    assert gib("auto", "zero0") < 80 * (1 - RESERVE) < 80 < gib("transformers", "zero0")
    # Dropout keeps a mask; as PEFT writes it, its factors and its output.
    assert gib("auto", "zero0", 0.0) + 5 < gib("auto", "zero0")
    assert gib("transformers", "zero0", 0.0) + 10 < gib("transformers", "zero0")
    # Under ZeRO-3 adapters run as PEFT writes them.
    assert gib("auto", "zero0") < gib("auto", "zero3") < gib("transformers", "zero3")


def test_files_in_ds_configs_are_read():
    read = {
        name: zero_settings(
            json.loads((ROOT / f"ds_configs/{name}.json").read_text())["zero_optimization"]
        )
        for name in ("zero0", "zero2", "zero3-offload")
    }
    assert read["zero0"] == ZeroSettings()
    assert read["zero2"].reduce_bucket == 200_000_000 and read["zero2"].overlap_communication
    assert read["zero3-offload"].offload_parameters and read["zero3-offload"].offload_optimizer


@pytest.mark.parametrize("name", ["zero3", "zero3-hierarchical", "zero3-offload", "zeropp"])
def test_zero3_files_fetch_a_whole_13b_layer_ahead_and_keep_its_adapter_whole(name):
    """DeepSpeed looks ahead once a layer, and each GPU waits for what is not fetched by then."""
    file = json.loads((ROOT / f"ds_configs/{name}.json").read_text())
    zero = zero_settings(file["zero_optimization"] | {"zero_hpz_partition_size": 1})
    shape = shape_config("llama-2-13b")
    attention, mlp = 4 * shape.hidden_size**2, 3 * shape.hidden_size * shape.intermediate_size
    assert zero.prefetch_bucket >= attention + mlp + 2 * shape.hidden_size
    assert zero.max_live_parameters >= 3 * (attention + mlp)
    adapter_rank = 64
    assert zero.persistence_threshold >= adapter_rank * shape.intermediate_size


@given(st.integers(1, 4096), st.integers(1, 512), st.integers(1, 10**6))
def test_micro_batches_hold_all_pairs(pairs, ranks, budget):
    count = micro_batches_per_step(pairs, 145, ranks, budget)
    assert count >= 1 and count * max(1, budget // 145) * ranks >= pairs


def test_a_step_takes_what_is_not_hidden():
    assert StepTime(3, 2, 1, 0, overlaps=True).total == 4
    assert StepTime(3, 2, 1, 0, overlaps=False).total == 6
    assert StepTime(3, 5, 1, 0, overlaps=True).bound == "communication"
