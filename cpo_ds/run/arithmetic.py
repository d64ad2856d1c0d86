"""Sets how torch computes in a run: how exactly, and whether the same in every run."""

from __future__ import annotations

import os

import torch


def set_arithmetic(*, deterministic: bool) -> None:
    """Sets torch's switches for this process; it must come before the first use of a GPU.

    `deterministic` makes every operation give the same bits in each run, or raise an error if torch
    has no such version of it. Attention's kernels read the same switch.
    """
    # Long sums, such as those of a LoRA adapter's gradients, stay float32 until they are complete.
    # On GPUs torch would let cuBLAS split them and add up the parts in half precision.
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False

    if deterministic:
        # cuBLAS repeats its results only with workspaces of a fixed size. It reads this variable
        # when a process starts to use a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # This would write NaN into all new memory first, to show reads before the first write.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
