"""Bandwidth of all-reduces: starts the measurement on all hosts and judges its results."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.doctor.bandwidth import bus_bandwidth, groups_of
from cpo_ds.doctor.checks.findings import Finding, Row, first_few
from cpo_ds.doctor.hostfile import Host
from cpo_ds.doctor.sessions import HostGroup, PerHost
from cpo_ds.doctor.survey import Survey

_UNEVEN = 2.0  # a link that is slower than the fastest by more than this factor is a warning
_EXTRA_SECONDS = 15  # for starting the ranks and collecting their output, besides the limit

# What torch prints before an error's own words, and lines of its output that are not the error.
_DECORATION = r"^\[rank\d+\]: (\w+Error: )?|\[\S+\.cc:\d+\] "
_NOT_ERRORS = ("frame #", "[W", "[E", "terminate called")


@dataclass(frozen=True)
class Result:
    """One measured all-reduce: `within` a host, over the `link` of two hosts, or over `all`."""

    kind: str
    hosts: tuple[str, ...]
    bandwidth: float  # GiB/s over each link, as nccl-tests defines it


def measure(
    group: HostGroup, survey: Survey, size_mib: int, limit: int
) -> tuple[Row, list[Result]]:
    """Measures with one rank in each slot of each host, for `limit` seconds at most.

    Each all-reduce sums `size_mib` MiB. Returns the check's row and all results.
    """
    hosts = survey.hosts
    if sum(host.slots for host in hosts) == 1:
        return Row("bandwidth", "one rank: nothing to measure", is_tried=False), []

    # Start all ranks. Each runs cpo_ds/doctor/bandwidth.py from the checkout of its host.
    size = size_mib * 2**20
    package = str(survey.run.package.parent)
    code = f"import sys; sys.path.insert(0, {package!r}); "
    code += "from cpo_ds.doctor.bandwidth import main; "
    code += f"main({[host.slots for host in hosts]}, {size}, {limit})"
    command = [survey.run.python, "-c", code]
    answers = group.ask(
        "run",
        limit + _EXTRA_SECONDS,
        commands=PerHost({host.name: [command] * host.slots for host in hosts}),
        environments=PerHost(_environments(hosts, survey)),
        limit=limit,
    )

    # Hold the results against the list of all-reduces that were to be measured.
    results = parse_results(answers, hosts, size)
    measured = {(result.kind, result.hosts) for result in results}
    missing = [
        _describe(kind, [hosts[i].name for i in members])
        for kind, members, _ in groups_of([host.slots for host in hosts])
        if (kind, tuple(hosts[i].name for i in members)) not in measured
    ]
    errors = {name: error.problem for name, error in group.lost.items()}
    errors |= {name: text for name, answer in answers.items() if (text := _last_error(answer))}
    return judge(results, missing, errors, limit), results


def _environments(hosts: Sequence[Host], survey: Survey) -> dict[str, list[dict[str, str]]]:
    """Returns torch's variables for each rank of each host, by the host's name."""
    shared = {
        "MASTER_ADDR": survey.network.master or "127.0.0.1",
        "MASTER_PORT": str(survey.run.master_port),
        "WORLD_SIZE": str(sum(host.slots for host in hosts)),
    }
    environments: dict[str, list[dict[str, str]]] = {}
    rank = 0
    for host in hosts:
        environments[host.name] = []
        for local_rank in range(host.slots):
            own = {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
            own["LOCAL_WORLD_SIZE"] = str(host.slots)
            environments[host.name].append(shared | own)
            rank += 1
    return environments


def parse_results(
    answers: dict[str, dict[str, Any]], hosts: Sequence[Host], size: int
) -> list[Result]:
    """Finds the results of all-reduces of `size` bytes in the output of the ranks."""
    results = []
    for answer in answers.values():
        for line in "\n".join(answer["outputs"]).splitlines():
            if not line.startswith('{"kind"'):
                continue
            values = json.loads(line)
            bandwidth = bus_bandwidth(size, values["seconds"], values["ranks"]) / 2**30
            results.append(
                Result(values["kind"], tuple(hosts[i].name for i in values["hosts"]), bandwidth)
            )
    return results


def _last_error(answer: dict[str, Any]) -> str:
    """Returns the last line of the host's first failed rank; empty if no rank failed by itself."""
    not_failed = (None, 0, -signal.SIGKILL, -signal.SIGALRM)  # running, done, or ended by us
    failed = [i for i, code in enumerate(answer["codes"]) if code not in not_failed]
    lines = [
        line.strip()
        for i in failed
        for line in answer["outputs"][i].splitlines()
        if line.strip() and not line.startswith(('{"kind"', *_NOT_ERRORS))
    ]
    return re.sub(_DECORATION, "", lines[-1])[:200] if lines else ""


def judge(
    results: Sequence[Result], missing: Sequence[str], errors: Mapping[str, str], limit: int
) -> Row:
    """Returns the row with all figures, the slowest link by name, and the faults.

    `missing` names the all-reduces without a result, `errors` the hosts whose ranks failed.
    """
    # The range within hosts and between hosts, and one figure over all ranks.
    parts = []
    findings = []
    for kind, title in (("within", "within hosts"), ("link", "between hosts")):
        ordered = sorted((r for r in results if r.kind == kind), key=lambda r: r.bandwidth)
        if not ordered:
            continue
        slowest, fastest = ordered[0], ordered[-1]
        parts.append(f"{title} {_range(slowest, fastest)}")
        if slowest.bandwidth * _UNEVEN < fastest.bandwidth:
            findings.append(_uneven(kind, slowest, fastest))
    whole = next((r for r in results if r.kind == "all"), None)
    if whole is not None:
        parts.append(f"over all ranks {_figure(whole)}")

    # All-reduces that failed or took too long; the first host's error is enough.
    if missing or errors:
        first_error = "; ".join(f"{host}: {text}" for host, text in list(errors.items())[:1])
        reason = f" ({first_error})" if first_error else f" within {limit} s"
        findings.append(
            Finding(
                (),
                f"some all-reduces did not finish{reason}: {first_few(missing)}",
                "set NCCL_DEBUG=INFO or TORCH_DISTRIBUTED_DEBUG=DETAIL in .deepspeed_env to see "
                "why; for a slow network give a smaller --size, or a longer --limit",
            )
        )
    return Row("bandwidth", "; ".join(parts) or "not measured", tuple(findings))


def _figure(result: Result) -> str:
    if result.bandwidth < 0.1:
        return f"{1024 * result.bandwidth:.3g} MiB/s"
    return f"{result.bandwidth:.3g} GiB/s"


def _range(slowest: Result, fastest: Result) -> str:
    hosts = " to ".join(slowest.hosts)
    if slowest is fastest:
        return f"{_figure(slowest)} ({hosts})"
    return f"{_figure(slowest)} ({hosts}, the slowest) to {_figure(fastest)}"


def _describe(kind: str, hosts: Sequence[str]) -> str:
    """Names one all-reduce: `within gpu1`, `gpu1 to gpu2` or `over all ranks`."""
    return {"within": f"within {hosts[0]}", "link": " to ".join(hosts), "all": "over all ranks"}[
        kind
    ]


def _uneven(kind: str, slowest: Result, fastest: Result) -> Finding:
    """The warning about the slowest of several links, or of several hosts."""
    factor = fastest.bandwidth / slowest.bandwidth
    subject = "the link between them" if kind == "link" else "its all-reduce"
    problem = f"{subject} has {_figure(slowest)}, {factor:.3g} times less than "
    problem += f"{' to '.join(fastest.hosts)} with {_figure(fastest)}"
    fix = "all ranks wait for it: check its cable, switch port, driver and other programs there"
    return Finding(slowest.hosts, problem, fix, False)
