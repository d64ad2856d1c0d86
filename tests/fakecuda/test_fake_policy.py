"""The policy from `load_policy` on CUDA tensors without data: every backend, training and dtype."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from rig import NEEDS_GUARD, results

from cpo_ds.model.attention import BACKENDS

# All passes run for the first test, in one process.
pytestmark = [NEEDS_GUARD, pytest.mark.timeout(900)]

# Backend -> copies of a layout to the device. Masks are made on the device.
LAYOUT_COPIES = {
    "flash_attn": 3,  # ends of queries, ends of keys, and one tensor of indices
    "flash_attn_3": 3,
    "flash_attn_4": 3,
    "torch_varlen": 3,
    "sdpa": 0,
    "reference": 0,
}
NOT_RUN = {
    "flex",  # it is compiled, and compiled code does not run on tensors without data
    "blocks",  # for CPUs
}
PASSES: list[dict[str, Any]] = [
    {"backend": backend, "training": training, "dtype": dtype, "recomputes": recomputes}
    for backend, training, dtype, recomputes in itertools.product(
        [backend for backend in LAYOUT_COPIES if backend in BACKENDS],
        ("lora", "full"),
        ("bfloat16", "float16"),
        (False, True),
    )
]
# Objectives that read scores.
PASSES += [
    {"backend": "sdpa", "loss": "plackett-luce"},
    {"backend": "sdpa", "loss": "cpo-simpo", "score_margin": 0.5},
]
# Fault -> the words by which the rig reports it.
REPORTED = {
    "name_with_flash": "cannot be read",
    "package_looked_for": "ImportError",
    "ends_of_64_bits": "ends must be int32",
    "value_read": "a copy to the host",
    "mask_of_values": "aten.nonzero",
    "pageable_copy": "a copy that waits",
    "tensor_on_the_host": "DeviceMismatch",
    "one_object_for_ends": "one tensor",
}
FOUR_ALONE = {"backend": "auto", "versions": []}
FAULTY: list[dict[str, Any]] = [
    {"backend": "flash_attn", "change": fault}
    | (FOUR_ALONE if fault == "package_looked_for" else {})
    for fault in REPORTED
]
FOLDER_OF_FOUR = FOUR_ALONE | {"change": "folder_of_flash_attn_4"}
CASES = [*PASSES, *FAULTY, FOLDER_OF_FOUR]  # in one process, since starting it takes longest


def result_of(case: dict[str, Any]) -> dict[str, Any]:
    return results(CASES)[CASES.index(case)]


def complaints(case: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Everything that a GPU would have refused or waited for."""
    if "error" in result:
        return [result["error"]]
    wrong = list(result["problems"])
    wrong += [f"a copy that waits, at {copy['site']}" for copy in result["copies"] if copy["waits"]]
    if any(call["same_ends"] for call in result["calls"]):
        wrong.append("the ends of queries and keys are one tensor")
    if set(result["gradients"]) != {f"torch.{case.get('dtype', 'bfloat16')} cuda:0"}:
        wrong.append(f"gradients are {result['gradients']}")
    if result["loss"] != ["torch.float32", "cuda"]:
        wrong.append(f"the loss is {result['loss']}")
    return wrong


@pytest.mark.parametrize("case", PASSES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_pass_fits_a_gpu_and_never_makes_the_host_wait(case: dict[str, Any]) -> None:
    result = result_of(case)
    assert complaints(case, result) == []
    chosen = (f"attention: {case['backend']} (as configured)", "kernels: compiled (the fewest")
    for actual, expected in zip(result["line"].split("; "), chosen, strict=True):
        assert actual.startswith(expected)
    assert len(result["copies"]) == result["batch_tensors"] + LAYOUT_COPIES[case["backend"]]


def test_every_backend_is_run() -> None:
    assert set(BACKENDS) - NOT_RUN <= set(LAYOUT_COPIES)


@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case["change"])
def test_the_rig_reports_a_fault(case: dict[str, Any]) -> None:
    wrong = complaints(case, result_of(case))
    assert any(REPORTED[case["change"]] in complaint for complaint in wrong), wrong


def test_a_folder_of_flash_attn_4_is_not_taken_for_flash_attn_2() -> None:
    result = result_of(FOLDER_OF_FOUR)
    assert complaints(FOLDER_OF_FOUR, result) == []
    assert result["line"].startswith("attention: torch_varlen (")
