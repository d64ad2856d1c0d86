"""The command `cpo-ds train`: starts a run on GPUs of this machine, or on the hosts of a hostfile.

Options and recipe are checked here, before torch is imported anywhere.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from cpo_ds.doctor.hostfile import Host, read_hostfile
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.ranks.place import Place
from cpo_ds.ranks.relaunch import is_rank
from cpo_ds.shipped import find_hostfile
from cpo_ds.start.devices import ranks_and_gpus
from cpo_ds.start.hosts import check_hosts
from cpo_ds.start.launch import launch_on_hosts, launch_on_this_host, run_alone

_OPTIONS = ("--gpus", "--hostfile", "--dry-run", "--skip-check", "--ssh-port", "--master-addr",
            "--master-port")  # fmt: skip
_OF_LAUNCHERS = ("__num_gpus", "__num_accelerators", "__nproc_per_node", "__ranks", "__nproc")
_OTHER_NAMES = dict.fromkeys(_OF_LAUNCHERS, " (did you mean --gpus?)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds train`."""
    parser.description = (
        f"{parser.description} The recipe is --config FILE, or the name of a shipped one, and "
        "--section.field value. Without --gpus and --hostfile it runs on all GPUs of this machine, "
        "or on its CPU."
    )
    parser.epilog = f"Every setting of a recipe: python {_script()} --help"
    add = parser.add_argument
    add("--gpus", type=int, metavar="N", help="GPUs of this machine; without any, ranks on its CPU")
    add(
        "--hostfile",
        type=find_hostfile,
        metavar="FILE",
        help="the hosts: a line for each, NAME slots=GPUS",
    )
    add("--dry-run", action="store_true", help="check everything, show two pairs, write nothing")
    add = parser.add_argument_group("with a hostfile").add_argument
    add("--skip-check", action="store_true", help="start without a check of the hosts")
    add("--ssh-port", type=int, metavar="PORT", help="of the hosts' ssh servers")
    add("--master-addr", metavar="ADDRESS", help="rank 0's (as the launcher finds it)")
    add("--master-port", type=int, metavar="PORT", help="rank 0's (29500; on one host a free one)")


def run(arguments: argparse.Namespace) -> int:
    """Starts the run and returns its exit code.

    Raises `UserError` for options, a hostfile or a recipe that cannot be used, and for hosts that a
    run would fail on.
    """
    _check(arguments)
    hosts = read_hostfile(arguments.hostfile) if arguments.hostfile else ()
    on_hosts = bool(hosts) and not _is_here(hosts)
    wanted = arguments.gpus if not hosts else hosts[0].slots
    ranks, gpus = (sum(host.slots for host in hosts), []) if on_hosts else ranks_and_gpus(wanted)
    _check_recipe(arguments.recipe)

    # A dry run needs no ranks, only their number.
    if arguments.dry_run:
        from cpo_ds.run.main import main

        local = hosts[0].slots if on_hosts else ranks
        return main([*arguments.recipe, "--dry-run"], Place("none", 0, ranks, 0, local))

    # Start the ranks, and say where.
    argv, port = [str(_script()), *arguments.recipe], arguments.master_port
    if on_hosts:
        if not arguments.skip_check:
            check_hosts(arguments)
        options = {"ssh_port": arguments.ssh_port, "master_addr": arguments.master_addr}
        return launch_on_hosts(argv, hosts, **options, master_port=port)
    print(_told(ranks, gpus, given=arguments.gpus), flush=True)
    if ranks == 1:
        run_alone(argv, gpus)
    return launch_on_this_host(argv, ranks, gpus, port)


def _script() -> Path:
    """The script that launchers start: it puts the import path right by itself."""
    return Path(__file__).resolve().parent.parent / "train.py"


def _check(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for options that do not go together."""
    if is_rank():
        raise UserError(
            "cpo-ds train starts the ranks itself, but a launcher has started this one; under "
            f"srun, mpirun or torchrun start {_script()}."
        )
    if arguments.gpus is not None and arguments.hostfile:
        raise UserError(
            "give --gpus or --hostfile, not both; the hostfile sets how many GPUs of each host."
        )
    if arguments.gpus is not None and arguments.gpus < 1:
        raise UserError(
            f"--gpus is {arguments.gpus}; give at least 1, or leave it out for all GPUs of this "
            "machine."
        )
    for name in ("ssh_port", "master_addr"):
        if getattr(arguments, name) is not None and not arguments.hostfile:
            raise UserError(f"--{name.replace('_', '-')} goes with --hostfile; leave it out.")
    for name in ("master_port", "ssh_port"):
        if not 0 < (1 if getattr(arguments, name) is None else getattr(arguments, name)) < 2**16:
            raise UserError(f"--{name.replace('_', '-')} has to be between 1 and 65535.")


def _check_recipe(argv: list[str]) -> None:
    """Reads recipe and DeepSpeed file as every rank will. Raises `UserError`."""
    from cpo_ds.recipe import SETTINGS, load_config, read_deepspeed_files

    for option in (argument.split("=")[0] for argument in argv if argument.startswith("--")):
        # A launcher's option would be taken for an unknown setting of the recipe.
        likely = _OTHER_NAMES.get(option.replace("-", "_")) or did_you_mean(option, _OPTIONS, 0.8)
        if likely and option[2:].replace("-", "_") not in SETTINGS:
            raise UserError(f"unknown argument {option} on the command line{likely}.")
    config, _ = load_config(argv)
    read_deepspeed_files(config)


def _is_here(hosts: tuple[Host, ...]) -> bool:
    """Whether this machine is the only host, so that nothing needs ssh."""
    names = {"localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()}
    return len(hosts) == 1 and hosts[0].name in names


def _told(ranks: int, gpus: list[str], *, given: int | None) -> str:
    """A line that says on which devices the run starts."""
    if gpus:
        return f"cpo-ds train: {ranks} rank(s), on GPU {', '.join(gpus)} of this machine"
    cores = len(os.sched_getaffinity(0))
    asked = f", so --gpus {given} means" if given else ":"
    return f"cpo-ds train: no GPU on this machine{asked} {ranks} rank(s) on its {cores} CPU core(s)"
