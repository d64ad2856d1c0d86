"""Chooses the attention backend for a model and a device, and says why."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module

import torch

from cpo_ds.errors import UserError, one_line

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Package:
    """A package with a kernel that not every machine has, or that older versions lack."""

    name: str
    module: str  # that has the function
    argument: str  # of the function, which versions before `oldest` lack
    oldest: str
    install: str
    function: str = "flash_attn_varlen_func"


@dataclass(frozen=True)
class Kernel:
    """What a backend with a GPU kernel of its own can serve, in half precision.

    `capability` is the lowest and the highest compute capability (major numbers, inclusive), and
    `head_size` the largest, which must be a multiple of 8. Windows are served by all.
    """

    capability: tuple[int, int]
    head_size: int = 256
    deterministic_head_size: int = 256  # the largest whose gradient can be the same in every run
    caps_scores: bool = False
    package: Package | None = None


_NEWEST = 99
KERNELS = {
    "flash_attn_3": Kernel(
        (9, 9),
        deterministic_head_size=192,
        caps_scores=True,
        package=Package(
            "flash-attn 3",
            "flash_attn_interface",
            argument="qv",
            oldest="2.8's hopper folder",
            install="install it from the hopper folder of github.com/Dao-AILab/flash-attention",
        ),
    ),
    "flash_attn_4": Kernel(
        (9, 11),
        head_size=128,
        deterministic_head_size=128,
        package=Package(
            "flash-attn 4",
            "flash_attn.cute",
            argument="min_seqlen_k",
            oldest="4.0.0b9",
            install="pip install flash-attn-4",
        ),
    ),
    "flash_attn": Kernel(
        (8, _NEWEST),
        caps_scores=True,
        package=Package(
            "flash-attn", "flash_attn", argument="softcap", oldest="2.6",
            install="pip install 'cpo-ds[flash]'",
        ),
    ),
    "torch_varlen": Kernel(
        (8, _NEWEST),
        package=Package(
            "torch", "torch.nn.attention.varlen", argument="enable_gqa", oldest="2.12",
            install="pip install 'torch>=2.12'", function="varlen_attn",
        ),
    ),
    "flex": Kernel((8, _NEWEST), caps_scores=True),
}  # fmt: skip
# By published speeds, per compute capability: none of these GPUs has been measured yet.
_FASTEST_FIRST = {
    9: ("flash_attn_3", "flash_attn", "torch_varlen", "flex"),
    10: ("flash_attn_4", "flash_attn", "torch_varlen", "flex"),
}
_FASTEST_ELSEWHERE = ("flash_attn", "torch_varlen", "flex")
_CAPS_SCORES = ("reference", *(name for name, kernel in KERNELS.items() if kernel.caps_scores))


def choose_backend(
    requested: str,
    *,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    softcap: float | None,
    head_size: int,
) -> tuple[str, str]:
    """Picks the attention backend; returns its name and the reason, for the log.

    `capability` is the GPU's compute capability, None on a CPU. `softcap` is the model's
    soft-capping of attention scores, if it has any. Raises `UserError` if the requested backend
    cannot serve the model or the device exactly.
    """

    def why_not(name: str) -> str | None:
        if name not in KERNELS:
            is_of_cpus = name == "blocks" and capability is not None
            return "is for CPUs, and this is a GPU" if is_of_cpus else None
        kernel = KERNELS[name]
        return (
            _why_not_here(kernel, capability, dtype)
            or _why_not_this_model(kernel, softcap, head_size)
            or (why_not_importable(kernel.package) if kernel.package else None)
        )

    if requested != "auto":
        _check_backend(requested, why_not(requested), softcap)
        return requested, "as configured"
    # Take the fastest kernel that serves the model, and keep why faster ones do not.
    refusals: list[str] = []
    if capability is not None and dtype in HALF:
        for name in _FASTEST_FIRST.get(capability[0], _FASTEST_ELSEWHERE):
            reason = why_not(name)
            if reason is None:
                return name, "; ".join(["fastest for half precision on this GPU", *refusals])
            refusals.append(f"{name} {reason}")
    # Without such a kernel there is always one of these.
    refusals = refusals or [f"a GPU kernel {_why_not_here(KERNELS['flex'], capability, dtype)}"]
    if softcap is not None:
        refusals.insert(0, "the model caps attention scores, and no faster backend here serves it")
        return "reference", "; ".join(refusals)
    if capability is None and dtype == torch.bfloat16:
        return "blocks", "fastest for bfloat16 on a CPU"
    return "sdpa", "; ".join(refusals)


def _why_not_here(
    kernel: Kernel, capability: tuple[int, int] | None, dtype: torch.dtype
) -> str | None:
    """Why the kernel cannot run on this device in this precision; None if it can."""
    if capability is None or dtype not in HALF:
        given = f"{str(dtype).removeprefix('torch.')} on a {'GPU' if capability else 'CPU'}"
        return f"needs a CUDA GPU and model.dtype bfloat16 or float16, and this is {given}"
    lowest, highest = kernel.capability
    if not lowest <= capability[0] <= highest:
        need = f"{lowest}.0 or higher" if highest == _NEWEST else f"{lowest}.0 to {highest}.9"
        have = ".".join(map(str, capability))
        return f"needs a GPU of compute capability {need}, and this one has {have}"
    return None


def _why_not_this_model(kernel: Kernel, softcap: float | None, head_size: int) -> str | None:
    """Why the kernel cannot compute this model's attention exactly; None if it can."""
    if softcap is not None and not kernel.caps_scores:
        return f"cannot cap attention scores, which the model does (at {softcap})"
    if head_size > kernel.head_size or head_size % 8:
        return (
            f"needs heads of a multiple of 8 and at most {kernel.head_size} values, and this model "
            f"has {head_size}"
        )
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and head_size > kernel.deterministic_head_size:
        return (
            f"has no deterministic gradient for heads of more than "
            f"{kernel.deterministic_head_size} values, and this model has {head_size}"
        )
    return None


def why_not_importable(package: Package) -> str | None:
    """Why the package's kernel cannot be called here; None if it can.

    The package is imported, because looking for it is not enough: flash-attn 4 alone leaves a
    folder named flash_attn without flash-attn 2's function, and a binary for another torch fails
    when it loads.
    """
    try:
        function = getattr(import_module(package.module), package.function)
        parameters = inspect.signature(function).parameters
    except ModuleNotFoundError as error:
        if error.name and f"{package.module}.".startswith(f"{error.name}."):
            return f"needs {package.name}, which is not installed"
        return f"cannot be used: {package.name} does not load ({one_line(error)})"
    except Exception as error:  # a binary that does not fit may raise anything
        return f"cannot be used: {package.name} does not load ({one_line(error)})"
    if package.argument not in parameters:
        return f"cannot be used: {package.name} is installed but older than {package.oldest}"
    return None


def _check_backend(name: str, why_not: str | None, softcap: float | None) -> None:
    """Raises `UserError` if a requested backend cannot be used."""
    if softcap is not None and name not in _CAPS_SCORES:
        raise UserError(
            f"the model caps attention scores (at {softcap}), which model.attention: {name} cannot "
            f"do; use one of {', '.join(_CAPS_SCORES)}, or auto."
        )
    if why_not is not None:
        package = KERNELS[name].package if name in KERNELS else None
        advice = f"{package.install}, or " if package and package.name in why_not else ""
        raise UserError(f"model.attention: {name} {why_not}; {advice}set model.attention: auto.")
