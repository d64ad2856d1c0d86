"""The command `cpo-ds`."""

from __future__ import annotations

import subprocess
import sys

from repository import ROOT

from cpo_ds.cli import COMMANDS, PREPARE_STEPS


def help_of(*command: str, without: set[str]) -> str:
    """The help of a command, in a process that must not import the libraries in `without`."""
    code = f"import sys, cpo_ds.cli as c\ntry: c.main({[*command, '--help']})\n"
    code += f"except SystemExit: pass\nassert not {without} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_is_quick_and_names_every_command() -> None:
    printed = help_of(without={"torch", "deepspeed", "numpy", "pydantic"})
    for name in ("export", "report", "checkpoints", "universal", *COMMANDS, "prepare"):
        assert f"    {name}" in printed


def test_the_help_of_each_command_is_quick() -> None:
    heavy = {"torch", "deepspeed", "numpy"}
    assert "--hostfile" in help_of("doctor", without=heavy | {"pydantic"})
    for name in COMMANDS:
        assert f"cpo-ds {name} [-h]" in help_of(name, without=heavy)
    for name in PREPARE_STEPS:
        assert f"cpo-ds prepare {name} [-h]" in help_of("prepare", name, without=heavy)


def test_a_python_without_the_packages_is_told_so() -> None:
    """`-S -I` leaves out all installed packages, as if the environment were not active."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cpo_ds.cli import main; "
    for command, code, said in (
        (["init"], 2, "is not installed in"),
        (["plan", "--config", "demo", "--gpu-memory", "24"], 2, "cpo-ds doctor checks it"),
        (["recipes"], 0, ""),
        (["--version"], 0, "cpo-ds "),
    ):
        program = [sys.executable, "-S", "-I", "-c", f"{start}sys.exit(main({command!r}))"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and said in done.stdout + done.stderr, done.stderr
        assert "Traceback" not in done.stderr
