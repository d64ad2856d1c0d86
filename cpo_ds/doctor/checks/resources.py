"""What the hosts answered -> what is wrong with it: slots, GPUs, memory, disks, clocks. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cpo_ds.doctor.checks.findings import Finding, Row, differences, spread, together
from cpo_ds.doctor.survey import Facts, Survey

_CLOCK_SECONDS = 1.0
_SHM_GIB = 1.0
_BUSY_MIB = 1024  # of a GPU's memory in use


def slots(survey: Survey) -> Row:
    """As many slots as GPUs; without GPUs, no more than CPU cores."""
    any_gpu = any(some.gpus for some in survey.facts.values())
    findings, seen = [], {}
    for host in survey.hosts:
        some = survey.facts.get(host.name)
        if some is None:
            continue
        count = len(some.gpus) if any_gpu else some.cores
        kind = some.gpus[0].name if some.gpus else "GPUs" if any_gpu else "CPU cores"
        plural = "s" if host.slots > 1 else ""
        seen[host.name] = f"{host.slots} slot{plural} for {count} {kind}"
        where = f"{survey.wanted.hostfile}:{host.line}"
        found = _slots_finding(host.name, host.slots, count, any_gpu, where)
        findings += [found] if found else []
    findings += _gpu_findings(survey.facts)
    no_gpu = "" if any_gpu else " (no GPU)"
    return Row("slots", f"{together(seen)}{no_gpu}", tuple(findings))


def _slots_finding(name: str, wanted: int, count: int, any_gpu: bool, where: str) -> Finding | None:
    fix = f"write slots={count} in {where}"
    if any_gpu and count == 0:
        return Finding(
            (name,), "it shows no GPU, where others do", "see what nvidia-smi says there"
        )
    if any_gpu and wanted > count:
        return Finding((name,), f"{wanted} slots for {count} GPUs", fix)
    if any_gpu and wanted < count:
        return Finding((name,), f"{count - wanted} of {count} GPUs are not used", fix, False)
    if not any_gpu and wanted > 2 * count:
        what = f"{wanted} slots for {count} CPU cores; training refuses more than two ranks a core"
        return Finding((name,), what, fix)
    if not any_gpu and wanted > count:
        return Finding((name,), f"{wanted} ranks share {count} CPU cores", fix, False)
    return None


def _gpu_findings(facts: Mapping[str, Facts]) -> list[Finding]:
    with_gpus = {name: some.gpus for name, some in facts.items() if some.gpus}
    kinds = {n: ", ".join(sorted({g.name for g in gpus})) for n, gpus in with_gpus.items()}
    drivers = {name: gpus[0].driver for name, gpus in with_gpus.items()}
    findings = differences(drivers, "NVIDIA driver", lambda v: f"install {v} there", is_error=False)
    if len(set(kinds.values())) > 1:
        findings.append(
            Finding((), f"GPUs differ: {together(kinds)}",
                    "every step waits for the slowest; use hosts of one kind", False)
        )  # fmt: skip
    for name, gpus in with_gpus.items():
        busy = [f"{i} ({g.used / 1024:.0f} GiB)" for i, g in enumerate(gpus) if g.used > _BUSY_MIB]
        if busy:
            findings.append(
                Finding((name,), f"memory of GPU {', '.join(busy)} is in use",
                        "see whose it is: nvidia-smi", False)
            )  # fmt: skip
    return findings


def clocks(survey: Survey) -> Row:
    """Clocks agree: lines of logs and times of files are compared across hosts."""
    if not survey.clocks:
        return Row("clocks", "")
    findings = []
    for name, (ahead, uncertainty) in survey.clocks.items():
        if abs(ahead) - uncertainty > _CLOCK_SECONDS:
            way = "ahead" if ahead > 0 else "behind"
            findings.append(
                Finding(
                    (name,),
                    f"its clock is {abs(ahead):.1f} s {way} (to {1000 * uncertainty:.0f} ms)",
                    "start NTP there (timedatectl set-ntp true); times of logs and files mislead",
                    False,
                )
            )
    most = max(survey.clocks.values(), key=lambda clock: abs(clock[0]))
    text = f"within {1000 * abs(most[0]):.1g} ms of this host's, to {1000 * most[1]:.1g} ms"
    return Row("clocks", text, tuple(findings))


def memory(survey: Survey) -> Row:
    """Room for a rank's state on the host, and for what processes share."""
    free = {n: f.memory for n, f in survey.ready.items() if f.memory is not None}
    shm = {n: f.shm for n, f in survey.ready.items() if f.shm is not None}
    findings = _less(free, survey.wanted.need_memory, "of memory are free",
                     "end what else runs there; change the limit by --need-memory")  # fmt: skip
    if any(some.gpus for some in survey.ready.values()):
        findings += _less(shm, _SHM_GIB, "in /dev/shm, which NCCL uses within a host",
                          "give a container more: --shm-size=8g, or --ipc=host")  # fmt: skip
    text = f"{spread(free, 'GiB')} free; /dev/shm {spread(shm, 'GiB')}"
    return Row("memory", text, tuple(findings))


def disk(survey: Survey) -> Row:
    """Room for checkpoints."""
    free = {n: f.disk for n, f in survey.folders.items() if f.disk is not None}
    findings = _less(
        free,
        survey.wanted.need_disk,
        f"are free in {survey.wanted.output}",
        "make room, or keep fewer checkpoints (checkpoint.keep_last); change the limit by "
        "--need-disk",
    )
    return Row("disk", f"{spread(free, 'GiB')} free", tuple(findings))


def _less(values: Mapping[str, float], least: float, what: str, fix: str) -> list[Finding]:
    short = {name: value for name, value in values.items() if value < least}
    if not short:
        return []
    text = f"{spread(short, 'GiB')} {what}, less than {least:g}"
    return [Finding(tuple(short), text, fix, False)]
