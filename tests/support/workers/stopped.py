"""Runs in which a rank's process is stopped, as by SIGSTOP, while a chosen function is called."""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

from cpo_ds.ranks import roll_call, watch
from cpo_ds.run.main import main


def stop_at(where: str, victim: int, is_of_first: bool, folder: str, *arguments: str) -> int:
    """Trains, but a rank's process is stopped when the function `where` is called.

    The victim stops itself. Only rank 0 calls a function `is_of_first`, and then stops the victim.
    """
    rank = int(os.environ["RANK"])
    (Path(folder) / f"pid-{rank}").write_text(str(os.getpid()))
    module, _, name = where.rpartition(".")
    owner: Any = importlib.import_module(module)
    original = getattr(owner, name)

    def stop_and_call(*inputs: Any, **options: Any) -> Any:
        if is_of_first or rank == victim:
            os.kill(int((Path(folder) / f"pid-{victim}").read_text()), signal.SIGSTOP)
            time.sleep(0.1)
        return original(*inputs, **options)

    with (
        mock.patch.object(owner, name, stop_and_call),
        mock.patch.object(watch, "_GRACE_SECONDS", 2.0),
        mock.patch.object(roll_call, "_LEAST_MINUTES", 0.1),
    ):
        return main(list(arguments))
