"""Sets up the allocators of memory, on GPUs and on CPUs, for blocks that come and go each step."""

from __future__ import annotations

import ctypes
import os

# torch takes the settings of its allocator from the first of these that is set.
_OF_TORCH = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# The GNU C library takes its settings from these.
_OF_C_LIBRARY = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of settings, in its malloc.h


def let_gpu_memory_grow() -> None:
    """Lets torch enlarge its blocks of GPU memory, unless the user has set up its allocator.

    Micro-batches differ in size, and blocks of fixed sizes would leave unusable gaps between them.
    Call it before torch is imported.
    """
    if not any(name in os.environ for name in _OF_TORCH):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def keep_freed_memory() -> None:
    """Keeps memory that this process frees for its next step, if it computes on a CPU.

    The C library would give each large block back to the system. The next step would get it page by
    page, filled with zeros, for about a tenth of a step's time. Does nothing if the user has set up
    the library.
    """
    import torch  # here, since `let_gpu_memory_grow` has to come before

    if torch.cuda.is_available() or any(name in os.environ for name in _OF_C_LIBRARY):
        return
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):  # another C library
        return
