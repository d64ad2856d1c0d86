"""The bandwidth of all-reduces: started on all hosts, and judged."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.doctor.bandwidth import bus_bandwidth, groups_of
from cpo_ds.doctor.checks.findings import Finding, Row, names
from cpo_ds.doctor.hostfile import Host
from cpo_ds.doctor.sessions import Party, PerHost
from cpo_ds.doctor.survey import Survey

_UNEVEN = 2.0  # a link that is so many times slower than the fastest is named as a fault
_DECORATION = r"^\[rank\d+\]: (\w+Error: )?|\[\S+\.cc:\d+\] "
_NOT_SAID = ("frame #", "[W", "[E", "terminate called")


@dataclass(frozen=True)
class Result:
    """An all-reduce: `within` a host, over `all`, or over the `link` of two hosts."""

    kind: str
    hosts: tuple[str, ...]
    bandwidth: float  # GiB/s over each link, by nccl-tests' definition


def measure(party: Party, survey: Survey, size_mib: int, limit: int) -> tuple[Row, list[Result]]:
    """Runs a rank in each slot of each host, for `limit` seconds at most."""
    hosts = survey.hosts
    if sum(host.slots for host in hosts) == 1:
        return Row("bandwidth", "one rank: nothing to measure", is_tried=False), []
    size = size_mib * 2**20
    package = str(survey.wanted.package.parent)
    code = f"import sys; sys.path.insert(0, {package!r}); "
    code += "from cpo_ds.doctor.bandwidth import main; "
    code += f"main({[host.slots for host in hosts]}, {size}, {limit})"
    command = [survey.wanted.python, "-c", code]
    answers = party.ask(
        "run",
        limit + 15,
        commands=PerHost({host.name: [command] * host.slots for host in hosts}),
        environments=PerHost(_environments(hosts, survey)),
        limit=limit,
    )
    results = parse(answers, hosts, size)
    missing = [
        _place(kind, [hosts[i].name for i in members])
        for kind, members, _ in groups_of([host.slots for host in hosts])
        if (kind, tuple(hosts[i].name for i in members)) not in {(r.kind, r.hosts) for r in results}
    ]
    said = {name: error.what for name, error in party.lost.items()}
    said |= {name: text for name, answer in answers.items() if (text := _last_words(answer))}
    return row(results, missing, said, limit), results


def _environments(hosts: Sequence[Host], survey: Survey) -> dict[str, list[dict[str, str]]]:
    """torch's variables of each rank, by host."""
    shared = {
        "MASTER_ADDR": survey.network.master or "127.0.0.1",
        "MASTER_PORT": str(survey.wanted.master_port),
        "WORLD_SIZE": str(sum(host.slots for host in hosts)),
    }
    places: dict[str, list[dict[str, str]]] = {}
    rank = 0
    for host in hosts:
        places[host.name] = []
        for local_rank in range(host.slots):
            own = {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
            own["LOCAL_WORLD_SIZE"] = str(host.slots)
            places[host.name].append(shared | own)
            rank += 1
    return places


def parse(answers: dict[str, dict[str, Any]], hosts: Sequence[Host], size: int) -> list[Result]:
    """What the ranks measured, in the order of their hosts."""
    results = []
    for answer in answers.values():
        for line in "\n".join(answer["outputs"]).splitlines():
            if not line.startswith('{"kind"'):
                continue
            said = json.loads(line)
            bandwidth = bus_bandwidth(size, said["seconds"], said["ranks"]) / 2**30
            results.append(
                Result(said["kind"], tuple(hosts[i].name for i in said["hosts"]), bandwidth)
            )
    return results


def _last_words(answer: dict[str, Any]) -> str:
    """What the first rank that failed said last; nothing where none failed of itself."""
    ended_here = (None, 0, -signal.SIGKILL, -signal.SIGALRM)
    failed = [i for i, code in enumerate(answer["codes"]) if code not in ended_here]
    lines = [
        line.strip()
        for i in failed
        for line in answer["outputs"][i].splitlines()
        if line.strip() and not line.startswith(('{"kind"', *_NOT_SAID))
    ]
    return re.sub(_DECORATION, "", lines[-1])[:200] if lines else ""


def row(
    results: Sequence[Result], missing: Sequence[str], said: Mapping[str, str], limit: int
) -> Row:
    """The figures, with the slowest link named; `said` by hosts whose ranks failed."""
    parts = []
    findings = []
    for kind, title in (("within", "within hosts"), ("link", "between hosts")):
        some = sorted((r for r in results if r.kind == kind), key=lambda r: r.bandwidth)
        if not some:
            continue
        slowest, fastest = some[0], some[-1]
        parts.append(f"{title} {_range(slowest, fastest)}")
        if slowest.bandwidth * _UNEVEN < fastest.bandwidth:
            findings.append(_uneven(kind, slowest, fastest))
    whole = next((r for r in results if r.kind == "all"), None)
    if whole is not None:
        parts.append(f"over all ranks {_figure(whole)}")
    if missing or said:
        failed = "; ".join(f"{host}: {text}" for host, text in list(said.items())[:1])
        reason = f" ({failed})" if failed else f" within {limit} s"
        findings.append(
            Finding(
                (),
                f"all-reduces were not done{reason}: {names(missing)}",
                "see what ranks say with NCCL_DEBUG=INFO or TORCH_DISTRIBUTED_DEBUG=DETAIL in "
                ".deepspeed_env; a slow network wants a smaller --size, or a longer --limit",
            )
        )
    return Row("bandwidth", "; ".join(parts) or "not measured", tuple(findings))


def _figure(result: Result) -> str:
    if result.bandwidth < 0.1:
        return f"{1024 * result.bandwidth:.3g} MiB/s"
    return f"{result.bandwidth:.3g} GiB/s"


def _range(slowest: Result, fastest: Result) -> str:
    place = " to ".join(slowest.hosts)
    if slowest is fastest:
        return f"{_figure(slowest)} ({place})"
    return f"{_figure(slowest)} ({place}, the slowest) to {_figure(fastest)}"


def _place(kind: str, hosts: Sequence[str]) -> str:
    return {"within": f"within {hosts[0]}", "link": " to ".join(hosts), "all": "over all ranks"}[
        kind
    ]


def _uneven(kind: str, slowest: Result, fastest: Result) -> Finding:
    times = fastest.bandwidth / slowest.bandwidth
    what = f"{'the link between them' if kind == 'link' else 'its all-reduce'} has "
    what += f"{_figure(slowest)}, {times:.3g} times less than {' to '.join(fastest.hosts)} with "
    what += _figure(fastest)
    fix = "all ranks wait for it: see its cable, switch port and driver, or what else runs there"
    return Finding(slowest.hosts, what, fix, False)
