"""What the hosts answered -> what is wrong between them: shared folder, launcher, ports. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cpo_ds.doctor.checks.findings import Finding, Row, by_value, names
from cpo_ds.doctor.hostfile import fold
from cpo_ds.doctor.survey import Facts, Survey


def folder(survey: Survey) -> Row:
    """The run's folder can be written by every host, and is one folder for all."""
    wanted, folders = survey.wanted, survey.folders
    findings = []
    for problem, hosts in by_value({n: f.problem for n, f in folders.items()}).items():
        if problem:
            what = f"{wanted.output} cannot be written: {problem}"
            findings.append(Finding(hosts, what, "see its owner, or choose another --output-dir"))
    writable = {name: f for name, f in folders.items() if not f.problem}
    groups = by_value({name: f.sees.intersection(writable) for name, f in writable.items()})
    is_shared = all(sees == writable.keys() for sees in groups)
    if wanted.local_checkpoints:
        text = f"{wanted.output}, on a disk of each host (use_node_local_storage)"
        return Row("folder", text, tuple(findings))
    if not is_shared and len(writable) > 1:
        parts = names(
            f"{fold(hosts)} see{'s' if len(hosts) == 1 else ''} the files of {fold(sorted(sees))}"
            for sees, hosts in groups.items()
        )
        findings.append(
            Finding(
                (),
                f"{wanted.output} is not one folder for all hosts: {parts}",
                "choose an output_dir on a file system that all share (NFS, Lustre, ...), or set "
                '"checkpoint": {"use_node_local_storage": true} in the DeepSpeed file',
            )
        )
    shared = ", shared by all" if len(writable) > 1 and is_shared else ""
    return Row("folder", f"{wanted.output}{shared}", tuple(findings))


def launcher(survey: Survey) -> Row:
    """The launcher's own programs."""
    wanted = survey.wanted
    if wanted.launcher == "pdsh":
        findings = () if wanted.has_launcher or len(survey.hosts) == 1 else (
            Finding((), "this host has no pdsh, by which DeepSpeed's launcher reaches the others",
                    "apt-get install pdsh, or give the launcher --launcher openmpi"),
        )  # fmt: skip
        return Row("launcher", "pdsh", findings)
    found = []
    if not wanted.has_launcher:
        found.append(Finding((), "this host has no mpirun", "apt-get install openmpi-bin"))
    daemons = {"orted", "prted"}
    bare = tuple(n for n, f in survey.ready.items() if not daemons & set(f.programs))
    if bare:
        what = "there is no orted, which mpirun starts on every host"
        found.append(Finding(bare, what, "install the same Open MPI: apt-get install openmpi-bin"))
    finds_master = {"MASTER_ADDR", "MASTER_PORT"} <= wanted.environment.keys()
    without = tuple(n for n, f in survey.ready.items() if "mpi4py" not in f.versions)
    if without and not finds_master:
        what = "there is no mpi4py, by which ranks learn from mpirun where rank 0 is"
        found.append(Finding(without, what, "pip install 'cpo-ds[mpi]' there"))
    return Row("launcher", "openmpi", tuple(found))


def environment(survey: Survey) -> Row:
    """What `.deepspeed_env` sets exists."""
    values = survey.wanted.environment
    findings = []
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        named = [name for name in values.get(variable, "").split(",") if name]
        if any(name[0] in "^=" for name in named):  # NCCL's other ways to say it
            continue
        for own, hosts in by_value({n: f.interfaces for n, f in survey.ready.items()}).items():
            if named and not _has_interface(own, named, variable.startswith("NCCL")):
                findings.append(
                    Finding(
                        hosts,
                        f".deepspeed_env sets {variable}={values[variable]}; the interfaces there "
                        f"are {', '.join(own)}",
                        "leave GLOO_SOCKET_IFNAME out, as ranks find it by themselves; or name "
                        "one that all hosts have",
                    )
                )
    return Row(".deepspeed_env", ", ".join(sorted(values)) or "sets nothing", tuple(findings))


def _has_interface(own: tuple[str, ...], named: list[str], by_prefix: bool) -> bool:
    if by_prefix:  # as NCCL takes them
        return any(i.startswith(name) for i in own for name in named)
    return all(name in own for name in named)


def resolution(survey: Survey) -> Row:
    """Names of hosts mean the same everywhere. Over pdsh, only this host's ssh needs them."""
    wanted, ready = survey.wanted, survey.ready
    known = [host.rpartition("@")[2] for host in survey.facts]
    of_first = survey.facts.get(survey.hosts[0].name)
    by_mpi = wanted.launcher == "openmpi" and "MASTER_ADDR" not in wanted.environment
    if by_mpi and of_first is not None and of_first.hostname not in known:
        known.append(of_first.hostname)
    findings = []
    for name in known:
        others = {h: f for h, f in ready.items() if name not in (h.rpartition("@")[2], f.hostname)}
        needed = by_mpi and of_first is not None and name == of_first.hostname
        findings += _name_findings(name, others, needed)
    return Row("resolution", "alike on all hosts" if not findings else "differs", tuple(findings))


def _name_findings(name: str, asked: Mapping[str, Facts], is_needed: bool) -> list[Finding]:
    """What other hosts make of a name."""
    why = "; mpirun's ranks look for rank 0 by it" if is_needed else ""
    fix = "give all hosts the same /etc/hosts, or DNS"
    fix += "" if is_needed else " (over pdsh, ranks do without)"
    found = {host: some.resolved.get(name, ()) for host, some in asked.items()}
    none = tuple(host for host, addresses in found.items() if not addresses)
    own = tuple(h for h, a in found.items() if a and all(map(_is_loopback, a)))
    groups = by_value({h: a for h, a in found.items() if h not in (*none, *own)})
    findings = []
    if none:
        findings.append(Finding(none, f"the name {name} is unknown there{why}", fix, is_needed))
    if own:
        what = f"the name {name} means the host itself there (a loopback address){why}"
        findings.append(Finding(own, what, fix, is_needed))
    if len(groups) > 1:
        what = "; ".join(f"{', '.join(a)} on {fold(hosts)}" for a, hosts in groups.items())
        findings.append(Finding((), f"the name {name} means {what}", fix, False))
    return findings


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def ports(survey: Survey) -> Row:
    """The master port is free and reached; any host connects to any other."""
    network, first = survey.network, survey.hosts[0].name
    port = survey.wanted.master_port
    if first not in survey.ready:
        return Row("ports", f"not tried without {first}", is_tried=False)
    findings = []
    if not network.master:
        findings.append(
            Finding((first,), "`hostname -I` names no address there, by which the launcher tells "
                    "ranks where rank 0 is", "give the launcher --master_addr ADDRESS")
        )  # fmt: skip
    elif _is_loopback(network.master) and len(survey.hosts) > 1:
        findings.append(
            Finding((first,), f"{network.master} is to be rank 0's address, which no other host "
                    "reaches", "give an address of the network: --master_addr ADDRESS")
        )  # fmt: skip
    if network.port_problem:
        by = f" ({network.port_owner})" if network.port_owner else ""
        findings.append(
            Finding((first,), f"port {port} cannot be taken: {network.port_problem.lower()}{by}",
                    "end what holds it, or give the launcher another --master_port")
        )  # fmt: skip
    closed = {pair: problem for pair, problem in network.pairs.items() if problem}
    findings += _closed(closed, network.addresses)
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


def _closed(closed: Mapping[tuple[str, str], str], addresses: Mapping[str, str]) -> list[Finding]:
    """Connections that fail, by where they go to."""
    findings = []
    for (to, problem), pairs in by_value(
        {f"{a}\0{to}": (to, problem) for (a, to), problem in closed.items()}
    ).items():
        findings.append(
            Finding(
                tuple(pair.partition("\0")[0] for pair in pairs),
                f"no connection to {to} at {addresses.get(to) or '?'}, a free port: {problem}",
                "open all TCP ports between the hosts, as Gloo and NCCL choose theirs; where "
                f"hosts have several networks, take another by --master_addr or fix routes to {to}",
            )
        )
    return findings
