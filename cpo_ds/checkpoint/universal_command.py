"""`cpo-ds universal`: converts a checkpoint for any number of ranks."""

from __future__ import annotations

import argparse
from pathlib import Path

from cpo_ds.checkpoint.inventory import check_named, find_intact
from cpo_ds.storage.lock import hold_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds universal`."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="output_dir of a run")
    add("--checkpoint", metavar="STEP", help="a step or a step-... folder (the newest intact one)")


def run(arguments: argparse.Namespace) -> int:
    """Converts the checkpoint beside itself, unless it needs no conversion; returns 0.

    Raises `UserError` for a checkpoint that is missing or damaged, and if the conversion fails.
    """
    check_named(arguments.run, arguments.checkpoint)
    from cpo_ds.checkpoint.reshard import convert  # imported late: DeepSpeed takes seconds

    path, manifest, _hold = find_intact(arguments.run, arguments.checkpoint, print)
    if manifest.zero_stage == 0:
        print(f"{path} was saved at ZeRO stage 0 and fits any number of ranks as it is")
        return 0
    # A run that goes on in this folder would tidy up under the conversion: keep it out.
    lock = hold_folder(path.parent.parent)
    folder, seconds = convert(path, manifest, path.parent)
    lock.close()
    print(f"{folder} " + ("is there already" if seconds is None else f"took {seconds:.0f} s"))
    return 0
