"""`cpo-ds export`: writes a model or adapter from a checkpoint."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cpo_ds.ranks.quiet import silence_after_import, silence_libraries


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds export`."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="output_dir of a run")
    add("--checkpoint", metavar="STEP", help="a step or a step-... folder (the newest intact one)")
    add("--output", metavar="FOLDER", type=Path, help="new folder to write to (RUN/export...)")
    add("--merge", action="store_true", help="add a LoRA adapter to its base: a full model")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (the run's)")
    add("--no-verify", action="store_true", help="do not load the export again to compare it")


def run(arguments: argparse.Namespace) -> int:
    """Writes the export; returns 0. Raises `UserError`."""
    # Imported late: torch, transformers and DeepSpeed take seconds. The export uses no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    silence_libraries()
    from cpo_ds.export.from_checkpoint import export

    silence_after_import()
    export(
        arguments.run,
        arguments.checkpoint,
        arguments.output,
        merge=arguments.merge,
        dtype=arguments.dtype,
        verify=not arguments.no_verify,
    )
    return 0
