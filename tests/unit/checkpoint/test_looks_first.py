"""Commands on a run look for it before they import slow libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from cpo_ds.cli import main
code = main(sys.argv[1:])
slow = [name for name in ("torch", "deepspeed", "transformers") if name in sys.modules]
print(code, slow)
"""


@pytest.mark.parametrize("command", ["export", "universal", "checkpoints", "report"])
def test_a_run_that_is_missing_is_told_before_slow_imports(command: str, tmp_path) -> None:
    words = [sys.executable, "-c", PROGRAM, command, str(tmp_path / "nowhere")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
    assert "give the output_dir of a run" in done.stderr
