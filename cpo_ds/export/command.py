"""`cpo-ds export`: writes a model or adapter from a checkpoint."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ds.checkpoint.inventory import check_named
from cpo_ds.errors import UserError
from cpo_ds.ranks.quiet import silence_after_import, silence_libraries

if TYPE_CHECKING:
    from cpo_ds.export.push import Push


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds export`."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="output_dir of a run")
    add("--checkpoint", metavar="STEP", help="a step or a step-... folder (the newest intact one)")
    add("--output", metavar="FOLDER", type=Path, help="new folder to write to (RUN/export...)")
    add("--merge", action="store_true", help="add a LoRA adapter to its base: a full model")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (the run's)")
    add(
        "--push", metavar="REPO", help="push it to this repository on the hub, a private one if new"
    )
    add("--public", action="store_true", help="with --push: make a new repository public")
    add("--replace", action="store_true", help="with --push: in place of the files that are there")
    add("--base", metavar="NAME", help="with --push: the base model's name on the hub")
    add("--no-verify", action="store_true", help="do not load the export again to compare it")


def run(arguments: argparse.Namespace) -> int:
    """Writes the export, and pushes it if asked to; returns 0. Raises `UserError`."""
    for option in ("public", "replace", "base"):
        if getattr(arguments, option) and not arguments.push:
            raise UserError(f"--{option} belongs to --push REPO; give both, or leave it out.")
    # Imported late: torch, transformers and DeepSpeed take seconds. The export uses no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    silence_libraries()
    push = _push(arguments) if arguments.push else None
    check_named(arguments.run, arguments.checkpoint)
    from cpo_ds.export.from_checkpoint import export

    silence_after_import()
    folder = export(
        arguments.run,
        arguments.checkpoint,
        arguments.output,
        merge=arguments.merge,
        dtype=arguments.dtype,
        verify=not arguments.no_verify,
        check_base=push.check_base if push else None,
    )
    if push:
        print(f"pushing it to {push.repo}", flush=True)
        print(f"pushed: {push.send(folder)}")
    return 0


def _push(arguments: argparse.Namespace) -> Push:
    """The push, checked before anything heavy is imported and before a checkpoint is read."""
    from cpo_ds.export.push import Push

    return Push(
        arguments.push, public=arguments.public, replace=arguments.replace, base=arguments.base
    )
