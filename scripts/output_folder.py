"""The folder that a run would write to, once all that it is told has been checked.

    python scripts/output_folder.py --config FILE [--section.field value ...]

Takes the arguments of cpo_ds/train.py, for shell scripts: checks them and the DeepSpeed file, which
needs no torch and touches nothing, and prints the resolved output_dir. What is wrong is said as a
run says it, with exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Also where the package is not installed, as in cpo_ds/train.py.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.recipe import load_config, read_deepspeed_file


def main(argv: list[str]) -> int:
    try:
        config, _ = load_config(argv)
        read_deepspeed_file(config)
    except UserError as error:
        print(f"cpo_ds: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(config.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
