"""The command `cpo-ds plan` leaves out libraries that no plan uses, and gives the same numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cpo_ds.cli import main

LIBRARIES = ("torch._dynamo.eval_frame", "torch.distributed.tensor._api", "scipy")
# As the command's script does: without arguments `main` knows that the process is its own.
COMMAND = f"""
import sys
from cpo_ds.cli import main
code = main()
print([name for name in {LIBRARIES} if sys.modules.get(name)], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "RTX-4090"],
        ["--device", "H100", "--config", "own-pairs", "--loss.name", "dpo",
         "--loss.reference", "model"],
        ["--device", "V100-32GB", "--model.dtype", "float32"],
    ],
    ids=["recommended", "two models", "float32"],
)  # fmt: skip
def test_a_plan_is_the_same_without_the_libraries_that_it_does_not_use(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--shape", "tinyllama-1.1b", "--gpus", "2", "--json", *options]
    alone = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=False
    )
    code = main(words)
    assert code == 0, capsys.readouterr().err
    assert (alone.returncode, alone.stdout) == (code, capsys.readouterr().out)
    if "float32" not in options:
        assert alone.stderr.splitlines()[-1] == "[]"


def test_with_libraries_that_need_what_was_left_out_the_command_starts_again() -> None:
    """A module that fails with a stand-in in the place of torch's compiler."""
    words = ["plan", "--shape", "tinyllama-1.1b", "--device", "H100"]
    broken = """
import sys
from cpo_ds.planner import light_imports
light_imports._StandIn.__getattr__ = lambda module, name: 1 / 0
"""
    plain, again = (
        subprocess.run(
            [sys.executable, "-c", before + COMMAND, *words],
            capture_output=True,
            text=True,
            check=False,
        )
        for before in ("", broken)
    )
    assert plain.returncode == 0 and again.returncode == 0, again.stderr
    assert again.stdout == plain.stdout
