"""The planner's pure functions, its page and its command."""

import json
import re
import sys

import pytest
import torch
from helpers import save_tiny_adapter, save_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from cpo_ds.cli import main
from cpo_ds.devices import DEVICES, device_by_name, find_device
from cpo_ds.errors import UserError
from cpo_ds.model.load import load_policy
from cpo_ds.model.offline import outline
from cpo_ds.planner.communication import (
    Cluster,
    Volume,
    all_reduce,
    gather,
    hierarchical_volume,
    zero_volume,
)
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.states import Weights, state_memory
from cpo_ds.planner.step_time import StepTime, micro_batches_per_step
from cpo_ds.planner.zero import ZeroSettings, zero_settings
from cpo_ds.recipe import parse_config

A100 = DEVICES["A100-80GB"]
KEEP_NONE = {"max_live_parameters": 0, "max_reuse_distance": 0}
clusters = st.builds(Cluster, st.just(A100), st.integers(1, 8), st.integers(1, 64))
weight_sizes = st.lists(st.integers(1, 10**9), min_size=1, max_size=8).map(tuple)


@pytest.mark.parametrize(
    ("reported", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 79, "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", 39, "A100-40GB"),
        ("NVIDIA H100 PCIe", 79, "H100-PCIe"),
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA GeForce RTX 4090", 23, "RTX-4090"),
        ("NVIDIA L40S", 44, "L40S"),
    ],
)
def test_devices_are_known_by_what_drivers_report(reported, memory, name):
    found = find_device(reported, memory)
    assert found is not None and found.name == name


def test_unknown_devices_are_said_to_be():
    assert find_device("Tesla T4", 15) is None
    assert device_by_name("rtx 4090").name == "RTX-4090"
    with pytest.raises(UserError, match="A100-40GB"):
        device_by_name("A1000")


@given(st.floats(1, 1e12), clusters)
def test_no_link_of_a_gather_carries_more_than_the_whole(size, cluster):
    volume = gather(size, cluster)
    assert 0 <= volume.node < size and 0 <= volume.network * cluster.gpus < size
    assert (volume.network > 0) == (cluster.nodes > 1)
    assert all_reduce(size, cluster).node == 2 * volume.node


def test_a_gather_by_hand():
    """Eight rings over 16 ranks, each of 2 bytes of 16: each link passes on 15 parts of 16."""
    assert gather(16.0, Cluster(A100, 8, 2)) == Volume(node=15.0, network=1.875)
    assert gather(16.0, Cluster(A100, 8)) == Volume(node=14.0, network=0.0)
    assert gather(16.0, Cluster(A100, 1, 4)) == Volume(node=0.0, network=12.0)


@pytest.mark.parametrize(
    ("trained", "micro_batches", "node", "network"),
    [
        # int8 once over all, 7/8 of 16 in the node; int4: 7/8 of 8 in the node, half over two nodes
        (16.0, 1, 15 + 14 + 7, 1.875 + 0.5),
        (16.0, 4, 15 + 7 * 14 + 4 * 7, 1.875 + 4 * 0.5),
        (0.0, 4, 8 * 14, 0.0),  # frozen weights stay in the node
    ],
)
def test_zero_plus_plus_by_hand(trained, micro_batches, node, network):
    plus = ZeroSettings(
        stage=3,
        secondary_partition=8,
        quantized_weights=True,
        quantized_gradients=True,
        **KEEP_NONE,
    )
    volume = zero_volume(
        plus, Cluster(A100, 8, 2), num_weights=16.0, num_trained=trained, number_bytes=2,
        micro_batches=micro_batches,
    )  # fmt: skip
    assert volume == Volume(pytest.approx(node), pytest.approx(network))


@pytest.mark.parametrize(
    ("live", "reuse", "prefetch", "network"),
    [
        (0, 0, 1, 12 + 12 + 12),  # of 16 bytes each: forward, backward, gradients
        (0, 4, 1, 12 + 9 + 12),  # two weights of eight stay, each passed twice
        (3, 0, 1, 12 + 7.5 + 12),
        (3, 0, 0, 12 + 12 + 12),  # nothing runs ahead
        (100, 100, 1, 12 + 12),  # all of them stay
    ],
)
def test_what_stays_whole_is_gathered_once(live, reuse, prefetch, network):
    zero = ZeroSettings(
        stage=3, max_live_parameters=live, max_reuse_distance=reuse, prefetch_bucket=prefetch
    )
    volume = zero_volume(
        zero, Cluster(A100, 1, 4), num_weights=8, num_trained=8, number_bytes=2, micro_batches=1
    )
    assert volume == Volume(0.0, pytest.approx(network))


@given(st.floats(1, 1e11), clusters, st.integers(1, 8))
def test_one_group_of_all_nodes_is_zero_3(size, cluster, micro_batches):
    options = {
        "num_weights": size,
        "num_trained": size,
        "number_bytes": 2,
        "micro_batches": micro_batches,
    }
    plain = zero_volume(ZeroSettings(stage=3, **KEEP_NONE), cluster, **options)
    one = hierarchical_volume(cluster, group_nodes=cluster.nodes, **options)
    assert one.node == pytest.approx(plain.node) and one.network == pytest.approx(plain.network)


def test_groups_must_fill_the_nodes():
    with pytest.raises(ValueError, match="no multiple"):
        hierarchical_volume(
            Cluster(A100, 8, 4),
            group_nodes=3,
            num_weights=1,
            num_trained=1,
            number_bytes=2,
            micro_batches=1,
        )


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


@given(st.integers(1, 4096), st.integers(1, 512), st.integers(1, 10**6))
def test_micro_batches_hold_all_pairs(pairs, ranks, budget):
    count = micro_batches_per_step(pairs, 145, ranks, budget)
    assert count >= 1 and count * max(1, budget // 145) * ranks >= pairs


def test_a_step_takes_what_is_not_hidden():
    assert StepTime(3, 2, 1, 0, overlaps=True).total == 4
    assert StepTime(3, 2, 1, 0, overlaps=False).total == 6
    assert StepTime(3, 5, 1, 0, overlaps=True).bound == "communication"


def plan(capsys, *words):
    code = main(["plan", "--config", str(ROOT / "recipes/alma-7b-r-full.yaml"), *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_answers_in_text_and_in_json(capsys):
    options = ("--shape", "tiny", "--device", "RTX 4090", "--gpus", "2", "--pairs", "1000")
    code, text, _ = plan(capsys, *options)
    assert code == 0 and "It fits" in text and "zero3-offload" in text and "Assumed" in text
    code, text, _ = plan(capsys, *options, "--json", "--batch.pairs", "64")
    values = json.loads(text)
    assert code == 0 and values["fits"] and values["time"]["steps"] == 16
    assert len(values["table"]) == 10
    assert values["total_gib"] == pytest.approx(sum(values["memory_gib"].values()))


def test_dpo_on_a_continued_adapter_is_planned_by_shape(capsys):
    words = ["--shape", "tiny", "--device", "H100", "--json", "--loss.name"]
    sizes = []
    for name in ("cpo", "dpo"):
        code = main(["plan", "--config", str(ROOT / "recipes/alma-7b-r-lora.yaml"), *words, name])
        assert code == 0
        sizes.append(json.loads(capsys.readouterr().out)["memory_gib"])
    assert sizes[1]["reference model"] == pytest.approx(sizes[1]["parameters"])
    assert "reference model" not in sizes[0] or sizes[0]["reference model"] == 0


def test_too_little_room_is_an_answer_with_advice(capsys):
    code, text, _ = plan(capsys, "--shape", "llama-25m", "--gpu-memory", "1.6", "--gpus", "1")
    assert code == 0 and "GiB are short" in text and "No batch.tokens_per_rank" in text
    assert "nothing here fits" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shape", "huge", "--device", "H100"), "there is no shape huge"),
        (("--shape", "tiny", "--device", "T4"), "there is no device T4"),
        (("--shape", "tiny"), "Give --device NAME or --gpu-memory GIB"),
        (("--shape", "tiny", "--device", "H100", "--gpus", "0"), "--gpus is 0"),
        (("--shape", "tiny", "--gpu-memory", "nan"), "--gpu-memory is nan"),
        (("--shape", "tiny", "--device", "H100", "--lora.target_modules", "[query]"), "query"),
        (("--shape", "tiny", "--device", "H100", "--batch.pears", "3"), "batch.pairs"),
        (("--model.name_or_path", "nowhere/none", "--device", "H100"), "give --shape"),
        (
            ("--shape", "tiny", "--device", "H100", "--deepspeed", "none.json"),
            "there is no file none.json",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(capsys, words, said):
    code, _, error = plan(capsys, *words)
    assert code == 2 and said in error and "Traceback" not in error


def test_other_commands_take_no_recipe_options(capsys):
    with pytest.raises(SystemExit):
        main(["report", "runs/x", "--batch.pairs", "3"])
    assert re.search("unrecognized arguments", capsys.readouterr().err)


def test_the_scaling_page_is_what_its_script_writes():
    from scaling_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_table_offers_only_what_training_takes(dtype, capsys):
    options = ["--config", str(ROOT / "recipes" / "alma-7b-r-lora.yaml"), "--model.dtype", dtype]
    assert main(["plan", *options, "--shape", "tinyllama-1.1b", "--device", "H100"]) == 0
    table = capsys.readouterr().out.partition("ds_configs/ ")[2]
    assert ("zero0" in table) == (dtype == "bfloat16") and "zero2" in table


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
