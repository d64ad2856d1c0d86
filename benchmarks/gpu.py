"""Measures a GPU machine, part by part: kernels' tests, a step's profile, CPO beside DPO and TRL.

    bash scripts/gpu.sh                       # all parts that are not done yet
    bash scripts/gpu.sh --list                # the parts, their minutes, what is done
    bash scripts/gpu.sh --minutes 9           # end in nine minutes; once more: go on
    bash scripts/gpu.sh --dry-run             # all parts at tiny sizes on a CPU, to try it out

A part is done if its results are there and neither sources, device nor its command have changed
since; so a call goes on where the last one ended, also from a copy of the results. A part that
fails is named at the end, and its log is kept; the others run, and the next call tries it last. A
part is stopped after 8.75 minutes. Models are made on the spot: no network is needed.

For a machine that lacks packages and has no network, gather their wheels on another:

    bash scripts/gpu.sh --wheels wheels --for-python 3.12 --present pip-list.txt

It installs those of the checkout's folder wheels/, or of --from-wheels, beside its own packages.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jobs import gpu_wheels
from jobs.gpu_parts import (
    DONE,
    LIMIT_MINUTES,
    PARTS,
    SKIPPED,
    Part,
    arguments_of,
    choose,
    files_of,
    fits,
    why_again,
    why_skipped,
)
from jobs.gpu_run import Notes, run_part
from measures.sources import source_digest

ROOT = Path(__file__).resolve().parents[1]
_FAILED, _USAGE = 1, 2
# What the machine is, asked in a process of its own: this one holds no GPU memory.
_ASK = """\
import json, torch
from importlib.util import find_spec
from pages.results import device_name
from cpo_ds.recipe import SETTINGS
needs = {needs}
print(json.dumps({{"device": device_name(), "torch": torch.__version__, "settings": list(SETTINGS),
                  "packages": [name for name in needs if find_spec(name)]}}))
"""


def main(argv: list[str]) -> int:
    """Runs what is asked for; returns the exit code, 1 if a part has failed."""
    arguments = parse(argv)
    try:
        if arguments.wheels:
            return gather(arguments)
        environment = environment_of(arguments)
        machine = ask(environment)
    except (OSError, ValueError) as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return _USAGE
    if machine["device"] == "cpu" and not (arguments.dry_run or arguments.list):
        print("gpu: error: torch sees no NVIDIA GPU here; --dry-run tries all parts on a CPU.",
              file=sys.stderr)  # fmt: skip
        return _USAGE
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) if arguments.dry_run else ROOT / "benchmarks" / "results"
        return Machine(arguments, environment, machine, arguments.results or tried).run()


def _end(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)  # what is unfinished is stopped on the way out


class Machine:
    """The parts on this machine: what is done, and runs of what is not."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        machine: Mapping[str, Any],
        results: Path,
    ) -> None:
        self._arguments, self._environment, self._machine = arguments, environment, machine
        self._results, self._device = results.resolve(), str(machine["device"])
        self._notes = Notes(self._results / f"gpu_{self._device}.jsonl", PARTS)
        sources = {part.sources for part in PARTS}
        self._digests = {folders: source_digest(ROOT, folders) for folders in sources}
        self._ends = time.monotonic() + 60 * (arguments.minutes or float("inf"))

    def run(self) -> int:
        """Runs the parts that are not done, or lists all; returns the exit code."""
        again = {part.name: self._why_again(part) for part in PARTS}
        if self._arguments.list:
            for part in PARTS:
                print(f"{part.name:18} {part.minutes:5.1f} min  {part.about}: "
                      f"{again[part.name] or DONE}")  # fmt: skip
            return 0
        print(f"{self._device}, torch {self._machine['torch']}, results in {self._results}",
              flush=True)  # fmt: skip
        bad, left = [], []
        chosen = choose(PARTS, self._arguments.only, again)
        for part in chosen:
            if not fits(part, self._minutes_left()):
                left.append(part.name)
                continue
            outcome = self._run(part)
            if outcome not in (DONE, SKIPPED):
                bad.append(part.name)
        if chosen:
            self._render(self._notes.file)
        else:
            print("nothing is left to do")
        if left:
            print(f"no time was left for: {', '.join(left)}; the same command runs them")
        if bad:
            print(f"not done: {', '.join(bad)}; logs are in {self._logs}", file=sys.stderr)
        return _FAILED if bad else 0

    @property
    def _logs(self) -> Path:
        return self._results / f"gpu_{self._device}_logs"

    def _minutes_left(self) -> float | None:
        return (self._ends - time.monotonic()) / 60 if self._arguments.minutes else None

    def _command(self, part: Part, results: Path) -> list[str]:
        return arguments_of(part, results, self._device, dry=self._arguments.dry_run)

    def _wanted(self, part: Part) -> dict[str, Any]:
        command = " ".join(["python", *self._command(part, Path())])  # in any folder of results
        sources = self._digests[part.sources]
        return {"device": self._device, "sources": sources, "command": command}

    def _why_again(self, part: Part) -> str | None:
        files = files_of(part, self._results, self._device)
        return why_again(self._notes.line(part), self._wanted(part), files)

    def _run(self, part: Part) -> str:
        """Runs a part unless it must be skipped; notes and returns the outcome."""
        wanted = self._wanted(part)
        reason = why_skipped(part, self._machine["packages"], self._machine["settings"])
        if reason:
            self._notes.note(part, wanted | {"outcome": SKIPPED, "why": reason})
            print(f"{part.name}: skipped: {reason}", flush=True)
            return SKIPPED
        print(f"{part.name}: {part.about} (about {part.minutes:g} minutes)", flush=True)
        files = files_of(part, self._results, self._device)
        for file in files:  # so that what is there afterwards is of this run
            file.unlink(missing_ok=True)
        line = run_part(
            part,
            self._command(part, self._results),
            folder=ROOT,
            log=self._logs / f"{part.name}.log",
            environment=self._environment,
            seconds=60 * min(LIMIT_MINUTES, self._minutes_left() or LIMIT_MINUTES),
        )
        self._notes.note(part, wanted | line)
        # A part that was stopped has lines, and no page of them yet.
        if line["outcome"] != DONE and files and files[0].exists() and files[0].stat().st_size:
            self._render(files[0])
        why = f": {line['why']}" if "why" in line else ""
        print(f"{part.name}: {line['outcome']} in {line['seconds']:.0f} s{why}", flush=True)
        return str(line["outcome"])

    def _render(self, file: Path) -> None:
        if file.exists():
            command = [sys.executable, "benchmarks/render.py", str(file)]
            subprocess.run(command, cwd=ROOT, env=self._environment, check=False)


def ask(environment: Mapping[str, str]) -> dict[str, Any]:
    """The device's name, torch's version, and which packages and settings of recipes there are.

    Raises `OSError` if the product cannot be imported.
    """
    code = _ASK.format(needs=sorted({part.needs for part in PARTS if part.needs}))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise OSError(
            f"{sys.executable} cannot import what is needed: {said}. Set it up by "
            "scripts/setup.sh, or gather wheels on another machine by scripts/gpu.sh --wheels."
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The variables of all parts; installs wheels if there are any. Raises `OSError`."""
    # Wheels come first on the path of imports, so that they replace what is too old.
    given = arguments.from_wheels or ROOT / "wheels"
    site = [str(gpu_wheels.install(given))] if arguments.from_wheels or given.is_dir() else []
    paths = [*site, str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, paths))
    return os.environ | offline | {"PYTHONPATH": path} | (on_cpu if arguments.dry_run else {})


def gather(arguments: argparse.Namespace) -> int:
    """Gathers wheels for another machine; returns the exit code."""
    lacking = gpu_wheels.gather(
        arguments.wheels,
        ROOT / "constraints.txt",
        python=arguments.for_python,
        machine=arguments.for_machine,
        present=arguments.present,
    )
    size = sum(wheel.stat().st_size for wheel in arguments.wheels.glob("*.whl")) / 2**20
    print(f"{size:.0f} MiB of wheels in {arguments.wheels}; on the GPU machine: "
          "bash scripts/gpu.sh --from-wheels FOLDER")  # fmt: skip
    if lacking:
        print(f"gpu: no wheel for that machine: {', '.join(lacking)}", file=sys.stderr)
    return _FAILED if lacking else 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu.sh", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--list", action="store_true", help="show the parts, and what is done")
    add("--only", nargs="+", default=[], choices=[part.name for part in PARTS], metavar="PART",
        help="run these alone, if they are not done")  # fmt: skip
    add(
        "--minutes",
        type=float,
        help="end in so many minutes: start no part that may take longer than what is left",
    )
    add("--dry-run", action="store_true", help="all parts at tiny sizes on a CPU")
    add("--results", type=Path, metavar="FOLDER", help="of lines, pages, charts and logs "
        "(benchmarks/results; for a dry run a temporary one)")  # fmt: skip
    add("--from-wheels", type=Path, metavar="FOLDER", help="install these wheels beside this "
        "machine's packages first (the checkout's folder wheels/, if there is one)")  # fmt: skip
    add("--wheels", type=Path, metavar="FOLDER", help="gather wheels for a GPU machine instead")
    add("--for-python", default="3.12", metavar="VERSION", help="Python there (3.12)")
    add("--for-machine", default="x86_64", metavar="NAME", help="`uname -m` there (x86_64)")
    add("--present", type=Path, metavar="FILE", help="what `pip list` prints there: these are not "
        "gathered (only torch is taken to be there)")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.minutes is not None and arguments.minutes <= 0:
        parser.error("--minutes must be more than 0")
    return arguments


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main(sys.argv[1:]))
