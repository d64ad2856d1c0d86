"""The command `cpo-ds doctor`: checks this machine or all hosts, prints problems and remedies.

No torch, numpy or pydantic is imported, unless a recipe is given or bandwidth is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpo_ds
from cpo_ds.doctor import links, reachable
from cpo_ds.doctor.checks import network, resources, software
from cpo_ds.doctor.checks.findings import Row
from cpo_ds.doctor.gather import gather
from cpo_ds.doctor.hostfile import has_byte_order_mark, read_hostfile
from cpo_ds.doctor.sessions import HostGroup, Ssh, sessions
from cpo_ds.doctor.survey import PlannedRun, Survey
from cpo_ds.doctor.table import report
from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.ranks.console import print_colored
from cpo_ds.ranks.environment_file import read_environment_files
from cpo_ds.shipped import find_hostfile

_PROGRAMS = {"pdsh": "pdsh", "openmpi": "mpirun"}  # launcher -> the program that it calls


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds doctor`."""
    parser.description = (
        f"{parser.description} Without a hostfile it checks this machine. Exit code 2 if a check "
        "finds an error. With recipe options as in training (--config, --section.field value) the "
        "recipe's files are checked too."
    )
    # The hosts and the run that is planned on them.
    add = parser.add_argument
    add(
        "--hostfile",
        type=find_hostfile,
        metavar="FILE",
        help="the launcher's hostfile (this machine alone)",
    )
    add(
        "--ssh-port",
        type=int,
        metavar="PORT",
        help="of the hosts' ssh servers (from ssh's settings)",
    )
    add("--launcher", choices=("pdsh", "openmpi"), default="pdsh", help="the run's (pdsh)")
    add("--master-addr", metavar="ADDRESS", help="rank 0's (as the launcher finds it)")
    add("--master-port", type=int, metavar="PORT", default=29500, help="rank 0's (29500)")
    add("--need-disk", type=float, metavar="GIB", default=20.0, help="warn of less free disk (20)")
    add("--need-memory", type=float, metavar="GIB", default=8.0, help="warn of less memory (8)")
    add("--json", action="store_true", help="print JSON instead of a table")

    # Parts that have options of their own.
    add = parser.add_argument_group("bandwidth of all-reduces").add_argument
    add("--skip-bandwidth", action="store_true", help="do not measure it")
    add("--size", type=int, metavar="MIB", default=64, help="size of the summed buffer (64)")
    add("--limit", type=int, metavar="SECONDS", default=180, help="for all of it (180)")
    add = parser.add_argument_group("hosts that are left after a fault").add_argument
    add("--reachable-only", action="store_true", help="only log in, find Python and count GPUs")
    add("--write", type=Path, metavar="FILE", help="new hostfile of the hosts that can take part")


def run(arguments: argparse.Namespace) -> int:
    """Runs `cpo-ds doctor` and returns its exit code: 0, or 2 if a check found an error.

    Raises `UserError` for wrong options and for a hostfile or recipe that cannot be used.
    """
    _check_options(arguments)
    if arguments.hostfile is None:
        return _check_machine(arguments)
    hosts = read_hostfile(arguments.hostfile)
    environment = read_environment_files()
    ssh = Ssh(arguments.hostfile, arguments.ssh_port, exported(environment))
    if arguments.reachable_only:
        return reachable.run(ssh, hosts, arguments.write)

    # Ask the hosts, judge their answers, then measure the bandwidth over the same sessions.
    planned = planned_run(arguments, environment)
    with sessions(ssh, hosts) as group:
        survey = gather(group, hosts, planned)
        rows = judge(survey)
        row, results = _bandwidth(group, survey, rows, arguments)
        rows.append(row)

    return _print(rows, arguments.json, _as_json(survey, results))


def _check_machine(arguments: argparse.Namespace) -> int:
    """Checks this machine, and the recipe's files if one is given. Raises `UserError`."""
    from cpo_ds.doctor.checks.machine import judge_machine, recipe_row
    from cpo_ds.doctor.machine import examine

    planned = None
    if arguments.recipe:
        planned = _with_recipe(planned_run(arguments, {}), arguments.recipe)
    machine = examine(planned.output if planned else Path.cwd())
    rows = judge_machine(machine, arguments.need_disk, arguments.need_memory)
    rows += [recipe_row(planned)] if planned else []
    return _print(rows, arguments.json, {"machine": dataclasses.asdict(machine)})


def _print(rows: Sequence[Row], as_json: bool, values: dict[str, Any]) -> int:
    """Prints all rows, as JSON beside other `values` or as a table; returns the exit code."""
    is_fine = all(row.state != "fix" for row in rows)
    if as_json:
        print(json.dumps({"fine": is_fine, "checks": _rows_as_json(rows), **values}, indent=2))
    else:  # as wide as the terminal
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print_colored(report(rows, width, colored))
    return 0 if is_fine else EXIT_USER_ERROR


def judge(survey: Survey) -> list[Row]:
    """Returns the rows of all checks, in the order of the table.

    If the run's Python works on no host, only the logins and that Python are judged.
    """
    if not survey.ready:
        first = [software.login, software.python] if survey.facts else [software.login]
        return [check(survey) for check in first]

    # An earlier check often names the cause of a later one's finding.
    checks = [
        software.login,
        software.identity,
        software.python,
        software.packages,
        software.checkout,
        *([software.recipe] if survey.run.files else []),
        *([software.model] if survey.run.models else []),
        *([software.data] if survey.run.data else []),
        resources.slots,
        network.folder,
        network.launcher,
        network.environment,
        network.ports,
        network.resolution,
        resources.disk,
        resources.memory,
        resources.clocks,
    ]
    return [check(survey) for check in checks]


def _bandwidth(
    group: HostGroup, survey: Survey, rows: Sequence[Row], arguments: argparse.Namespace
) -> tuple[Row, list[links.Result]]:
    """Measures the bandwidth, unless it is not wanted or another check found an error."""
    if arguments.skip_bandwidth:
        return Row("bandwidth", "skipped", is_tried=False), []
    if any(row.state == "fix" for row in rows):
        return Row("bandwidth", "not measured before the errors are fixed", is_tried=False), []
    return links.measure(group, survey, arguments.size, arguments.limit)


def _check_options(arguments: argparse.Namespace) -> None:
    for name in ("size", "limit"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name} has to be more than 0.")
    for name in ("master_port", "ssh_port"):
        if not 0 < (getattr(arguments, name) or 1) < 2**16:
            raise UserError(f"--{name.replace('_', '-')} has to be between 1 and 65535.")
    if arguments.write and not arguments.reachable_only:
        raise UserError("--write goes with --reachable-only: give both.")
    for name in ("reachable_only", "master_addr", "ssh_port"):
        if getattr(arguments, name) and arguments.hostfile is None:
            raise UserError(f"--{name.replace('_', '-')} goes with --hostfile: give both.")
    if arguments.reachable_only and arguments.recipe:
        raise UserError(
            f"{arguments.recipe[0]}: --reachable-only takes no recipe options; leave them out."
        )


def exported(environment: dict[str, str]) -> dict[str, str]:
    """Returns the variables that DeepSpeed's launcher sets on every host.

    These are the lines of `.deepspeed_env`, and this process's variables that begin with PYTHON.
    """
    python = {k: v for k, v in os.environ.items() if k.startswith("PYTHON")}
    return python | environment


def planned_run(arguments: argparse.Namespace, environment: dict[str, str]) -> PlannedRun:
    """Describes the run by the options, by this process and, if one is given, by the recipe."""
    planned = PlannedRun(
        hostfile=arguments.hostfile or Path(),
        python=sys.executable,
        package=Path(cpo_ds.__file__).resolve().parent,
        folder=Path.cwd(),
        output=Path.cwd(),
        launcher=arguments.launcher,
        has_launcher=shutil.which(_PROGRAMS[arguments.launcher]) is not None,
        environment=environment,
        master_address=arguments.master_addr,
        master_port=arguments.master_port,
        need_disk=arguments.need_disk,
        need_memory=arguments.need_memory,
        has_marked_hostfile=bool(arguments.hostfile) and has_byte_order_mark(arguments.hostfile),
    )
    return _with_recipe(planned, arguments.recipe) if arguments.recipe else planned


def _with_recipe(planned: PlannedRun, argv: list[str]) -> PlannedRun:
    """Adds the files, models, data and output folder of a recipe. Raises `UserError`."""
    from cpo_ds.recipe import keeps_local_checkpoints, load_config, read_deepspeed_files

    config, options = load_config(argv)
    deepspeed = read_deepspeed_files(config)  # several if the recipe leaves the choice to the run
    model, data = config.model, config.data
    return dataclasses.replace(
        planned,
        output=Path(config.output_dir).absolute(),
        local_checkpoints=any(keeps_local_checkpoints(settings) for _, settings in deepspeed),
        files=(Path(options.config).absolute(), *(path.absolute() for path, _ in deepspeed)),
        models=_paths(model.name_or_path, model.adapter),
        data=_paths(data.path, data.eval_path),
    )


def _paths(*names: str | None) -> tuple[Path, ...]:
    """Returns the names that are paths, as absolute paths.

    `owner/name` is a name on the Hugging Face Hub, unless it exists as a path.
    """
    paths = [Path(name) for name in names if name]
    return tuple(
        path.absolute()
        for path in paths
        if path.exists() or path.is_absolute() or len(path.parts) > 2 or path.parts[0] == ".."
    )


def _as_json(survey: Survey, results: Sequence[links.Result]) -> dict[str, Any]:
    """Returns the values on hosts and bandwidth that `--json` prints."""
    hosts = [
        {"name": host.name, "slots": host.slots, "answered": host.name in survey.facts}
        | ({"hostname": facts.hostname, "commit": facts.commit, "packages": facts.versions}
           if (facts := survey.facts.get(host.name)) else {})
        for host in survey.hosts
    ]  # fmt: skip
    figures = [{"kind": r.kind, "hosts": r.hosts, "gib_per_second": r.bandwidth} for r in results]
    return {"hosts": hosts, "bandwidth": figures}


def _rows_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"check": row.check, "state": row.state, "seen": row.seen,
         "findings": [{"hosts": finding.hosts, "what": finding.problem, "fix": finding.fix,
                       "is_error": finding.is_error} for finding in row.findings]}
        for row in rows
    ]  # fmt: skip
