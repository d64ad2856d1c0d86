"""Imports of large libraries, made quicker: they are most of the time of a restart."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports(*, with_bitsandbytes: bool) -> Iterator[None]:
    """Inside the block libraries are imported without work that a run does not need.

    - Garbage is not collected. Modules make many objects that stay, and looking through all of them
      again and again takes a fifth of the time. They are never looked through later either.
    - peft imports bitsandbytes if it is installed, which imports torch's compiler. Only a quantized
      base uses it, so without `with_bitsandbytes` it seems not to be installed from here on.
    """
    if not with_bitsandbytes:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
