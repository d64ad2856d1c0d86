"""The command `cpo-ds doctor`: asks every host at once, prints what is wrong and what to do."""

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
from cpo_ds.doctor import reachable
from cpo_ds.doctor.checks import network, resources
from cpo_ds.doctor.checks import software as checks
from cpo_ds.doctor.checks.findings import Row
from cpo_ds.doctor.gather import gather
from cpo_ds.doctor.hostfile import read_hostfile
from cpo_ds.doctor.links import Result, measure
from cpo_ds.doctor.sessions import Party, Ssh, sessions
from cpo_ds.doctor.survey import Survey, Wanted
from cpo_ds.doctor.table import report
from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.ranks.environment_file import read_environment_files

_PROGRAMS = {"pdsh": "pdsh", "openmpi": "mpirun"}


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises `UserError` for files that cannot be used."""
    _check_options(arguments)
    hosts = read_hostfile(arguments.hostfile)
    environment = read_environment_files()
    ssh = Ssh(arguments.hostfile, arguments.ssh_port, _exported(environment))
    if arguments.reachable_only:
        return reachable.run(ssh, hosts, arguments.write)
    wanted = _wanted(arguments, environment)
    with sessions(ssh, hosts) as party:
        survey = gather(party, hosts, wanted)
        rows = judge(survey)
        row, results = _bandwidth(party, survey, rows, arguments)
        rows.append(row)
    is_fine = all(row.state != "fix" for row in rows)
    if arguments.json:
        print(json.dumps(_as_json(survey, rows, results, is_fine), indent=2))
    else:
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(report(rows, width, colored))
    return 0 if is_fine else EXIT_USER_ERROR


def judge(survey: Survey) -> list[Row]:
    """All checks, the most important first: one that fails spoils what comes after it."""
    if not survey.ready:
        return [check(survey) for check in (checks.login, checks.python)[: 1 + bool(survey.facts)]]
    some = [
        checks.login,
        checks.identity,
        checks.python,
        checks.packages,
        checks.checkout,
        *([checks.recipe] if survey.wanted.files else []),
        *([checks.model] if survey.wanted.models else []),
        *([checks.data] if survey.wanted.data else []),
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
    return [check(survey) for check in some]


def _bandwidth(
    party: Party, survey: Survey, rows: Sequence[Row], arguments: argparse.Namespace
) -> tuple[Row, list[Result]]:
    if arguments.skip_bandwidth:
        return Row("bandwidth", "skipped", is_tried=False), []
    if any(row.state == "fix" for row in rows):
        why = "not measured before what is below is put right"
        return Row("bandwidth", why, is_tried=False), []
    return measure(party, survey, arguments.size, arguments.limit)


def _check_options(arguments: argparse.Namespace) -> None:
    for name in ("size", "limit"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name} has to be more than 0.")
    for name in ("master_port", "ssh_port"):
        if not 0 < (getattr(arguments, name) or 1) < 2**16:
            raise UserError(f"--{name.replace('_', '-')} has to be between 1 and 65535.")
    if arguments.write and not arguments.reachable_only:
        raise UserError("--write goes with --reachable-only: give both.")
    if arguments.reachable_only and arguments.recipe:
        raise UserError(f"{arguments.recipe[0]}: --reachable-only looks at no recipe.")


def _exported(environment: dict[str, str]) -> dict[str, str]:
    """What DeepSpeed's launcher sets on every host: `.deepspeed_env`, and PYTHON... from here."""
    python = {k: v for k, v in os.environ.items() if k.startswith("PYTHON")}
    return python | environment


def _wanted(arguments: argparse.Namespace, environment: dict[str, str]) -> Wanted:
    """What the run needs, by the recipe where one is given."""
    wanted = Wanted(
        hostfile=arguments.hostfile,
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
    )
    return _with_recipe(wanted, arguments.recipe) if arguments.recipe else wanted


def _with_recipe(wanted: Wanted, argv: list[str]) -> Wanted:
    from cpo_ds.recipe import keeps_local_checkpoints, load_config, read_deepspeed_file

    config, options = load_config(argv)
    deepspeed, settings = read_deepspeed_file(config)
    model, data = config.model, config.data
    return dataclasses.replace(
        wanted,
        output=Path(config.output_dir).absolute(),
        local_checkpoints=keeps_local_checkpoints(settings),
        files=(Path(options.config).absolute(), deepspeed.absolute()),
        models=_paths(model.name_or_path, model.adapter),
        data=_paths(data.path, data.eval_path),
    )


def _paths(*names: str | None) -> tuple[Path, ...]:
    """Those that are paths, not names on the Hugging Face Hub."""
    found = [Path(name) for name in names if name]
    return tuple(
        path.absolute()
        for path in found
        if path.exists() or path.is_absolute() or len(path.parts) > 2 or path.parts[0] == ".."
    )


def _as_json(
    survey: Survey, rows: Sequence[Row], results: Sequence[Result], is_fine: bool
) -> dict[str, Any]:
    hosts = [
        {"name": host.name, "slots": host.slots, "answered": host.name in survey.facts}
        | ({"hostname": some.hostname, "commit": some.commit, "packages": some.versions}
           if (some := survey.facts.get(host.name)) else {})
        for host in survey.hosts
    ]  # fmt: skip
    checks = [
        {"check": row.check, "state": row.state, "seen": row.seen,
         "findings": [dataclasses.asdict(finding) for finding in row.findings]}
        for row in rows
    ]  # fmt: skip
    figures = [{"kind": r.kind, "hosts": r.hosts, "gib_per_second": r.bandwidth} for r in results]
    return {"fine": is_fine, "hosts": hosts, "checks": checks, "bandwidth": figures}
