"""The program that asks torch about this machine: `cpo-ds doctor` runs it in a process of its own.

It prints one line of JSON after `MARK`.
"""

from __future__ import annotations

import json
from typing import Any

MARK = "cpo-ds torch: "  # libraries may print other lines


def probe() -> dict[str, Any]:
    """Answers what torch says of its build, of GPUs, of precision and of attention backends."""
    import torch

    from cpo_ds.errors import UserError, one_line
    from cpo_ds.model.attention_choice import KERNELS, choose_backend
    from cpo_ds.model.precision import device_precision

    # The GPUs that torch can use, which may be fewer than the machine has.
    trouble = ""
    if torch.version.cuda and not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except Exception as error:  # a driver that does not fit may raise anything
            trouble = one_line(error)
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    capabilities = [torch.cuda.get_device_capability(i) for i in range(number)]
    capability = min(capabilities, default=None)

    # The attention backends that work for a model of the usual kind: heads of 128 values, no caps.
    precision = device_precision(torch.device("cuda" if number else "cpu"))
    dtype = getattr(torch, precision.dtype)
    chosen, because = choose_backend(
        "auto", capability=capability, dtype=dtype, softcap=None, head_size=128
    )
    refused: dict[str, str] = {}
    for name in (*KERNELS, "blocks", "sdpa", "reference"):
        try:
            choose_backend(name, capability=capability, dtype=dtype, softcap=None, head_size=128)
        except UserError as error:
            refused[name] = str(error).removeprefix(f"model.attention: {name} ").partition("; ")[0]
    works = [name for name in (*KERNELS, "blocks", "sdpa", "reference") if name not in refused]
    return {
        "gpus": [torch.cuda.get_device_name(i) for i in range(number)],
        "cuda": torch.version.cuda or "",
        "trouble": trouble,
        "dtype": precision.dtype,
        "dtype_because": precision.reason,
        "attention": chosen,
        "attention_because": because,
        "works": works,
        "refused": refused,
    }


if __name__ == "__main__":
    print(MARK + json.dumps(probe()))
