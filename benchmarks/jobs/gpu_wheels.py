"""Wheels for a GPU machine without a network: gathered on one machine, installed on the other.

The GPU machine's own torch stays, with all that came with it. Everything else that the trainer,
its tests and the trainers beside it need, and that machine lacks, is taken at the version that
constraints.txt pins. Installing imports nothing but Python's own library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

PROJECT = "cpo-ds"
# Beside the project's own: the tests, and trainers to compare with.
ALSO = ("pytest", "pytest-timeout", "hypothesis", "scipy", "trl", "liger-kernel")
OPTIONAL = ("flash-attn",)  # taken if there is a wheel; it has no pin
KEPT = ("torch", "triton")  # and packages of NVIDIA's, which belong to torch
_GLIBC = (17, 24, 26, 27, 28, 31, 34, 35)  # manylinux_2_N, which pip compares exactly


def canonical(name: str) -> str:
    """A package's name as all indexes know it."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def requirements(names: Iterable[str], python: str) -> dict[str, list[str]]:
    """Package -> the versions that packages ask of it, over all that these names need.

    Read from this environment, for another version of Python. What torch brings is left out.
    """
    from packaging.requirements import Requirement

    asked: dict[str, list[str]] = {}
    waiting = [Requirement(name) for name in names]
    read: set[tuple[str, str]] = set()  # package and extra
    while waiting:
        needed = waiting.pop()
        name = canonical(needed.name)
        if name in KEPT or name.startswith("nvidia-"):
            continue
        if name != PROJECT:
            asked.setdefault(name, [])
            if str(needed.specifier) not in asked[name]:
                asked[name].append(str(needed.specifier))
        for extra in {"", *needed.extras} - {extra for one, extra in read if one == name}:
            read.add((name, extra))
            place = {"python_version": python, "python_full_version": f"{python}.0",
                     "extra": extra}  # fmt: skip
            for text in _requires(name):
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate(place):
                    waiting.append(further)
    return asked


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # only the other version of Python needs it
        return []


def pins(constraints: str, python: str) -> dict[str, str]:
    """Package -> version, as constraints.txt pins them for a version of Python."""
    from packaging.requirements import Requirement

    place = {"python_version": python, "python_full_version": f"{python}.0"}
    pinned = {}
    for text in constraints.splitlines():
        if text.strip() and not text.startswith("#"):
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate(place):
                pinned[canonical(one.name)] = str(one.specifier).removeprefix("==")
    return pinned


def read_present(text: str) -> dict[str, str | None]:
    """Package -> version, None if it is not said, of what `pip list` or `pip freeze` prints."""
    present: dict[str, str | None] = {}
    for line in text.splitlines():
        words = line.replace("==", " ").replace("@", " ").split()
        if words and not words[0].startswith(("#", "-", "Package")):
            version = words[1] if len(words) > 1 and words[1][0].isdigit() else None
            present[canonical(words[0])] = version
    return present


def missing(asked: Mapping[str, Sequence[str]], present: Mapping[str, str | None]) -> list[str]:
    """The packages that are not present, or in a version that some package does not take."""
    from packaging.specifiers import SpecifierSet

    return sorted(
        name
        for name, specifiers in asked.items()
        if name not in present
        or not all(
            SpecifierSet(specifier).contains(version, prereleases=True)
            for specifier in specifiers
            if (version := present[name]) is not None
        )
    )


def gather(
    folder: Path, constraints: Path, *, python: str, machine: str, present: Path | None
) -> list[str]:
    """Fills a folder with the wheels that are missing; returns what could not be had.

    `present` is a file with the GPU machine's `pip list`; without it only torch is taken to be
    there.
    """
    asked = requirements([PROJECT, *ALSO], python)
    there = read_present(present.read_text(encoding="utf-8")) if present else {}
    pinned = pins(constraints.read_text(encoding="utf-8"), python)
    folder.mkdir(parents=True, exist_ok=True)
    lacking = []
    for name in missing(asked, there):
        wanted = f"{name}=={pinned[name]}" if name in pinned else name
        taken = _download(wanted, folder, python, machine) or _build(wanted, folder)
        print(f"{wanted}: {'taken' if taken else 'no wheel for that machine'}", flush=True)
        lacking += [] if taken else [wanted]
    for name in OPTIONAL:
        if name not in there and not _download(name, folder, python, machine):
            print(f"{name}: no wheel to be had; torch's own kernels serve instead", flush=True)
    return lacking


def _download(wanted: str, folder: Path, python: str, machine: str) -> bool:
    platforms = [f"manylinux_2_{n}_{machine}" for n in _GLIBC]
    platforms += [f"manylinux2014_{machine}", f"manylinux1_{machine}", f"linux_{machine}"]
    options = [word for platform in platforms for word in ("--platform", platform)]
    return _pip(
        "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", python, *options, "--dest", str(folder), wanted,
    )  # fmt: skip


def _build(wanted: str, folder: Path) -> bool:
    """Makes a wheel of the source, kept only if it runs on any machine, as DeepSpeed's does."""
    before = set(folder.glob("*.whl"))
    if not _pip("wheel", "--no-deps", "--wheel-dir", str(folder), wanted, DS_BUILD_OPS="0"):
        return False
    made = set(folder.glob("*.whl")) - before
    fit = {wheel for wheel in made if wheel.name.endswith("py3-none-any.whl")}
    for wheel in made - fit:
        wheel.unlink()
    return bool(fit) or not made


def _pip(*arguments: str, **environment: str) -> bool:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    said = done.stderr.strip().splitlines()
    if done.returncode and said and "No matching distribution" not in done.stderr:
        print(said[-1], file=sys.stderr, flush=True)
    return done.returncode == 0


def install(folder: Path) -> Path:
    """Installs a folder's wheels beside them, without a network; returns the folder for imports.

    Does nothing if they are installed already. Raises `OSError` if there are none, or if pip fails.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise OSError(f"{folder} holds no wheels; gather them by scripts/gpu.sh --wheels")
    site, version = folder / "site", f"{sys.version_info[0]}.{sys.version_info[1]}"
    stamp = site / "wheels.json"
    wanted = json.dumps([version, *(wheel.name for wheel in wheels)])
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        options = ("--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site))
        if not _pip("install", *options, *map(str, wheels)):
            raise OSError(f"the wheels in {folder} could not be installed")
        stamp.write_text(wanted, encoding="utf-8")
    return site
