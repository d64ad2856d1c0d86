"""Modules of the package are imported in a fresh interpreter."""

import subprocess
import sys

import architecture


def test_every_module_imports_without_optional_packages():
    """A fresh interpreter shows modules that start CUDA, or that need CUDA or MPI."""
    modules = [f"cpo_ds.{name}" for name in architecture.package_imports() if name]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized(), 'CUDA was started by an import'\n"
        "found = {'flash_attn', 'mpi4py', 'comet'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
