"""The command `cpo-ds`."""

from __future__ import annotations

import subprocess
import sys


def test_help_is_quick_and_names_every_command() -> None:
    code = "import sys, cpo_ds.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("export", "report", "checkpoints", "universal"):
        assert f"    {name}" in done.stdout
