"""Machine, versions and command of a benchmark, to judge and repeat its numbers."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from measures.sources import SOURCES, source_digest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "trl", "liger-kernel")


def describe_environment() -> dict[str, str]:
    """Hardware, versions, commit, command and date, as text by name."""
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "device": f"{_processor()}, {len(os.sched_getaffinity(0))} cores" if gpu == "none" else gpu,
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "GPU": gpu,
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f} (mean of one minute)",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "commit": _commit(),
        "command": _command(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _command() -> str:
    """The command line as it was given in the repository's folder, the launcher included."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = ["deepspeed", "--num_accelerators", str(ranks)] if ranks > 1 else ["python"]
    given = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    return shlex.join([*launcher, os.path.relpath(sys.argv[0], ROOT), *given])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "cpo_ds", "ds_configs", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + (
            " with uncommitted changes" if changed else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return f"unknown (not a git checkout); sources {source_digest(ROOT, SOURCES)}"
