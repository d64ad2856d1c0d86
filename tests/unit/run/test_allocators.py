"""The allocators of memory, on GPUs and on CPUs."""

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
        print({k: v for k, v in os.environ.items() if k.endswith("ALLOC_CONF")},
              flush=True)
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


# Frees a block of 64 MiB and tells how much of the process's memory that gave back, in MiB.
FREES = """
import resource
import torch
from cpo_ds.run.allocators import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

keep_freed_memory()
block = torch.ones(2**24)
before = resident()
del block
print(before - resident())
"""


@pytest.mark.parametrize(
    ("given", "given_back"), [({}, 0), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, 64)]
)
def test_freed_memory_is_kept_unless_the_user_has_set_up_the_c_library(given, given_back):
    done = subprocess.run(
        [sys.executable, "-c", FREES],
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(given_back, abs=8), done.stderr
