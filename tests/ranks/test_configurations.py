"""The files of ds_configs: all of them run, hierarchical partitioning and offload are exact.

Settings that DeepSpeed would compute wrongly are refused before a model is loaded.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gathers import main_counting_gathers
from hypothesis import given
from hypothesis import strategies as st
from launch import main_on_ranks, on_ranks
from quantized_weights import num_blocks, through_int8
from repository import ROOT
from runs import LORA, lines, small_recipe

from cpo_ds.engine.groups import check_int8_parts, group_size, group_warning
from cpo_ds.engine.settings import DeepSpeedSettings, read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.ranks.place import Place
from cpo_ds.recipe import parse_config

STEPS = 4
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
COUNTS = st.integers(min_value=1, max_value=64)


def cluster(hosts: int, on_host: int) -> Place:
    return Place("deepspeed", world_size=hosts * on_host, local_world_size=on_host)


def read(file: Path, planned: Place | None = None, **sections: Any) -> DeepSpeedSettings:
    values = {"data": {"format": "sample"}, "model": {"name_or_path": "m"}} | sections
    return read_deepspeed_settings(parse_config(values | {"deepspeed": str(file)}, "test"), planned)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_taken_on_any_cluster(file: Path) -> None:
    for hosts, on_host in ((1, 1), (1, 8), (2, 8), (3, 4)):
        size = read(file, cluster(hosts, on_host)).zero.secondary_partition
        assert size == (on_host if "hpz" in file.read_text() and hosts > 1 else 1)


@given(hosts=COUNTS, on_host=COUNTS, size=COUNTS)
def test_groups_fill_the_ranks(hosts: int, on_host: int, size: int) -> None:
    own_place, file = cluster(hosts, on_host), Path("x.json")
    assert group_size("auto", own_place, file) == (on_host if hosts > 1 else 1)
    if (hosts * on_host) % size:
        with pytest.raises(UserError, match=f"x.json.* is {size}, .* {hosts * on_host} rank"):
            group_size(size, own_place, file)
    else:
        assert group_size(size, own_place, file) == (size if size < hosts * on_host else 1)


def test_hosts_of_different_sizes_are_told() -> None:
    with pytest.raises(UserError, match=r"2 of 5 ranks.*slots equal"):
        group_size("auto", Place("deepspeed", world_size=5, local_world_size=2), Path("x.json"))
    with pytest.raises(UserError, match=r"a: 2, b: 1, c: 1"):
        group_warning([2, 2, 1, 1], ["a", "a", "b", "c"])


@given(hosts=st.integers(2, 5), on_host=COUNTS)
def test_a_group_for_each_host_is_what_is_wanted(hosts: int, on_host: int) -> None:
    names = [f"host-{rank // on_host}" for rank in range(hosts * on_host)]
    assert group_warning([on_host] * len(names), names) is None
    wide = group_warning([2 * on_host] * len(names), names)
    assert wide is not None and "several hosts (host-0, host-1)" in wide
    if on_host % 2 == 0 and on_host > 2:
        narrow = group_warning([on_host // 2] * len(names), names)
        assert narrow is not None and "2 copies" in narrow


@given(part=st.integers(1, 10**6), ranks=COUNTS, more=st.integers(0, 7))
def test_weights_that_int8_gathers_would_get_wrong(part: int, ranks: int, more: int) -> None:
    sizes = {"good": 8 * ranks * part, "lm_head": 8 * ranks * part + more}
    if more % (8 * ranks) == 0:
        check_int8_parts(sizes, ranks)
    else:
        with pytest.raises(UserError, match="lm_head"):
            check_int8_parts(sizes, ranks)


@given(part=st.integers(2, 20_000), ranks=st.sampled_from([1, 2, 8]))
def test_simulated_int8_is_as_near_as_its_blocks_allow(part: int, ranks: int) -> None:
    blocks = num_blocks(8 * part)
    assert 8 * part % blocks == 0 and 8 * part / blocks < 16_000
    weight = torch.randn(8 * part * ranks, generator=torch.Generator().manual_seed(part)).half()
    actual = through_int8(weight, ranks).view(ranks * blocks, -1).float()
    exact = weight.view(ranks * blocks, -1).float()
    step = exact.abs().amax(dim=1, keepdim=True) / 128
    assert ((actual - exact).abs() <= 1.1 * step).all()  # one step of int8, since 128 becomes 127
    assert not torch.equal(actual, exact)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_float16_is_refused_at_stage_0_alone(file: Path) -> None:
    """At stage 0 DeepSpeed divides by a loss scale that it never multiplied by."""
    model = {"name_or_path": "m", "dtype": "float16"}
    if file.stem == "zero0":
        with pytest.raises(UserError, match=r"float16 and .*zero0\.json sets ZeRO stage 0"):
            read(file, cluster(1, 1), model=model)
    else:
        assert read(file, cluster(1, 1), model=model).as_deepspeed()["fp16"] == {"enabled": True}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "not divided": ({"zero_hpz_partition_size": 3}, "3, which does not divide the 4 rank"),
    "stage 2": ({"stage": 2, "zero_hpz_partition_size": 2}, "at stage 2, where DeepSpeed ignores"),
    "int8, stage 2": ({"stage": 2, "zero_quantized_weights": True}, "at stage 2"),
    "second model": ({"zero_hpz_partition_size": 2}, "loads no second model"),
    "offloaded copy": (
        {"zero_hpz_partition_size": "auto", "offload_param": {"device": "cpu"}},
        "issue 6926",
    ),
    "int8 on a CPU": ({"zero_quantized_weights": True}, "no CUDA GPU here"),
    "int4 gradients": ({"zero_quantized_gradients": True}, "bfloat16 for float16"),
    "MiCS": ({"mics_shard_size": 8}, "no MiCS any more.*zero3-hierarchical"),
    "no number": ({"zero_hpz_partition_size": "all"}, "zero_hpz_partition_size: .*integer"),
    "optimizer on NVMe": ({"offload_optimizer": {"device": "nvme"}}, "offload_optimizer.*nvme"),
    "weights on NVMe": ({"offload_param": {"device": "nvme"}}, "offload_param.*nvme"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_goes_wrong_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero, said = WRONG[case]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3} | zero}))
    loss = {"name": "dpo", "reference": "model"} if case == "second model" else {"name": "cpo"}
    with pytest.raises(UserError, match=f"(?s){re.escape(str(file))}.*{said}"):
        read(file, loss=loss)


@pytest.mark.parametrize("key", ["sequence_parallel_size", "seq_parallel_communication_data_type"])
def test_sequence_parallelism_is_explained(key: str, tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, key: 2}))
    with pytest.raises(UserError, match=rf"{key}.*between pairs.*configurations\.md"):
        read(file)


def test_the_checkpoint_section(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    said = {"zero_optimization": {"stage": 3}, "checkpoint": {"use_node_local_storage": True}}
    file.write_text(json.dumps(said))
    universal = read(file).with_universal_loading()
    checkpoint = universal.as_deepspeed()["checkpoint"]
    assert checkpoint == {"use_node_local_storage": True, "load_universal": True}
    assert universal.file == said and universal.keeps_local_checkpoints
    for wrong in ({}, {"use_node_local_storage": 1}, {"load_universal": True}, [True]):
        file.write_text(json.dumps(said | {"checkpoint": wrong}))
        with pytest.raises(UserError, match="use_node_local_storage"):
            read(file)


def recipe(folder: Path, **sections: Any) -> Path:
    """A recipe with several micro-batches a step on four ranks, checkpointing and evaluations."""
    return small_recipe(
        folder,
        model={"gradient_checkpointing": True},
        batch={"pairs": 10, "tokens_per_rank": 530},
        train={"max_steps": STEPS, "eval_every_steps": 2},
        checkpoint={"every_steps": 2, "export": False},
        **sections,
    )


def with_zero(folder: Path, name: str) -> Path:
    """A file of ds_configs, for models whose weights are all below its thresholds."""
    settings = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    for offload in ("offload_optimizer", "offload_param"):
        settings["zero_optimization"].get(offload, {})["pin_memory"] = False
    file = folder / f"{name}.json"
    file.write_text(json.dumps(settings))
    return file


def run(recipe: Path, name: str, output: Path, ranks: int, gathers: Path | None = None) -> str:
    """Runs with a file of ds_configs, as on hosts of two ranks; returns rank 0's output."""
    arguments = ["--config", recipe, "--output_dir", output]
    arguments += ["--deepspeed", with_zero(recipe.parent, name)]
    if gathers is None:
        done = main_on_ranks(*arguments, ranks=ranks, LOCAL_SIZE="2")
    else:
        done = on_ranks(
            main_counting_gathers,
            [str(argument) for argument in (gathers, *arguments)],
            ranks=ranks,
            environment={"LOCAL_SIZE": "2"},
        )
    assert [rank.code for rank in done] == [0] * ranks, done[0].output
    return done[0].output


def cut_back(output: Path, to: Path) -> None:
    """Copies a run as it was when the checkpoint in its middle had been saved."""
    shutil.copytree(output, to)
    shutil.rmtree(to / "checkpoints" / f"step-{STEPS:08d}")
    (to / "checkpoints" / "latest").write_text(f"step-{STEPS // 2:08d}")


def test_hierarchical_partitioning_is_exact(tmp_path: Path) -> None:
    full = recipe(tmp_path)
    run(full, "zero3", tmp_path / "plain", 4, tmp_path / "plain.json")
    said = run(full, "zero3-hierarchical", tmp_path / "groups", 4, tmp_path / "groups.json")
    assert lines(tmp_path / "groups") == lines(tmp_path / "plain")
    assert len(lines(tmp_path / "groups")) > STEPS  # held-out pairs, too
    assert "2 copies of the weights on a host of 4" in said  # all ranks are on one host here

    # Most of it stays in groups of two; the first gather after an update is of all four.
    plain = json.loads((tmp_path / "plain.json").read_text())
    groups = json.loads((tmp_path / "groups.json").read_text())
    assert set(plain) == {"4"} and set(groups) == {"2", "4"}
    assert 0 < groups["4"] < groups["2"]

    cut_back(tmp_path / "groups", tmp_path / "resumed")
    said = run(full, "zero3-hierarchical", tmp_path / "resumed", 4)
    assert "at step 2 of 4" in said
    assert lines(tmp_path / "resumed") == lines(tmp_path / "groups")


def test_hierarchical_partitioning_takes_over_an_adapter_from_other_ranks(tmp_path: Path) -> None:
    adapter = recipe(tmp_path, lora=LORA | {"dropout": 0.0})
    run(adapter, "zero3", tmp_path / "plain", 2)
    cut_back(tmp_path / "plain", tmp_path / "resumed")
    gathers = tmp_path / "groups.json"
    said = run(adapter, "zero3-hierarchical", tmp_path / "resumed", 4, gathers)
    assert "saved by 2 rank(s), here are 4" in said
    for key in ("loss", "eval_loss", "grad_norm"):
        actual, expected = (
            [line[key] for line in lines(tmp_path / name) if key in line]
            for name in ("resumed", "plain")
        )
        assert expected and actual == pytest.approx(expected, rel=1e-6)
    # Frozen weights never change: once in a group, they stay.
    counts = json.loads(gathers.read_text())
    assert counts["4"] < counts["2"] / 10


def test_offload_resumes_exactly(tmp_path: Path) -> None:
    full = recipe(tmp_path)
    run(full, "zero3-offload", tmp_path / "whole", 2)
    cut_back(tmp_path / "whole", tmp_path / "resumed")
    assert "at step 2 of 4" in run(full, "zero3-offload", tmp_path / "resumed", 2)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
