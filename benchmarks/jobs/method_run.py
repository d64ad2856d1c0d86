"""One run of `methods.py`: its commands, and what `cpo-ds evaluate` says of its translations.

A run is four commands of cpo_ds, each a process of its own: `prepare noise` for the method that
needs it, training under DeepSpeed's launcher, `translate`, `evaluate`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.settings.objective import LOSS_FIELDS, LossConfig
from jobs.processes import BENCHMARKS, module_environment

BASE = "base"
_GRACE_SECONDS = 20.0  # for a launcher to end its ranks

Evaluation = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to learn from the pairs: settings of the objective, and whether rejected is noise."""

    settings: Mapping[str, str] = field(default_factory=dict)
    is_noised: bool = False


# The reference of DPO is computed before training, which serves LoRA and all parameters alike.
METHODS = {
    "sft": Method({"loss.name": "sft"}),
    "dpo": Method({"loss.name": "dpo", "loss.reference": "precomputed"}),
    "cpo": Method({"loss.name": "cpo"}),
    "cpo-without-nll": Method({"loss.name": "cpo", "loss.alpha": "0"}),
    "cpo-noised": Method({"loss.name": "cpo"}, is_noised=True),
}


def objective_settings(method: str) -> dict[str, str]:
    """A method's settings of the loss; those that its objective does not use get their defaults.

    So a recipe may set `loss.beta`, which SFT would refuse.
    """
    own = METHODS[method].settings
    used = LOSS_FIELDS[own["loss.name"]] | {"name"}
    defaults = {
        f"loss.{name}": "none" if field.default is None else str(field.default).lower()
        for name, field in LossConfig.model_fields.items()
        if name not in used
    }
    return defaults | dict(own)


class FailedCommand(Exception):
    """A command did not end well; the text says which one, and what it printed last."""


def cpo_ds(*words: object) -> list[str]:
    """A command of `cpo-ds`."""
    return [sys.executable, "-m", "cpo_ds.cli", *map(str, words)]


def noise_command(pairs: Path, noised: Path) -> list[str]:
    """The command that replaces rejected texts by noise."""
    return cpo_ds("prepare", "noise", "--input", pairs, "--output", noised)


def train_command(
    config: str, settings: Mapping[str, object], recipe: Sequence[str], ranks: int, port: int
) -> list[str]:
    """The command that trains; `settings` come after those of `recipe`, and so win."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q"]
    launcher += ["--num_accelerators", str(ranks), "--master_port", str(port)]
    script = str(BENCHMARKS.parent / "cpo_ds" / "train.py")
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [*launcher, script, "--config", config, *recipe, *words]


def translate_command(
    model: Path, rows: Path, output: Path, name: str, options: Sequence[str]
) -> list[str]:
    """The command that adds a system's translations to rows."""
    files = ("--model", model, "--input", rows, "--output", output, "--name", name)
    return cpo_ds("translate", *files, *options)


def evaluate_command(
    rows: Path, out: Path, metrics: Sequence[str], system: str, guard: Sequence[str]
) -> list[str]:
    """The command that evaluates the base, or a system against it, by paired bootstrap."""
    words: list[object] = ["--input", rows, "--json", out, "--system", BASE]
    for metric in metrics:
        words += ["--metric", metric]
    if system != BASE:
        words += ["--system", system, "--baseline", BASE, "--paired-bs", *guard]
    return cpo_ds("evaluate", *words)


def guard_options(system: str, folder: Path, selected_by: str | None) -> list[str]:
    """The options that say which metrics selected the pairs: the run's own word, or the user's."""
    options = ["--trained-by", f"{system}={folder}"]
    return options + (["--selected-by", f"{system}={selected_by}"] if selected_by else [])


def read_evaluation(file: Path, system: str) -> Evaluation:
    """A system's scores and tests in a file of `cpo-ds evaluate --json`.

    Raises `UserError` if the file has no scores of the system.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    results = [
        {name: value for name, value in result.items() if name != "system"}
        for result in report["results"]
        if result["system"] == system
    ]
    if not results:
        raise UserError(f"{file} has no scores of {system}.")
    kept = ("language_pair", "metric", "test", "samples", "difference", "p_value", "verdict")
    tests = [
        {name: comparison[name] for name in kept}
        for comparison in report["significance"]
        if comparison["system"] == system
    ]
    return {
        "results": results,
        "tests": tests,
        "headline": report["headline"],
        "selected_by": report["selected_by"].get(system, []),
        "notes": report["notes"],
    }


def run_command(command: Sequence[str], log: Path, timeout: float) -> float:
    """Runs a command, whose output goes to `log`; returns its seconds. Raises `FailedCommand`."""
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    if code != 0:
        reason = "not done in time (--timeout-minutes)" if code is None else f"exit code {code}"
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        raise FailedCommand(f"{reason}; {log} ends with:\n" + "\n".join(last))
    return time.monotonic() - began


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command that still runs, with all processes of its group, which may outlive it."""
    if process.poll() is not None:
        return
    deadline = time.monotonic() + _GRACE_SECONDS
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # else it stays as a zombie, which counts as a member
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing is left
        pass
    process.wait()
