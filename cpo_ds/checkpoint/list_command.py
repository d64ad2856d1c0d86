"""`cpo-ds checkpoints`: lists a run's checkpoints and verifies every byte."""

from __future__ import annotations

import argparse
from pathlib import Path

from cpo_ds.checkpoint.inventory import list_checkpoints

EXIT_DAMAGED = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds checkpoints`."""
    parser.description = f"{parser.description} Exit code {EXIT_DAMAGED} if one is damaged."
    parser.add_argument("run", metavar="RUN", type=Path, help="output_dir of a run")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list; returns 0, or `EXIT_DAMAGED` if a checkpoint is damaged."""
    table, all_intact = list_checkpoints(arguments.run)
    print(table)
    return 0 if all_intact else EXIT_DAMAGED
