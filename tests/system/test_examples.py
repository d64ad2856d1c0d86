"""The scripts in examples/ say how they are used; the Dockerfile copies what a wheel is made of."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path

import pytest
from repository import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_how_it_is_used(script: Path) -> None:
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"bash {script.name} MODEL" in done.stderr


def test_the_docker_image_gets_what_a_wheel_is_built_of() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (.*)$", text, flags=re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == {
        "constraints.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE", "cpo_ds",
        "ds_configs", "hostfiles", "recipes",
    }  # fmt: skip
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert any(fnmatch.fnmatch(name, line[1:]) for line in allowed if line[0] == "!"), name
    # Every version is that of the constraints; the compiler's and flash-attn's are arguments.
    assert not re.findall(r"[a-z]==\d", text) and text.count("-c constraints.txt") == 3
