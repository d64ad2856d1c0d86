"""Builds `guard.cpp` for the installed torch and loads it. Nothing here imports torch."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
# torch's libraries that the guard calls into, each one after those that it needs.
_LIBRARIES = ("libgomp", "libc10.so", "libtorch_cpu.so")


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def reason_against() -> str | None:
    """Why CUDA tensors cannot be faked on this machine; None if they can."""
    if sys.platform != "linux":
        return "the guard of fake CUDA tensors is built on Linux only"
    if any((_torch_folder() / "lib").glob("libtorch_cuda.so")):
        return "this torch has CUDA of its own, which the guard cannot stand in for"
    if _compiler() is None:
        return "there is no C++ compiler (c++ or $CXX) to build the guard of fake CUDA tensors"
    return None


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def build() -> Path:
    """Compiles the guard in a few seconds, unless it was compiled for this torch before."""
    version = importlib.metadata.version("torch")
    key = hashlib.sha256(f"{version} {_torch_folder()}".encode() + SOURCE.read_bytes()).hexdigest()
    cache = Path(tempfile.gettempdir()) / f"cpo-ds-fake-cuda-{os.getuid()}"
    library = cache / f"guard-{version}-{key[:12]}.so"
    if library.exists():
        return library
    cache.mkdir(mode=0o700, exist_ok=True)
    # Another process may build it too: each has a file of its own, and the last rename wins.
    unfinished = library.with_suffix(f".{os.getpid()}")
    compiler = _compiler()
    assert compiler is not None
    subprocess.run(
        [
            compiler, "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{_torch_folder() / 'include'}",
            str(SOURCE), "-o", str(unfinished),
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    unfinished.rename(library)
    return library


def load(library: Path) -> None:
    """Loads the guard into this process, which must not have imported torch yet.

    torch asks for its CUDA hooks once, when it is imported; later ones would not be seen.
    """
    assert "torch" not in sys.modules
    folder = _torch_folder() / "lib"
    for name in _LIBRARIES:
        for file in sorted(folder.glob(f"{name}*")):
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
