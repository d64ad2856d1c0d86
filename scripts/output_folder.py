"""Checks the arguments of a run and prints its output_dir, for shell scripts.

    python scripts/output_folder.py --config FILE [--section.field value ...]

The arguments are those of cpo_ds/train.py. The recipe and the DeepSpeed file are checked too. This
needs no torch and writes no file. Errors have the words of a run's own, and exit code 2.
"""

from __future__ import annotations

import sys

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.recipe import load_config, read_deepspeed_files


def main(argv: list[str]) -> int:
    """Prints the output_dir; returns 0, or 2 if an argument or a file is wrong."""
    try:
        config, _ = load_config(argv)
        read_deepspeed_files(config)
    except UserError as error:
        print(f"cpo_ds: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(config.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
