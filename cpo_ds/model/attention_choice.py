"""Chooses the attention backend for a model and a device, and says why."""

from __future__ import annotations

import inspect

import torch

from cpo_ds.errors import UserError, one_line

_CAPS_SCORES = ("reference", "flash_attn")  # backends that can soft-cap attention scores
_FLASH_KERNELS = ("torch_varlen", "flash_attn")
_FLASH_CAPABILITY = (8, 0)  # both kernels are compiled for Ampere and newer GPUs only


def choose_backend(
    requested: str,
    *,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    softcap: float | None,
) -> tuple[str, str]:
    """Picks the attention backend; returns its name and the reason, for the log.

    `capability` is the GPU's compute capability, None on a CPU. `softcap` is the model's
    soft-capping of attention scores, if it has any. Raises `UserError` if the requested backend
    cannot serve the model or the device exactly.
    """
    no_kernels = _why_no_flash_kernels(capability, dtype)
    # The package is imported only if its kernel could run.
    no_flash_attn = None if no_kernels else why_no_flash_attn()
    if requested != "auto":
        _check_backend(requested, no_kernels, no_flash_attn, softcap)
        return requested, "as configured"
    if no_kernels is None and no_flash_attn is None:
        return "flash_attn", "fastest for half precision on this GPU"
    if softcap is not None:
        return (
            "reference",
            "the model caps attention scores, and no faster backend here can do that",
        )
    if no_kernels is None:
        return "torch_varlen", f"half precision on a GPU; {no_flash_attn}"
    return "sdpa", f"a flash kernel {no_kernels}"


def _why_no_flash_kernels(capability: tuple[int, int] | None, dtype: torch.dtype) -> str | None:
    """Why no flash kernel can run on this device in this precision; None if one can."""
    if capability is None or dtype not in (torch.bfloat16, torch.float16):
        given = f"{str(dtype).removeprefix('torch.')} on a {'GPU' if capability else 'CPU'}"
        return f"needs a CUDA GPU and model.dtype bfloat16 or float16, and this is {given}"
    if capability < _FLASH_CAPABILITY:
        have, need = (".".join(map(str, numbers)) for numbers in (capability, _FLASH_CAPABILITY))
        return f"needs a GPU of compute capability {need} or higher, and this one has {have}"
    return None


def why_no_flash_attn() -> str | None:
    """Why flash-attn 2's kernel cannot be called here; None if it can.

    The package is imported, because looking for it is not enough: flash-attn 4 alone leaves a
    folder of that name without this function, and a binary for another torch fails when it loads.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return "flash-attn is not installed"
        return f"flash-attn is installed but cannot be imported ({one_line(error)})"
    except Exception as error:  # a binary that does not fit may raise anything
        return f"flash-attn is installed but cannot be imported ({one_line(error)})"
    if "softcap" not in inspect.signature(flash_attn_varlen_func).parameters:
        return "flash-attn is installed but older than 2.6, and its kernel lacks softcap"
    return None


def _check_backend(
    name: str, no_kernels: str | None, no_flash_attn: str | None, softcap: float | None
) -> None:
    """Raises `UserError` if a requested backend cannot be used; two arguments are reasons."""
    if name in _FLASH_KERNELS and no_kernels is not None:
        raise UserError(f"model.attention: {name} {no_kernels}; set model.attention: auto.")
    if name == "flash_attn" and no_flash_attn is not None:
        raise UserError(
            f"model.attention is flash_attn, but {no_flash_attn}; "
            "pip install 'cpo-ds[flash]', or set model.attention: auto."
        )
    if softcap is not None and name not in _CAPS_SCORES:
        raise UserError(
            f"the model caps attention scores (at {softcap}), which model.attention: {name} cannot "
            f"do; use one of {', '.join(_CAPS_SCORES)}, or auto."
        )
