"""Checks between hosts: shared folder, launcher, network interfaces, ports and names.

Each check takes the survey and returns its row. Nothing here asks a host.
"""

from __future__ import annotations

from collections.abc import Mapping

from cpo_ds.doctor.checks.findings import Finding, Row, by_value, first_few
from cpo_ds.doctor.hostfile import fold
from cpo_ds.doctor.survey import Facts, Survey


def folder(survey: Survey) -> Row:
    """Every host can write to the run's folder, and it is the same folder on all of them."""
    run, folders = survey.run, survey.folders
    findings = []
    for problem, hosts in by_value({n: f.problem for n, f in folders.items()}).items():
        if problem:
            text = f"{run.output} cannot be written: {problem}"
            fix = "check its owner and its permissions, or choose another --output-dir"
            findings.append(Finding(hosts, text, fix))
    if run.local_checkpoints:
        text = f"{run.output}, on a disk of each host (use_node_local_storage)"
        return Row("folder", text, tuple(findings))

    # The folder is shared if every host that can write sees the files of all that can.
    writable = {name: f for name, f in folders.items() if not f.problem}
    groups = by_value({name: f.sees.intersection(writable) for name, f in writable.items()})
    is_shared = all(sees == writable.keys() for sees in groups)
    if not is_shared and len(writable) > 1:
        parts = first_few(
            f"{fold(hosts)} see{'s' if len(hosts) == 1 else ''} the files of {fold(sorted(sees))}"
            for sees, hosts in groups.items()
        )
        findings.append(
            Finding(
                (),
                f"{run.output} is not shared by all hosts: {parts}",
                "choose an output_dir on a file system that all hosts share (NFS, Lustre, ...), or "
                'set "checkpoint": {"use_node_local_storage": true} in the DeepSpeed file',
            )
        )
    shared = ", shared by all" if len(writable) > 1 and is_shared else ""
    return Row("folder", f"{run.output}{shared}", tuple(findings))


def launcher(survey: Survey) -> Row:
    """The programs and packages that the launcher itself needs are installed."""
    run = survey.run
    if run.launcher == "pdsh":
        findings = () if run.has_launcher or len(survey.hosts) == 1 else (
            Finding((), "pdsh is missing on this host; DeepSpeed's launcher reaches the others by "
                    "it", "apt-get install pdsh, or give the launcher --launcher openmpi"),
        )  # fmt: skip
        return Row("launcher", "pdsh", findings)

    # mpirun starts a daemon on every host: orted, called prted from Open MPI 5 on.
    missing = []
    if not run.has_launcher:
        fix = "apt-get install openmpi-bin"
        missing.append(Finding((), "mpirun is missing on this host", fix))
    daemons = {"orted", "prted"}
    without_daemon = tuple(n for n, f in survey.ready.items() if not daemons & set(f.programs))
    if without_daemon:
        text = "there is no orted, which mpirun starts on every host"
        fix = "install the same Open MPI: apt-get install openmpi-bin"
        missing.append(Finding(without_daemon, text, fix))

    # mpirun does not tell ranks the address of rank 0: they ask by mpi4py, or read variables.
    finds_master = {"MASTER_ADDR", "MASTER_PORT"} <= run.environment.keys()
    without_mpi4py = tuple(n for n, f in survey.ready.items() if "mpi4py" not in f.versions)
    if without_mpi4py and not finds_master:
        text = "there is no mpi4py, by which ranks that mpirun starts learn the address of rank 0"
        missing.append(Finding(without_mpi4py, text, "pip install 'cpo-ds[mpi]' there"))
    return Row("launcher", "openmpi", tuple(missing))


def environment(survey: Survey) -> Row:
    """Every network interface named in `.deepspeed_env` exists on every host."""
    values = survey.run.environment
    findings = []
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        named = [name for name in values.get(variable, "").split(",") if name]
        if any(name[0] in "^=" for name in named):  # NCCL: "^" excludes, "=" is an exact name
            continue
        for own, hosts in by_value({n: f.interfaces for n, f in survey.ready.items()}).items():
            if named and not _has_interface(own, named, variable.startswith("NCCL")):
                findings.append(
                    Finding(
                        hosts,
                        f".deepspeed_env sets {variable}={values[variable]}, but the interfaces "
                        f"are {', '.join(own)}",
                        "leave out GLOO_SOCKET_IFNAME, because ranks find the interface by "
                        "themselves; or name an interface that all hosts have",
                    )
                )
    return Row(".deepspeed_env", ", ".join(sorted(values)) or "sets nothing", tuple(findings))


def _has_interface(own: tuple[str, ...], named: list[str], by_prefix: bool) -> bool:
    """NCCL takes names as prefixes and needs one that fits; Gloo needs each full name."""
    if by_prefix:
        return any(i.startswith(name) for i in own for name in named)
    return all(name in own for name in named)


def resolution(survey: Survey) -> Row:
    """The name of each host resolves to the same address on all other hosts.

    With pdsh only the ssh of this host needs the names, so a difference is a warning.
    """
    run, ready = survey.run, survey.ready
    known = [host.rpartition("@")[2] for host in survey.facts]
    of_first = survey.facts.get(survey.hosts[0].name)

    # Ranks that mpirun starts look for rank 0 by the name that the first host gives itself.
    by_mpi = run.launcher == "openmpi" and "MASTER_ADDR" not in run.environment
    if by_mpi and of_first is not None and of_first.hostname not in known:
        known.append(of_first.hostname)

    # A host may resolve its own name to a loopback address, so only the others count.
    findings = []
    for name in known:
        others = {h: f for h, f in ready.items() if name not in (h.rpartition("@")[2], f.hostname)}
        needed = by_mpi and of_first is not None and name == of_first.hostname
        findings += _name_findings(name, others, needed)
    seen = "the same on all hosts" if not findings else "differs"
    return Row("resolution", seen, tuple(findings))


def _name_findings(name: str, asked: Mapping[str, Facts], is_needed: bool) -> list[Finding]:
    """Problems with one name: unknown, a loopback address, or different addresses."""
    why = "; ranks that mpirun starts look for rank 0 by it" if is_needed else ""
    fix = "give all hosts the same /etc/hosts, or DNS"
    fix += "" if is_needed else " (with pdsh, ranks do not need the name)"
    resolved = {host: facts.resolved.get(name, ()) for host, facts in asked.items()}
    none = tuple(host for host, addresses in resolved.items() if not addresses)
    own = tuple(h for h, a in resolved.items() if a and all(map(_is_loopback, a)))
    groups = by_value({h: a for h, a in resolved.items() if h not in (*none, *own)})
    findings = []
    if none:
        findings.append(Finding(none, f"the name {name} is unknown there{why}", fix, is_needed))
    if own:
        text = f"the name {name} has a loopback address there, so it means the host itself{why}"
        findings.append(Finding(own, text, fix, is_needed))
    if len(groups) > 1:
        text = "; ".join(f"{', '.join(a)} on {fold(hosts)}" for a, hosts in groups.items())
        findings.append(Finding((), f"the name {name} means {text}", fix, False))
    return findings


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def ports(survey: Survey) -> Row:
    """The master port is free and can be reached, and any host can connect to any other."""
    network, first = survey.network, survey.hosts[0].name
    port = survey.run.master_port
    if first not in survey.ready:
        return Row("ports", f"not tried without {first}", is_tried=False)
    findings = _master_findings(survey)

    # Free ports between every two hosts.
    closed = {pair: problem for pair, problem in network.pairs.items() if problem}
    findings += _closed(closed, network.addresses)

    # The master port, from hosts that reach the first host at all.
    cut = {h: p for h, p in network.to_master.items() if p and (h, first) not in closed}
    for problem, hosts in by_value(cut).items():
        findings.append(
            Finding(
                hosts,
                f"no connection to port {port} of {first} at {network.master}: {problem}",
                f"open the port on {first} for them, or give the launcher another --master_port",
            )
        )

    open_pairs = sum(not problem for problem in network.pairs.values())
    text = f"{port} on {first} ({network.master or '?'})"
    if network.pairs:
        text += f"; {open_pairs} of {len(network.pairs)} connections between hosts"
    return Row("ports", text, tuple(findings))


def _master_findings(survey: Survey) -> list[Finding]:
    """Problems of the first host with rank 0's address and port."""
    network, first = survey.network, survey.hosts[0].name
    findings = []
    if not network.master:
        findings.append(
            Finding((first,), "`hostname -I` gives no address there, and the launcher takes rank "
                    "0's address from it", "give the launcher --master_addr ADDRESS")
        )  # fmt: skip
    elif _is_loopback(network.master) and len(survey.hosts) > 1:
        findings.append(
            Finding((first,), f"rank 0's address would be {network.master}, which no other host "
                    "can reach", "give an address of the network: --master_addr ADDRESS")
        )  # fmt: skip
    if network.port_problem:
        by = f" ({network.port_owner})" if network.port_owner else ""
        problem = f"port {survey.run.master_port} cannot be opened: "
        problem += f"{network.port_problem.lower()}{by}"
        fix = "end the process that holds it, or give the launcher another --master_port"
        findings.append(Finding((first,), problem, fix))
    return findings


def _closed(closed: Mapping[tuple[str, str], str], addresses: Mapping[str, str]) -> list[Finding]:
    """Failed connections to free ports, grouped by the host that they go to and the problem."""
    groups = by_value({(start, to): (to, problem) for (start, to), problem in closed.items()})
    return [
        Finding(
            tuple(start for start, _ in pairs),
            f"no connection to {to} at {addresses.get(to) or '?'} on a free port: {problem}",
            "open all TCP ports between the hosts, because Gloo and NCCL choose free ones; if "
            f"hosts have several networks, choose another by --master_addr or fix routes to {to}",
        )
        for (to, problem), pairs in groups.items()
    ]
