"""Options of `cpo-ds train` that cannot be used, refused before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ds import cli

HOSTFILE = "two slots=2\nhosts slots=2\n"

# Options -> the message.
REFUSED: dict[str, tuple[str, str]] = {
    "none": ("--gpus 0", "--gpus is 0; give at least 1, or leave it out for all GPUs"),
    "negative": ("--gpus -2", "--gpus is -2; give at least 1"),
    "too many": (
        "--gpus 5000", "5000 ranks are asked for, but this machine has no GPU and"
    ),
    "both": ("--gpus 2 --hostfile {tmp}/hosts", "give --gpus or --hostfile, not both"),
    "no file": ("--hostfile {tmp}/none", "hostfile {tmp}/none cannot be read: No such file"),
    "a bad file": ("--hostfile {tmp}/bad", "{tmp}/bad:1: 'a': no slots"),
    "slots here": ("--hostfile {tmp}/here", "5000 ranks are asked for"),
    "address": ("--gpus 1 --master-addr x", "--master-addr goes with --hostfile"),
    "port": ("--master-port 0", "--master-port has to be between 1 and 65535"),
    "another launcher's": ("--num_gpus 2", "unknown argument --num_gpus on the command line (did "
                           "you mean --gpus?)"),
    "misspelt": ("--host-file x", "unknown argument --host-file on the command line (did you mean "
                 "--hostfile?)"),
    "a setting": ("--gpus 1 --batch.pair 3", "(did you mean --batch.pairs?)"),
    "no recipe": ("--gpus 1 --config {tmp}/none.yaml", "there is no recipe {tmp}/none.yaml"),
    "dry run too": ("--gpus 0 --dry-run", "--gpus is 0"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def hostfiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text(HOSTFILE)
    (tmp_path / "bad").write_text("a\n")
    (tmp_path / "here").write_text("localhost slots=5000\n")
    monkeypatch.setattr("cpo_ds.start.devices.gpus_here", list)  # as on a machine without any


@pytest.mark.parametrize("case", REFUSED)
def test_refused_options(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = (text.format(tmp=tmp_path) for text in REFUSED[case])
    argv = options.split()
    recipe = [] if "--config" in argv else ["--config", "demo"]
    assert cli.main(["train", *recipe, *argv]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("cpo_ds: error: ") and message in said.err
    assert said.err.count("\n") == 1 and said.out == ""


def test_a_rank_starts_no_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "--config", "demo"]) == 2
    assert "a launcher has started this one" in capsys.readouterr().err


def test_a_refusal_imports_no_large_library() -> None:
    code = (
        "import sys, cpo_ds.cli as c\n"
        "assert c.main(['train', '--config', 'demo', '--gpus', '1', '--batch.pairs', '0']) == 2\n"
        "print({'torch', 'deepspeed', 'transformers', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60
    )
    assert done.stdout == "set()\n", done.stderr
