"""The parts of `gpu.py`, the most important first, and which of them are to be run. Pure functions.

Imports nothing but Python's own library, as parts are listed before anything is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measures.sources import SOURCES

BENCHMARK = "gpu"  # the value of `benchmark` in lines of results
LIMIT_MINUTES = 8.75  # after which any part is stopped
DONE, FAILED, STOPPED, SKIPPED, NOT_RUN = "done", "failed", "stopped", "skipped", "not run"
TESTS = ("cpo_ds", "ds_configs", "recipes", "tests")  # the sources that tests depend on

Line = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A command that runs for some minutes, and what it takes to try it on a CPU."""

    name: str
    about: str
    minutes: float  # that it is expected to take, by no measurement yet
    command: tuple[str, ...]  # Python's arguments
    small: tuple[str, ...] = ()  # options added for a dry run; of two, the later one counts
    writes: str | None = None  # its results are WRITES_DEVICE.jsonl and .md
    needs: str | None = None  # a Python package
    sources: tuple[str, ...] = SOURCES
    setting: str | None = None  # of a recipe, which the command gives by --set


def _tests(*given: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *given)


_PROFILE = ("benchmarks/profile_step.py", "--dtype", "bfloat16")
_TINY = ("--shape", "tiny", "--steps", "1", "--warmup-steps", "1", "--threads", "1")
_TINY_PROFILE = (*_TINY, "--tokens", "300", "--recompute", "none")
_BESIDE = ("benchmarks/memory_vs_dpo.py", "--dtype", "bfloat16", "--shape", "llama-2-7b",
           "--training", "lora")  # fmt: skip
_TINY_BESIDE = (*_TINY, "--pairs-per-step", "2", "--repeats", "1")

PARTS = (
    Part(
        "kernels", "tests of attention on the GPU", 2,
        _tests("tests/unit", "tests/fakecuda"), sources=TESTS,
    ),
    Part(
        "profile-7b-lora", "a step of 7B with LoRA at 16k tokens, in parts", 4,
        (*_PROFILE, "--shape", "llama-2-7b", "--tokens", "16384", "--recompute", "none", "all"),
        _TINY_PROFILE, writes="profile_llama-2-7b-lora",
    ),
    Part(
        "dpo-7b-lora", "CPO beside DPO, 7B with LoRA", 8,
        (*_BESIDE, "--pairs-per-step", "32", "--steps", "6", "--repeats", "2", "--minutes", "6.5"),
        (*_TINY_BESIDE, "--methods", "cpo", "dpo-adapter"),
        writes="memory_vs_dpo_llama-2-7b-lora",
    ),
    Part(
        "limits-7b-lora", "the largest micro-batches of CPO and DPO, 7B with LoRA", 8.5,
        (*_BESIDE, "--methods", "cpo", "dpo-reference", "--repeats", "0", "--find-limit",
         "--limit-from", "64", "--limit-within", "0.15", "--minutes", "7"),
        # So little memory that the first try on a CPU ends the search.
        (*_TINY, "--methods", "cpo", "--limit-from", "1", "--memory-limit", "0.2"),
        writes="limits_llama-2-7b-lora",
    ),
    Part(
        "trl-7b-lora", "CPO beside TRL's CPO and DPO, 7B with LoRA", 8,
        (*_BESIDE, "--methods", "cpo", "trl-cpo", "trl-dpo", "--pairs-per-step", "16",
         "--steps", "6", "--repeats", "2", "--minutes", "6.5"),
        (*_TINY_BESIDE, "--methods", "cpo", "trl-cpo"),
        writes="memory_vs_dpo_llama-2-7b-lora-trl", needs="trl",
    ),
    Part(
        "profile-13b-lora", "a step of 13B with LoRA at 8k tokens, in parts", 6,
        (*_PROFILE, "--shape", "llama-2-13b", "--tokens", "8192", "--recompute", "none", "all"),
        _TINY_PROFILE, writes="profile_llama-2-13b-lora",
    ),
    Part(
        "profile-7b-full", "a step of 7B with all parameters at 16k tokens, in parts", 5,
        (*_PROFILE, "--shape", "llama-2-7b", "--training", "full", "--tokens", "16384",
         "--recompute", "all", "--deepspeed", "ds_configs/zero3.json",
         "--set", "optim.states=bfloat16"),
        _TINY_PROFILE, writes="profile_llama-2-7b-full", setting="optim.states",
    ),
    Part(
        "runs-bfloat16", "whole runs in bfloat16 against float32", 7,
        _tests("tests/system", "tests/ranks", "-k", "bfloat16"), sources=TESTS,
    ),
    Part(
        "runs-others", "all other whole runs on a GPU", 7,
        _tests("tests/system", "tests/ranks", "-k", "not bfloat16"), sources=TESTS,
    ),
    Part(
        "planner", "the planner's estimates against memory that runs hold", 3,
        ("benchmarks/planner_check.py", "--cases", "1", "5", "8", "10", "15"), ("--cases", "10"),
        writes="planner_small",
    ),
    Part(
        "all-1b", "every method, TinyLlama's shape with all parameters", 8,
        ("benchmarks/memory_vs_dpo.py", "--dtype", "bfloat16", "--shape", "tinyllama-1.1b",
         "--training", "full", "--methods", "all", "--pairs-per-step", "32", "--steps", "8",
         "--repeats", "3", "--minutes", "6.5"),
        (*_TINY_BESIDE, "--methods", "cpo"), writes="memory_vs_dpo_tinyllama-1.1b",
    ),
    Part(
        "head", "the head and the loss alone", 3,
        ("benchmarks/head_memory.py", "--dtype", "bfloat16"),
        ("--quick", "--heads", "chunked", "--weight", "frozen", "--tokens", "256",
         "--threads", "1"),
        writes="head_hidden-1024",
    ),
    Part(
        "ablations-1b", "the gain of each technique, TinyLlama's shape", 5,
        ("benchmarks/ablations.py", "--shape", "tinyllama-1.1b", "--dtype", "bfloat16",
         "--pairs-per-step", "32"),
        _TINY_BESIDE, writes="ablations_tinyllama-1.1b",
    ),
    Part(
        "ranks", "as many ranks as this host has GPUs", 3,
        ("benchmarks/rank_scaling.py", "--dtype", "bfloat16"),
        ("--quick", "--ranks", "1", "--deepspeed", "ds_configs/zero0.json"),
        writes="ranks_llama-25m",
    ),
)  # fmt: skip


def arguments_of(part: Part, results: Path, device: str, *, dry: bool) -> list[str]:
    """Python's arguments for a part, the file of its results among them."""
    out = ["--out", str(results / f"{part.writes}_{device}.jsonl")] if part.writes else []
    return [*part.command, *(part.small if dry else ()), *out]


def files_of(part: Part, results: Path, device: str) -> list[Path]:
    """The files without which a part is not done."""
    endings = (".jsonl", ".md") if part.writes else ()
    return [results / f"{part.writes}_{device}{ending}" for ending in endings]


def why_skipped(part: Part, packages: Collection[str], settings: Collection[str]) -> str | None:
    """Why a part cannot run with these packages and settings of recipes; None if it can."""
    if part.needs and part.needs not in packages:
        return f"the package {part.needs} is not installed"
    if part.setting and part.setting not in settings:
        return f"recipes have no setting {part.setting}"
    return None


def why_again(line: Line | None, wanted: Line, files: Sequence[Path]) -> str | None:
    """Why a part is to be run; None if it is done.

    `line` is what was noted of it, `wanted` the device, sources and command that count now.
    """
    if line is None or line["outcome"] == NOT_RUN:
        return NOT_RUN
    if line["outcome"] != DONE:
        return f"{line['outcome']}: {line['why']}" if line.get("why") else str(line["outcome"])
    for name, value in wanted.items():
        if line.get(name) != value:
            return f"done with another {name.removesuffix('s')}"
    if missing := [file.name for file in files if not file.exists()]:
        return f"{missing[0]} is missing"
    return None


def choose(
    parts: Sequence[Part], names: Sequence[str], again: Mapping[str, str | None]
) -> list[Part]:
    """The parts that are named, or all, less those that are done, in the parts' order.

    Those that have not ended well come last, lest they take the time of the others in each call.
    `again` says why a part is to be run.
    """
    chosen = [part for part in parts if not names or part.name in names]
    left = [part for part in chosen if again[part.name] is not None]
    return sorted(left, key=lambda part: str(again[part.name]).startswith((FAILED, STOPPED)))


def fits(part: Part, minutes_left: float | None) -> bool:
    """Whether a part is expected to end in the time that is left; None is no limit."""
    return minutes_left is None or part.minutes <= minutes_left
