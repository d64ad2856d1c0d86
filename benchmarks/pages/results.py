"""Files of results: a JSON line for each run, and the page that is rendered beside them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measures.environment import describe_environment

from cpo_ds.errors import UserError
from pages.text import Line

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Kind of benchmark -> module with `render(lines, stem)`, imported when it is needed.
RENDERERS = {
    "memory_vs_dpo": "pages.memory",
    "ablations": "pages.ablations",
    "scaling": "pages.scaling",
    "head": "pages.head",
    "planner": "pages.planner",
    "scoring": "pages.scoring",
    "link": "pages.link",
    "ranks": "pages.ranks",
    "profile": "pages.profile",
    "states": "pages.states",
    "gpu": "pages.gpu",
    "failures": "pages.failures",
    "methods": "pages.methods",
    "many_rejected": "pages.many_rejected",
}


class Results:
    """A file of results, begun anew: a line per run, written as soon as there is one."""

    def __init__(self, file: Path, shared: Line, kept: Sequence[Line] = ()) -> None:
        """`shared` holds the values that all lines share, `benchmark` first.

        Lines of earlier calls that are `kept` stand before the new ones, as they are.
        """
        self.file = file
        self.lines: list[Line] = list(kept)
        self._shared, self._environment = shared, describe_environment()
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in kept)
        file.write_text(text, encoding="utf-8")

    def add(self, measured: Line) -> Line:
        """Writes a line and returns it."""
        line = self._shared | measured | self._environment
        self.lines.append(line)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def results_file(given: Path | None, benchmark: str, model: str) -> Path:
    """The file that is given, or `benchmarks/results/BENCHMARK_MODEL_DEVICE.jsonl`."""
    default = RESULTS / f"{benchmark}_{plain_name(model)}_{device_name()}.jsonl"
    return (given or default).with_suffix(".jsonl")


def device_name() -> str:
    """The GPU's name as file names have it, or `cpu`."""
    return plain_name(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def plain_name(text: str) -> str:
    """A name as file names have it: `NVIDIA H200` -> `nvidia-h200`."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """A file's lines. Raises `UserError` naming the line that is not JSON."""
    if not file.is_file():
        raise UserError(f"there is no file {file}.")
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number} is not JSON: {error}.") from None
    return lines


def lines_to_keep(file: Path, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of an earlier call that ended well. Raises `UserError` if it had other settings."""
    lines = read_lines(file) if file.exists() else []
    for line in lines:
        others = [name for name, value in shared.items() if line.get(name) != value]
        if others:
            raise UserError(
                f"--add: the runs in {file} had another {others[0]}: {line.get(others[0])} and not "
                f"{shared[others[0]]}; give another --out."
            )
    return [line for line in lines if "error" not in line]


def render_file(file: Path) -> None:
    """Writes FILE's page and charts beside it. Raises `UserError` for an unknown kind."""
    lines = read_lines(file)
    kind = lines[0].get("benchmark") if lines else None
    if kind not in RENDERERS:
        raise UserError(
            f"{file}: its first line says benchmark: {kind}; known are {', '.join(RENDERERS)}."
        )
    render: Callable[[list[dict[str, Any]], Path], None]
    render = importlib.import_module(RENDERERS[kind]).render
    render(lines, file.with_suffix(""))
