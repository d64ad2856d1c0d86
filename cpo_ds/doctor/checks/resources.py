"""Checks of each host's slots, GPUs, memory, disk and clock.

Each check takes the survey and returns its row. Nothing here asks a host.
"""

from __future__ import annotations

from collections.abc import Mapping

from cpo_ds.doctor.checks.findings import Finding, Row, describe, describe_range, differences
from cpo_ds.doctor.survey import Facts, Survey

_CLOCK_SECONDS = 1.0
_SHM_GIB = 1.0
_BUSY_MIB = 1024  # memory in use by which a GPU counts as busy; drivers take some hundred MiB


def slots(survey: Survey) -> Row:
    """A host has as many slots as GPUs; without any GPU, no more slots than CPU cores."""
    any_gpu = any(facts.gpus for facts in survey.facts.values())
    findings, seen = [], {}
    for host in survey.hosts:
        facts = survey.facts.get(host.name)
        if facts is None:
            continue
        count = len(facts.gpus) if any_gpu else facts.cores
        kind = facts.gpus[0].name if facts.gpus else "GPUs" if any_gpu else "CPU cores"
        plural = "s" if host.slots > 1 else ""
        seen[host.name] = f"{host.slots} slot{plural} for {count} {kind}"
        line = f"{survey.run.hostfile}:{host.line}"
        finding = _slots_finding(host.name, host.slots, count, any_gpu, line)
        findings += [finding] if finding else []
    findings += _gpu_findings(survey.facts)
    no_gpu = "" if any_gpu else " (no GPU)"
    return Row("slots", f"{describe(seen)}{no_gpu}", tuple(findings))


def _slots_finding(name: str, slots: int, count: int, any_gpu: bool, line: str) -> Finding | None:
    """Compares a host's slots with its number of GPUs, or of CPU cores if no host has a GPU."""
    fix = f"write slots={count} in {line}"
    if any_gpu and count == 0:
        problem = "it has no GPU, but other hosts have some"
        return Finding((name,), problem, "run nvidia-smi there to see why")
    if any_gpu and slots > count:
        return Finding((name,), f"{slots} slots for {count} GPUs", fix)
    if any_gpu and slots < count:
        return Finding((name,), f"{count - slots} of {count} GPUs are not used", fix, False)
    if not any_gpu and slots > 2 * count:
        problem = (
            f"{slots} slots for {count} CPU cores; training refuses more than two ranks a core"
        )
        return Finding((name,), problem, fix)
    if not any_gpu and slots > count:
        return Finding((name,), f"{slots} ranks share {count} CPU cores", fix, False)
    return None


def _gpu_findings(facts: Mapping[str, Facts]) -> list[Finding]:
    """Different drivers, different kinds of GPU, and memory that other processes hold."""
    with_gpus = {name: host.gpus for name, host in facts.items() if host.gpus}
    kinds = {n: ", ".join(sorted({g.name for g in gpus})) for n, gpus in with_gpus.items()}
    drivers = {name: gpus[0].driver for name, gpus in with_gpus.items()}
    findings = differences(drivers, "NVIDIA driver", lambda v: f"install {v} there", is_error=False)
    if len(set(kinds.values())) > 1:
        problem = f"GPUs differ: {describe(kinds)}"
        fix = "every step waits for the slowest GPU; use hosts of one kind"
        findings.append(Finding((), problem, fix, False))
    for name, gpus in with_gpus.items():
        busy = [f"{i} ({g.used / 1024:.0f} GiB)" for i, g in enumerate(gpus) if g.used > _BUSY_MIB]
        if busy:
            problem = f"memory of GPU {', '.join(busy)} is in use"
            fix = "run nvidia-smi there to see which process holds it"
            findings.append(Finding((name,), problem, fix, False))
    return findings


def clocks(survey: Survey) -> Row:
    """All clocks agree, so that times in logs and of files can be compared across hosts."""
    if not survey.clocks:
        return Row("clocks", "")
    findings = []
    for name, (ahead, uncertainty) in survey.clocks.items():
        if abs(ahead) - uncertainty > _CLOCK_SECONDS:
            direction = "ahead" if ahead > 0 else "behind"
            findings.append(
                Finding(
                    (name,),
                    f"its clock is {abs(ahead):.1f} s {direction}, give or take "
                    f"{1000 * uncertainty:.0f} ms",
                    "start NTP there (timedatectl set-ntp true); until then times in logs and of "
                    "files mislead",
                    False,
                )
            )
    most = max(survey.clocks.values(), key=lambda clock: abs(clock[0]))
    text = (
        f"within {1000 * abs(most[0]):.1g} ms of this host's, give or take {1000 * most[1]:.1g} ms"
    )
    return Row("clocks", text, tuple(findings))


def memory(survey: Survey) -> Row:
    """Host memory has room for a rank's state, and /dev/shm for buffers that ranks share."""
    free = {n: f.memory for n, f in survey.ready.items() if f.memory is not None}
    shm = {n: f.shm for n, f in survey.ready.items() if f.shm is not None}
    findings = _too_little(free, survey.run.need_memory, "of memory are free",
                           "end other programs there; --need-memory changes the limit")  # fmt: skip
    if any(facts.gpus for facts in survey.ready.values()):
        text = "in /dev/shm, which NCCL uses within a host"
        fix = "start the container with --shm-size=8g, or with --ipc=host"
        findings += _too_little(shm, _SHM_GIB, text, fix)
    text = f"{describe_range(free, 'GiB')} free; /dev/shm {describe_range(shm, 'GiB')}"
    return Row("memory", text, tuple(findings))


def disk(survey: Survey) -> Row:
    """The disk of the run's folder has room for checkpoints."""
    free = {n: f.disk for n, f in survey.folders.items() if f.disk is not None}
    findings = _too_little(
        free,
        survey.run.need_disk,
        f"are free in {survey.run.output}",
        "make room, or keep fewer checkpoints (checkpoint.keep_last); --need-disk changes the "
        "limit",
    )
    return Row("disk", f"{describe_range(free, 'GiB')} free", tuple(findings))


def _too_little(values: Mapping[str, float], least: float, text: str, fix: str) -> list[Finding]:
    """One warning for all hosts with less than `least` GiB; `text` follows the amount."""
    low = {name: value for name, value in values.items() if value < least}
    if not low:
        return []
    problem = f"{describe_range(low, 'GiB')} {text}, less than {least:g}"
    return [Finding(tuple(low), problem, fix, False)]
