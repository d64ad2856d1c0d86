"""The environment that torch's allocator of GPU memory reads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Looks at the environment at the moment in which torch is imported, in a process of its own.
PROGRAM = """
import builtins, os, sys
from cpo_ds.run.main import main

real = builtins.__import__
def spy(name, *others):
    if name == "torch":
        print({k: v for k, v in os.environ.items() if k.endswith("ALLOC_CONF")})
        os._exit(0)
    return real(name, *others)
builtins.__import__ = spy
main(["--config", "recipes/demo.yaml"])
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, None),
        ({"PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128"}, None),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, None),
    ],
)
def test_memory_grows_unless_the_user_has_set_up_the_allocator(given, expected):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("ALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{given if expected is None else expected}\n", done.stderr
