"""Scores by COMET models and their like: those in the rows, or new ones by `prepare score`.

Metrics with models of their own compute in another environment, so a new score is made by the
command `cpo-ds prepare score` in a process of its own, which keeps finished work in a cache.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import write_rows
from cpo_ds.data.json_text import finite
from cpo_ds.errors import EXIT_USER_ERROR, UserError, one_line
from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.evaluate.results import Result
from cpo_ds.evaluate.rows import Direction, EvaluationRow
from cpo_ds.evaluate.signature import make_signature, text_settings
from cpo_ds.scoring.metrics import Metric, model_name

_ERROR = "cpo_ds: error: "
# Metrics that never look at a reference; showing them one costs time and changes nothing.
_REFERENCE_FREE = tuple(map(model_name, ("kiwi-22", "kiwi-xl", "kiwi-xxl")))


@dataclass(frozen=True)
class Computing:
    """How new scores are computed: options of `cpo-ds prepare score`, and its cache."""

    options: tuple[str, ...] = ()
    cache: Path | None = None


@dataclass(frozen=True)
class SegmentScores:
    """A metric's scores of all segments, by direction and system, and the record of their making.

    An empty translation has the worst score, whatever the model says of it.
    """

    metric: Metric
    record: Mapping[str, Any]
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def results(self, directions: Sequence[Direction]) -> list[Result]:
        """The mean score of each system in each direction."""
        return [
            Result(
                system,
                direction.language_pair,
                self.metric.name,
                statistics.fmean(self.values[direction.language_pair, system]),
                len(direction.rows),
                self._signature(direction, system),
            )
            for direction in directions
            for system in direction.systems
        ]

    def _signature(self, direction: Direction, system: str) -> str:
        translations = direction.translations(system)
        sees_reference = bool(self.record.get("uses_reference"))
        settings = {
            "model": self.record.get("model", self.metric.model),
            **{key: self.record.get(key) for key in ("fingerprint", "version", "dtype")},
            "nrefs": int(sees_reference),
            "test": direction.test_set,
            "empty": sum(not text for text in translations),
        }
        references = direction.references if sees_reference else None
        texts = text_settings(translations, direction.sources, references)
        return make_signature(self.metric.name, settings | texts)


def segment_scores(
    metrics: Sequence[Metric], directions: Sequence[Direction], computing: Computing
) -> list[SegmentScores]:
    """The scores by each metric: those in the rows if there are any, else new ones.

    Raises `UserError` if rows have scores by a metric, but not all of them or not of one kind; if
    the metrics' precisions differ; and if new scores cannot be made.
    """
    rows = [row for direction in directions for row in direction.rows]
    models = models_in_rows(rows)
    names = {metric: name_in_rows(metric, models) for metric in metrics}
    missing = [metric for metric in metrics if names[metric] is None]
    computed = _compute(missing, directions, computing) if missing else rows
    scored = [
        _collect(metric, names[metric] or metric.name, computed if metric in missing else rows,
                 directions)
        for metric in metrics
    ]  # fmt: skip
    _check_precisions(scored)
    return scored


def models_in_rows(rows: Sequence[EvaluationRow]) -> dict[str, str | None]:
    """The metrics that rows have scores by, each with the model that their record names."""
    models: dict[str, str | None] = {}
    for row in rows:
        scores, scorers = (_mapping(row.values.get(key)) for key in ("scores", "scorers"))
        for name in (name for name, values in scores.items() if values):
            model = _mapping(scorers.get(name)).get("model")
            models.setdefault(name, model if isinstance(model, str) else None)
    return models


def name_in_rows(metric: Metric, models: Mapping[str, str | None]) -> str | None:
    """The name under which rows have scores by a metric, given their `models_in_rows`.

    It is None if they have none. Scores by another model than the metric names, as
    `NAME=CHECKPOINT`, are not the metric's.
    """
    names_model = metric.model not in (metric.name, model_name(metric.name))
    if metric.name in models and not (names_model and models[metric.name] != metric.model):
        return metric.name
    return next((name for name in models if model_name(name) == metric.model), None)


def _mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one in place of another value."""
    return value if isinstance(value, dict) else {}


def _collect(
    metric: Metric, name: str, rows: Sequence[EvaluationRow], directions: Sequence[Direction]
) -> SegmentScores:
    """The scores in rows, checked. `rows` are those of all `directions`, one after the other."""
    # All scores of a metric are made in the same way.
    records: dict[str, Any] = {}
    values: dict[tuple[str, str], list[float]] = {}
    worst = facts_of(metric.name, metric.model).worst
    following = iter(rows)
    for direction in directions:
        for original in direction.rows:
            row = next(following)
            record = _mapping(row.values.get("scorers")).get(name)
            records.setdefault(json.dumps(record, sort_keys=True), record)
            scores = _mapping(_mapping(row.values.get("scores")).get(name))
            for system in direction.systems:
                score = worst if not original.candidates[system] else finite(scores.get(system))
                if score is None:
                    raise UserError(
                        f"{original.where}: there is no score by {name} of {system}; score all "
                        "rows by cpo-ds prepare score, or remove the field scores to have all "
                        "scores made anew."
                    )
                values.setdefault((direction.language_pair, system), []).append(score)
    if len(records) > 1:
        raise UserError(
            f"--metric {metric.name}: the rows hold scores of more than one kind, which cannot "
            f"share a table ({_differences(list(records.values()))}); score all of them alike."
        )
    (record,) = records.values()
    return SegmentScores(metric, record if isinstance(record, dict) else {}, values)


def _differences(records: list[Any]) -> str:
    """How records differ, like `dtype: bfloat16 and float32`."""
    known = [record if isinstance(record, dict) else {} for record in records]
    keys = dict.fromkeys(key for record in known for key in record)
    values = {key: sorted({str(record.get(key)) for record in known}) for key in keys}
    parts = [f"{key}: {' and '.join(v)}" for key, v in values.items() if len(v) > 1]
    return "; ".join(parts) or "some rows do not say how they were scored"


def _check_precisions(scored: Sequence[SegmentScores]) -> None:
    """Raises `UserError` if metrics of one table were computed in different precisions."""
    precisions = {s.metric.name: s.record["dtype"] for s in scored if s.record.get("dtype")}
    if len(set(precisions.values())) > 1:
        named = ", ".join(f"{name} {dtype}" for name, dtype in precisions.items())
        raise UserError(
            f"the scores have different precisions ({named}), which one table must not mix; score "
            "all of them in one, by --dtype, or evaluate them one at a time."
        )


def _compute(
    metrics: Sequence[Metric], directions: Sequence[Direction], computing: Computing
) -> list[EvaluationRow]:
    """Rows with new scores by `cpo-ds prepare score`, in the order of the directions."""
    hides_reference = all(metric.model in _REFERENCE_FREE for metric in metrics)
    with tempfile.TemporaryDirectory() as folder:
        given, scored = Path(folder) / "rows.jsonl", Path(folder) / "scored.jsonl"
        rows = [(direction, row) for direction in directions for row in direction.rows]
        write_rows(given, [_to_score(d, row, hides_reference) for d, row in rows])
        command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "score"]
        command += ["--input", str(given), "--output", str(scored), *computing.options]
        command += ["--cache", str(computing.cache or Path(folder) / "cache")]
        for metric in metrics:
            command += ["--metric", f"{metric.name}={metric.model}"]
        _run(command)
        lines = scored.read_text(encoding="utf-8").splitlines()
    return [_scored(json.loads(line), d, row) for line, (d, row) in zip(lines, rows, strict=True)]


def _to_score(direction: Direction, row: EvaluationRow, hides_reference: bool) -> dict[str, Any]:
    """A row for `prepare score`, with numbers for the systems, whose names may be any text."""
    texts = [row.candidates[system] for system in direction.systems]
    reference = None if hides_reference else row.reference
    return {
        "language_pair": row.language_pair,
        "source": row.source,
        **({"reference": reference} if reference is not None else {}),
        "candidates": {str(number): text for number, text in enumerate(texts) if text},
    }


def _scored(values: dict[str, Any], direction: Direction, row: EvaluationRow) -> EvaluationRow:
    """The row with the scores that `prepare score` wrote, by name of the system."""
    scores = {
        name: {s: by_number.get(str(n)) for n, s in enumerate(direction.systems)}
        for name, by_number in values["scores"].items()
    }
    new = {"scores": scores, "scorers": values["scorers"]}
    return EvaluationRow(
        row.language_pair, row.source, row.reference, row.candidates, new, row.where
    )


def _run(command: list[str]) -> None:
    """Runs a command of cpo_ds; its progress goes to the standard error.

    Raises `UserError` with the command's own message if it fails.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", file=sys.stderr, flush=True)
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    if process.returncode == 0:
        return
    message = next((line.partition(_ERROR)[2] for line in lines if _ERROR in line), None)
    if process.returncode == EXIT_USER_ERROR and message:
        raise UserError(message)
    raise UserError(
        f"cpo-ds prepare score ended with exit code {process.returncode}: "
        f"{one_line(' '.join(lines[-3:]))}. Run it by itself to see more: scores that are finished "
        "are kept."
    )
