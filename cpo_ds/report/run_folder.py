"""Reads a run's folder for the report: metrics, margins, translations, configuration, log.

Only metrics.jsonl must be there. Anything else that is missing or damaged is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cpo_ds.ranks.logs import log_file
from cpo_ds.storage.held_out_file import PairMargin, read_margins
from cpo_ds.storage.lock import is_held
from cpo_ds.storage.metrics_file import Line, read_metrics

_SAMPLES = "samples.jsonl"
_START = re.compile(r"--- rank 0 on host (?P<host>.+), process \d+, (?P<time>.+)")
_RESUMED = re.compile(r"resumed from .+ at step (\d+)")
_DATA = re.compile(r"read \d+ rows, kept |training pairs: |held-out pairs: \d+$|held out:$")


@dataclass(frozen=True)
class Start:
    """A start of a run, by its log; `step` is the one from which it went on."""

    time: str
    host: str
    step: int


@dataclass(frozen=True)
class RunFolder:
    """All that is known of a run."""

    name: str
    path: Path
    training: list[Line]
    held_out: list[Line]
    margins: list[PairMargin]
    samples: list[Line]
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    starts: list[Start]
    data_lines: list[str]  # the log's lines on rows that were read, and pairs that were dropped
    state: str

    @property
    def last_step(self) -> int:
        """The newest step that is logged; 0 if none is."""
        return max((line["step"] for line in self.training), default=0)

    def setting(self, *path: str) -> Any:
        """A value of the configuration; None if it is not known."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(path: Path, name: str) -> RunFolder:
    """Reads a run's folder. Raises `UserError` if metrics.jsonl is missing or damaged."""
    training, held_out = read_metrics(path)
    text = _text(path / "config.yaml")
    starts, data_lines = _read_log(_text(log_file(path, 0)))
    return RunFolder(
        name=name,
        path=path,
        training=training,
        held_out=held_out,
        margins=read_margins(path),
        samples=_read_samples(_text(path / _SAMPLES)),
        config=_mapping(text),
        config_text=text,
        versions=_mapping("\n".join(_comments(text))),
        starts=starts,
        data_lines=data_lines,
        state=_state(path),
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of runs: the last parts of their paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def _state(path: Path) -> str:
    if (path / "finished.json").is_file():
        return "finished"
    return "in progress" if is_held(path) else "not finished"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _comments(text: str) -> list[str]:
    """The comments below a configuration, which hold the versions."""
    return [line[2:] for line in text.splitlines() if line.startswith("# ")]


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_samples(text: str) -> list[Line]:
    samples = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            texts = [values[key] for key in ("prompt", "translation", "language_pair")]
            if isinstance(values["step"], int) and all(isinstance(t, str) for t in texts):
                samples.append(values)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # damaged, or the last line of a run that was killed
    return samples


def _read_log(text: str) -> tuple[list[Start], list[str]]:
    """The starts of a run, and what the first of them that read data said of it."""
    starts: list[Start] = []
    blocks: list[list[str]] = []
    is_data = False
    for line in text.splitlines():
        if start := _START.fullmatch(line):
            starts.append(Start(start["time"], start["host"], 0))
            blocks.append([])
        elif starts and (resumed := _RESUMED.match(line)):
            starts[-1] = Start(starts[-1].time, starts[-1].host, int(resumed[1]))
        elif starts:
            # A heading, or one of the indented lines below it.
            is_data = bool(_DATA.match(line)) or (is_data and line.startswith("  "))
            blocks[-1] += [line] * is_data
    reading = [block for block in blocks if any(line.startswith("read ") for line in block)]
    return starts, (reading or blocks or [[]])[0]
