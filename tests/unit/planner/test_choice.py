"""What the planner takes for `deepspeed: auto` and `model.gradient_checkpointing: auto`."""

from __future__ import annotations

import pytest

from cpo_ds.errors import UserError
from cpo_ds.planner.choice import RESERVE, settle
from cpo_ds.planner.estimate import memory_plan
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.plan import read_zero
from cpo_ds.recipe import parse_config

OUTLINES = Outlines("llama-25m")  # ten layers
RANKS = 4
BASE = {"data": {"format": "sample"}, "batch": {"tokens_per_rank": 4096}}


def recipe(deepspeed="zero0", recompute=False, dtype="bfloat16", **values):
    model = {"name_or_path": "x", "dtype": dtype, "gradient_checkpointing": recompute}
    return parse_config(BASE | {"model": model, "deepspeed": deepspeed} | values, "test")


def choose(config, gib, stage=None):
    taken, lines = settle(
        config, OUTLINES, lambda named: read_zero(named, RANKS), ranks=RANKS, memory_gib=gib,
        stage=stage,
    )  # fmt: skip
    return taken.deepspeed, taken.model.gradient_checkpointing, lines


def need(deepspeed, layers, **values):
    """GiB of a GPU on which a choice just fits."""
    config = recipe(deepspeed, layers, **values)
    zero = read_zero(config, RANKS)
    passes = OUTLINES.passes(config, stage=zero.stage)
    weights = OUTLINES.weights(config)
    plan = memory_plan(config, weights, zero, passes, ranks=RANKS, memory_gib=1.0)
    return plan.total / 2**30 / (1 - RESERVE) * (1 + 1e-9)


@pytest.mark.parametrize("layers", [0, 1, 7, 10])
def test_as_few_layers_as_fit_are_recomputed(layers):
    gib = need("zero3", layers)
    assert choose(recipe("zero3", "auto"), gib)[1] == layers
    if layers:
        assert need("zero3", layers - 1) > gib


def test_the_stage_that_sends_least_is_taken_if_it_fits():
    config = recipe("auto", 10)
    roomy, tight = need("zero0", 10), need("zero3", 10)
    assert choose(config, roomy)[0] == "zero0"
    name, layers, (line,) = choose(config, tight)
    assert name == "zero3" and layers == 10
    assert "zero0 would take" in line and "zero2 would take" in line


def test_recomputation_comes_before_splitting_the_weights():
    gib = need("zero0", 10)
    assert need("zero3", 9) < gib  # splitting would save recomputation
    name, layers, lines = choose(recipe("auto", "auto"), gib)
    assert (name, layers) == ("zero0", 10) and len(lines) == 2
    assert "of 10 layers" in lines[1] and "GiB for each GPU" in lines[1]


def test_too_little_memory_is_said_and_what_needs_least_is_taken():
    name, layers, lines = choose(recipe("auto", "auto"), 0.5)
    assert (name, layers) == ("zero3-offload", 10)
    assert all("lower batch.tokens_per_rank" in line for line in lines)


@pytest.mark.parametrize(
    ("stage", "name"), [(0, "zero0"), (1, "zero1"), (2, "zero2"), (3, "zero3")]
)
def test_the_stage_of_a_checkpoint_is_kept(stage, name):
    taken, _, (line,) = choose(recipe("auto", 10), 100.0, stage)
    assert taken == name and f"resume from is of stage {stage}" in line
    assert choose(recipe("auto"), None, stage)[0] == name


def test_an_adapter_in_half_precision_spares_the_host_a_wait_for_each_tensor():
    assert choose(recipe("auto", lora={}), 100.0)[0] == "zero1"
    assert choose(recipe("auto", lora={}, dtype="float32"), 100.0)[0] == "zero0"
    assert choose(recipe("auto", lora={}), None)[0] == "zero0"
    # The buffers of stage 1 are no reason to recompute.
    gib = need("zero0", 0, lora={})
    assert need("zero1", 0, lora={}) > gib
    assert choose(recipe("auto", "auto", lora={}), gib)[:2] == ("zero0", 0)


def test_on_cpus_nothing_is_split_or_recomputed():
    name, layers, lines = choose(recipe("auto", "auto"), None)
    assert (name, layers) == ("zero0", 0) and all("CPUs is not planned" in line for line in lines)
    config = recipe("zero3", 4)
    assert choose(config, None) == ("zero3", 4, [])  # nothing is left to the planner


def test_files_without_optimizer_states_in_bfloat16_are_left_out():
    optim = {"states": "bfloat16"}
    assert choose(recipe("auto", optim=optim), 100.0)[0] == "zero2"
    assert choose(recipe("auto", 10, optim=optim), 0.5)[0] == "zero3"  # never offloaded
    name, _, (line,) = choose(recipe("auto", optim=optim), None)
    assert name == "zero2" and "CPUs is not planned" in line


def test_auto_never_rounds_optimizer_states_by_itself():
    for gib in (None, 0.5, 100.0):
        config, _ = settle(
            recipe("auto", "auto"), OUTLINES, lambda named: read_zero(named, RANKS), ranks=RANKS,
            memory_gib=gib,
        )  # fmt: skip
        assert config.optim.states == "float32"


def test_files_that_training_refuses_are_left_out():
    assert choose(recipe("auto", dtype="float16"), 100.0)[0] == "zero2"
    assert choose(recipe("auto", dtype="float16", lora={}), 100.0)[0] == "zero1"
    with pytest.raises(UserError, match="float16"):
        choose(recipe("auto", dtype="float16"), 100.0, stage=0)
