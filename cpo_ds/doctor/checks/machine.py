"""Checks of one machine, from its answers; nothing here asks it."""

from __future__ import annotations

from collections.abc import Sequence

from cpo_ds.doctor.checks.findings import Finding, Row
from cpo_ds.doctor.machine import Machine
from cpo_ds.doctor.survey import PlannedRun

_SHOWN = ("torch", "deepspeed", "transformers", "peft")
_BUSY_MIB = 1024  # memory in use by which a GPU counts as busy
_SHM_GIB = 1.0


def judge_machine(machine: Machine, need_disk: float, need_memory: float) -> list[Row]:
    """The rows of all checks, in the order of the table; limits in GiB."""
    return [
        _python(machine),
        _packages(machine),
        _devices(machine),
        _precision(machine),
        _attention(machine),
        _memory(machine, need_memory),
        _disk(machine, need_disk),
        _hub(machine),
        _deepspeed_files(machine),
        _build_tools(machine),
    ]


def recipe_row(planned: PlannedRun) -> Row:
    """The recipe's model and data are on this machine, as far as they are named as paths."""
    paths = (*planned.models, *planned.data)
    findings = [
        _error(f"there is no {path}", "correct the recipe, or copy it there")
        for path in paths
        if not path.exists()
    ]
    names = [path.name for path in (*planned.files[:1], *paths)]
    return _row("recipe", ", ".join(names), *findings)


def _row(check: str, seen: str, *findings: Finding | None) -> Row:
    return Row(check, seen, tuple(finding for finding in findings if finding))


def _error(problem: str, fix: str) -> Finding:
    return Finding((), problem, fix)


def _warning(problem: str, fix: str) -> Finding:
    return Finding((), problem, fix, is_error=False)


def _fits(version: str, supported: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(supported).contains(version, prereleases=True)


def _python(machine: Machine) -> Row:
    if not machine.python_range or _fits(machine.python, machine.python_range):
        return _row("Python", f"{machine.python} ({machine.python_range or 'not judged'})")
    problem = f"Python {machine.python} is not supported ({machine.python_range})"
    fix = "make the environment again with such a Python: bash scripts/setup.sh, or python -m venv"
    return _row("Python", machine.python, _error(problem, fix))


def _packages(machine: Machine) -> Row:
    """All required packages have supported versions."""
    findings = []
    for name, supported in machine.required.items():
        version = machine.versions.get(name)
        if version is None:
            findings.append(_error(f"{name} is not installed", f"pip install '{name}{supported}'"))
        elif not _fits(version, supported):
            findings.append(
                _error(
                    f"{name} {version} is not supported ({supported})",
                    f"pip install '{name}{supported}'",
                )
            )
    shown = [f"{name} {machine.versions[name]}" for name in _SHOWN if name in machine.versions]
    if not findings and machine.required:
        shown.append(f"all {len(machine.required)} required packages are supported")
    elif not machine.required:
        shown.append("not judged: install cpo-ds, which declares the versions that it needs")
    return _row("packages", ", ".join(shown), *findings)


def _devices(machine: Machine) -> Row:
    """The GPUs by nvidia-smi, each of which torch can use."""
    usable = machine.torch.get("gpus", [])
    cuda = machine.torch.get("cuda")
    if not machine.gpus:
        names = ", ".join(usable) or f"no NVIDIA GPU; {machine.cores} CPU cores"
        return _row("devices", names)
    gpus = [
        f"{number}: {gpu.name}, {gpu.memory / 1024:.0f} GiB"
        for number, gpu in enumerate(machine.gpus)
    ]
    findings = []
    if machine.torch and not usable:
        problem = f"torch cannot use them: it is built for {f'CUDA {cuda}' if cuda else 'CPUs'}"
        if machine.torch.get("trouble"):
            problem += f" ({machine.torch['trouble']})"
        fix = (
            f"install a torch for driver {machine.gpus[0].driver} (see pytorch.org), or a newer "
            "driver; and see whether CUDA_VISIBLE_DEVICES is set"
        )
        findings.append(_error(problem, fix))
    busy = [
        f"{i} ({g.used / 1024:.0f} GiB)" for i, g in enumerate(machine.gpus) if g.used > _BUSY_MIB
    ]
    if busy:
        fix = "run nvidia-smi to see which process holds it"
        findings.append(_warning(f"memory of GPU {', '.join(busy)} is in use", fix))
    seen = "; ".join([*gpus, f"driver {machine.gpus[0].driver}"])
    return _row("devices", f"{seen}, torch's CUDA {cuda}" if cuda else seen, *findings)


def _precision(machine: Machine) -> Row:
    if not machine.torch:
        fix = "install the packages again: bash scripts/setup.sh, or pip install cpo-ds"
        return _row("precision", "not known", _error(machine.torch_problem, fix))
    return _row("precision", f"{machine.torch['dtype']}: {machine.torch['dtype_because']}")


def _attention(machine: Machine) -> Row:
    """The backend that `model.attention: auto` takes for a model of the usual kind, and others."""
    if not machine.torch:
        return Row("attention", "not asked, since torch does not answer", is_tried=False)
    torch = machine.torch
    others = [name for name in torch["works"] if name != torch["attention"]]
    seen = f"{torch['attention']}: {torch['attention_because']}; works too: {', '.join(others)}"
    return _row("attention", seen)


def _memory(machine: Machine, least: float) -> Row:
    """Free memory, and /dev/shm for buffers that ranks share."""
    seen = f"{_gib(machine.memory)} free; /dev/shm {_gib(machine.shm)}"
    fix = "end other programs; --need-memory changes the limit"
    small = None
    if machine.gpus and machine.shm is not None and machine.shm < _SHM_GIB:
        small = _warning(
            f"{_gib(machine.shm)} in /dev/shm, which NCCL uses",
            "start the container with --shm-size=8g, or with --ipc=host",
        )
    return _row(
        "memory", seen, _too_little(machine.memory, least, "of memory are free", fix), small
    )


def _disk(machine: Machine, least: float) -> Row:
    """Room for checkpoints, and for models and data from the hub."""
    fix = "make room, or choose another folder (output_dir, HF_HOME); --need-disk changes the limit"
    findings = [
        _too_little(free, least, f"are free in {folder}", fix)
        for folder, free in machine.disks.items()
    ]
    seen = "; ".join(f"{_gib(free)} free in {folder}" for folder, free in machine.disks.items())
    return _row("disk", seen, *findings)


def _too_little(free: float | None, least: float, text: str, fix: str) -> Finding | None:
    if free is None or free >= least:
        return None
    return _warning(f"{_gib(free)} {text}, less than {least:g}", fix)


def _gib(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.0f} GiB"


def _hub(machine: Machine) -> Row:
    if machine.offline:
        return _row("hub", f"not asked: {machine.offline} is set, so models and data are local")
    if machine.hub_seconds is not None:
        return _row("hub", f"{machine.hub} answered in {machine.hub_seconds:.1f} s")
    fix = (
        "set HTTPS_PROXY if there is a proxy; else copy models and data here, name their folders "
        "in the recipe, and set HF_HUB_OFFLINE=1 so that no run waits for the hub"
    )
    return _row("hub", "offline", _warning(f"{machine.hub}: {machine.hub_problem}", fix))


def _deepspeed_files(machine: Machine) -> Row:
    findings = [
        _error(f"{name}: {problem}", "install cpo-ds again, or restore ds_configs/")
        for name, problem in machine.deepspeed_files.items()
        if problem
    ]
    if not machine.deepspeed_files:
        findings = [_error("there are no DeepSpeed files", "install cpo-ds again")]
    return _row("ds_configs", _listed(list(machine.deepspeed_files)), *findings)


def _build_tools(machine: Machine) -> Row:
    """Programs with which DeepSpeed compiles its operations at their first use."""
    if not machine.build_tools:
        return _row("compiler", "c++ and ninja are there")
    missing = " and ".join(machine.build_tools)
    problem = f"{missing} cannot be called; DeepSpeed compiles some operations by c++ and ninja"
    fix = "install them (apt-get install g++, pip install ninja), and activate the environment"
    return _row("compiler", f"without {missing}", _warning(problem, fix))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
