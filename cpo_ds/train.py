"""The script that `deepspeed` launches.

    deepspeed --num_accelerators 2 cpo_ds/train.py --config recipes/demo.yaml
    python cpo_ds/train.py --config recipes/demo.yaml           # one rank

`cpo_ds.run.main` documents the exit codes.
"""

import importlib.util
import os
import signal
import sys

# Ctrl-C during the imports ends this script without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Python puts the folder of a script first on the import path. Modules in this one would shadow
# libraries of the same name, so the path gets the folder that holds the package instead.
_PACKAGE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _PACKAGE]
if os.path.dirname(_PACKAGE) not in sys.path:
    sys.path.insert(0, os.path.dirname(_PACKAGE))

if importlib.util.find_spec("deepspeed") is None:
    from cpo_ds.shipped import set_up

    print(
        f"cpo_ds: error: {sys.executable} has no package deepspeed; run {set_up()}, and activate "
        "the environment (in a checkout: source .venv/bin/activate).",
        file=sys.stderr,
    )
    sys.exit(2)

from cpo_ds.run.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
