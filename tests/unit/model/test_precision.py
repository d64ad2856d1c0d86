"""The precision that `model.dtype: auto` chooses by devices, and its reasons."""

from types import SimpleNamespace

import pytest
import torch

from cpo_ds.model.precision import (
    Precision,
    common_precision,
    cpu_precision,
    device_precision,
    gpu_precision,
    with_precision,
)
from cpo_ds.recipe import parse_config

RECIPE = {"model": {"name_or_path": "a model"}, "data": {"format": "sample"}}


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 0), "float32", "7.0, does not compute bfloat16, and float16 overflows"),
        ((7, 5), "float32", "7.5, does not compute bfloat16, and float16 overflows"),
        ((8, 0), "bfloat16", "8.0, computes it"),
        ((8, 9), "bfloat16", "8.9, computes it"),
        ((12, 0), "bfloat16", "12.0, computes it"),
    ],
)
def test_a_gpu_gets_bfloat16_if_it_computes_that(capability, dtype, reason):
    chosen = gpu_precision(capability)
    assert chosen.dtype == dtype and reason in chosen.reason


@pytest.mark.parametrize(
    ("capabilities", "dtype", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16", "by AMX"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16", "by AVX-512 BF16"),
        ({"neon": True, "bf16": True}, "bfloat16", "by Arm BF16"),
        ({"neon": True, "bf16": False}, "float32", "no fast instructions"),
        # oneDNN would emulate bfloat16 by these.
        ({"avx512_f": True, "avx512_bw": True, "avx512_vnni": True}, "float32", "no fast"),
        ({"amx_tile": True, "amx_int8": True}, "float32", "no fast instructions"),
        ({}, "float32", "no fast instructions"),
    ],
)
def test_a_processor_gets_bfloat16_if_it_multiplies_it_faster(capabilities, dtype, reason):
    chosen = cpu_precision(capabilities)
    assert chosen.dtype == dtype and reason in chosen.reason


def test_ranks_that_differ_take_float32_and_name_a_host_that_needs_it():
    fast, slow = Precision("bfloat16", "fast"), Precision("float32", "slow")
    assert common_precision([fast, fast], ["a", "b"]) == fast
    assert common_precision([slow, slow], ["a", "b"]) == slow
    for choices, host in (([fast, fast, slow], "c"), ([slow, fast, fast], "a")):
        assert common_precision(choices, ["a", "b", "c"]) == ("float32", f"on host {host} slow")


def test_this_processor_is_asked_by_its_flags():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = {
            flag for line in file if line.startswith(("flags", "Features")) for flag in line.split()
        }
    is_fast = bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})
    is_fast &= torch.backends.mkldnn.is_available()
    expected = "bfloat16" if is_fast else "float32"
    assert device_precision(torch.device("cpu")).dtype == expected


def _ranks(**values):
    return SimpleNamespace(
        device=torch.device("cpu"), hosts=("host-a",), gather=lambda value: [value], **values
    )


def test_auto_becomes_a_precision_before_a_run_uses_it():
    auto = parse_config(RECIPE | {"model": RECIPE["model"] | {"dtype": "auto"}}, "the test")
    config, line = with_precision(auto, _ranks())
    chosen = device_precision(torch.device("cpu"))
    assert config.model.dtype == chosen.dtype
    assert line == f"model.dtype auto: {chosen.dtype} ({chosen.reason})"
    assert auto.model.dtype == "auto"  # a recipe is never changed in place


def test_a_named_precision_is_kept_and_nothing_is_said():
    config = parse_config(RECIPE | {"model": RECIPE["model"] | {"dtype": "float32"}}, "the test")
    assert with_precision(config, _ranks()) == (config, "")
