"""Errors that mean that memory, disk, open files or threads ran out, in words for people."""

from __future__ import annotations

import errno
import re

from cpo_ds.errors import one_line

_SMALLER = (
    "Lower batch.tokens_per_rank, set model.gradient_checkpointing: true, or take a deepspeed file "
    "that splits or offloads more; `cpo-ds plan` tells what fits."
)
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)
_HOST_MEMORY = re.compile(r"DefaultCPUAllocator|[Cc]annot allocate memory|not enough memory")


def disk_problem(error: OSError) -> str | None:
    """A paragraph about a disk that is full or broken; None for any other error."""
    if error.errno not in _OF_DISKS:
        return None
    file = error.filename or "a file"
    return (
        f"{file} cannot be read or written: {error.strerror}; make room, or look after the disk, "
        "and give the same command again."
    )


def path_problem(error: OSError) -> str | None:
    """A paragraph about a path that could not even be looked at; None if the error names no path.

    Such a path is too long, or behind a folder without permission.
    """
    if error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}; correct the path or its permissions."


def limit_problem(error: BaseException) -> str | None:
    """A paragraph about the limit that an error met; None for any other error.

    An error that was raised while another one was handled is judged by both.
    """
    import torch  # here, since programs answer --help without it

    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU has too little memory: {one_line(text.split(' If reserved')[0])} {_SMALLER}"
        )
    number = error.errno if isinstance(error, OSError) else None
    is_library = isinstance(error, RuntimeError)
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or (is_library and _HOST_MEMORY.search(text))
    ):
        reason = one_line(text) or "Python could not get any"
        return f"this host has too little memory: {reason}. {_SMALLER}"
    if number in (errno.EMFILE, errno.ENFILE) or (is_library and "Too many open files" in text):
        return (
            f"this host allows too few open files: {one_line(text)}. Raise the limit before the "
            "start (ulimit -n 65536)."
        )
    if is_library and "can't start new thread" in text:
        return "this host allows too few threads. Raise the limit before the start (ulimit -u)."
    if isinstance(error, OSError) and (problem := disk_problem(error)):
        return problem
    before = error.__cause__ or error.__context__
    return limit_problem(before) if before is not None else None
