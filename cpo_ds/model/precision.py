"""Chooses the precision for `model.dtype: auto` by the devices of a run, and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cpo_ds.config import Config

if TYPE_CHECKING:  # importing it takes seconds, because it needs DeepSpeed
    from cpo_ds.ranks.ranks import Ranks

_BFLOAT16_CAPABILITY = (8, 0)  # the first GPUs that compute bfloat16 are Ampere's

# Instructions that multiply bfloat16 matrices faster than float32, by torch's names of them. Where
# oneDNN reports bfloat16 as supported, it may emulate it with slower ones, so that is not asked.
_FAST_INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "sve_bf16": "SVE BF16",
    "bf16": "Arm BF16",
}


class Precision(NamedTuple):
    """A value of `model.dtype` and the reason for it."""

    dtype: str
    reason: str


def gpu_precision(capability: tuple[int, int]) -> Precision:
    """The precision for a GPU of a compute capability: bfloat16 if it computes that natively."""
    version = ".".join(map(str, capability))
    if capability >= _BFLOAT16_CAPABILITY:
        return Precision("bfloat16", f"the GPU, of compute capability {version}, computes it")
    return Precision(
        "float32",
        f"the GPU, of compute capability {version}, does not compute bfloat16, and float16 "
        "overflows in many models, so a recipe has to ask for it",
    )


def cpu_precision(capabilities: Mapping[str, Any]) -> Precision:
    """The precision for a processor with the given `torch.cpu.get_capabilities()`."""
    for instructions, name in _FAST_INSTRUCTIONS.items():
        if capabilities.get(instructions):
            return Precision("bfloat16", f"the processor multiplies it faster, by {name}")
    return Precision("float32", "the processor has no fast instructions for bfloat16")


def device_precision(device: torch.device) -> Precision:
    """The precision for a device of this host."""
    if device.type == "cuda":
        return gpu_precision(torch.cuda.get_device_capability(device))
    # torch multiplies bfloat16 by oneDNN, and slowly if it was built without.
    return cpu_precision(
        torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
    )


def common_precision(choices: Sequence[Precision], hosts: Sequence[str]) -> Precision:
    """The precision for all ranks, of which each has a choice and a host: float32 if they differ.

    Every device computes float32, and no device is slow in it alone.
    """
    for choice, host in zip(choices, hosts, strict=True):
        if choice.dtype != choices[0].dtype:
            slow, its_host = (choice, host) if choice.dtype == "float32" else (choices[0], hosts[0])
            return Precision("float32", f"on host {its_host} {slow.reason}")
    return choices[0]


def with_precision(config: Config, ranks: Ranks) -> tuple[Config, str]:
    """Replaces `model.dtype: auto` by the same precision on all ranks.

    Returns the configuration and a line for the log, an empty one if the recipe names a precision.
    """
    if config.model.dtype != "auto":
        return config, ""
    dtype, reason = common_precision(ranks.gather(device_precision(ranks.device)), ranks.hosts)
    return config.with_model(dtype=dtype), f"model.dtype auto: {dtype} ({reason})"
