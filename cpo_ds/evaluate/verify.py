"""Computes the numbers of an evaluation's JSON file again, and says what differs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError, one_line
from cpo_ds.evaluate.evaluation import Plan, evaluate
from cpo_ds.evaluate.lexical import NAMES
from cpo_ds.evaluate.neural import Computing
from cpo_ds.evaluate.report import Report
from cpo_ds.evaluate.results import MEANS, Result
from cpo_ds.evaluate.rows import read_directions
from cpo_ds.evaluate.signature import TEXTS, parse_signature
from cpo_ds.evaluate.significance import Kind
from cpo_ds.scoring.corpus import TOKENIZERS
from cpo_ds.scoring.metrics import Metric

# Sums of the same numbers differ by rounding, scores of a model by the device that computes it.
_TOLERANCE, _OF_MODELS = 1e-9, 1e-5
_NAMES = {name: model for model, name in NAMES.items()}
_SHOWN = 20  # differences


def verify(file: Path, rows: Path | None, computing: Computing) -> tuple[int, list[str]]:
    """Computes all results of a file again; returns their number, and a line for each difference.

    `rows` are taken in place of the rows that the file names. Raises `UserError` for a file that is
    no evaluation's, or if its rows or metrics are not on this machine.
    """
    content = _read(file)
    results = [_result(file, number, values) for number, values in enumerate(content["results"])]
    path = rows or Path(str(content.get("input", "")))
    if not path.is_file():
        raise UserError(f"{file}: its rows {path} do not exist; give them by --input.")
    plan = _plan(file, results, content, computing)
    systems = list(dict.fromkeys(result.system for result in results))
    try:
        report = evaluate(read_directions(str(path), systems), plan)
    except UserError as error:
        raise UserError(f"{file} cannot be computed again: {error}") from None
    return len(results), _differences(results, report) + _further(content, report)


def _read(file: Path) -> dict[str, Any]:
    """The content of the file. Raises `UserError` if it is not an evaluation's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--verify {file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--verify {file} is not valid JSON: {one_line(error)}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise UserError(f"--verify {file}: there are no results; give a file of --json.")
    if not content["results"]:
        raise UserError(f"--verify {file}: its results are empty; there is nothing to verify.")
    return content


def _result(file: Path, number: int, values: Any) -> Result:
    """A result of the file. Raises `UserError` if it is malformed."""
    try:
        result = Result(**values)
        for text in (result.system, result.language_pair, result.metric, result.signature):
            if not isinstance(text, str):
                raise ValueError(f"{text!r} is not a string")
        parse_signature(result.signature)
        if not math.isfinite(float(result.score)):
            raise ValueError(f"the score is {result.score}")
        return result
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--verify {file}: result {number + 1} is malformed: {one_line(error)}."
        ) from None


def _plan(
    file: Path, results: Sequence[Result], content: Mapping[str, Any], computing: Computing
) -> Plan:
    """The plan by which a file was made, from its signatures. Raises `UserError`."""
    metrics: dict[str, Metric] = {}
    tokenizers: dict[str, str] = {}
    precisions: set[str] = set()
    for result in results:
        name, settings = parse_signature(result.signature)
        model = settings.get("model") or _NAMES.get(name)
        if model is None:
            raise UserError(f"--verify {file}: the signature of {name} names no model.")
        metrics.setdefault(result.metric, Metric(result.metric, model))
        tokenizer = settings.get("tok")
        if tokenizer and result.language_pair not in MEANS:
            known = [name for name in TOKENIZERS if tokenizer.startswith(name)]
            if not known:
                raise UserError(f"--verify {file}: there is no tokenizer {tokenizer} for BLEU.")
            tokenizers[result.language_pair] = known[0]
        precisions |= {settings["dtype"]} if "dtype" in settings else set()
    tested = content.get("significance") or []
    try:
        tests = tuple(dict.fromkeys(Kind(str(t["test"]), int(t["samples"])) for t in tested))
        selected = {str(k): [str(n) for n in v] for k, v in content.get("selected_by", {}).items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(f"--verify {file}: selected_by or significance is malformed.") from None
    if len(precisions) == 1:
        options = ("--dtype", precisions.pop(), *computing.options)
        computing = Computing(options, computing.cache)
    baseline = content.get("baseline")
    return Plan(tuple(metrics.values()), selected, tests, baseline, computing, tokenizers)


def _differences(results: Sequence[Result], report: Report) -> list[str]:
    """A line for each result that differs from the one computed again."""
    again = {(r.metric, r.system, r.language_pair): r for r in report.results}
    lines = []
    for result in results:
        name = f"{result.metric} of {result.system}, {result.language_pair}"
        computed = again.pop((result.metric, result.system, result.language_pair), None)
        if computed is None:
            lines.append(f"{name}: the rows give no such score")
        else:
            lines += [f"{name}: {problem}" for problem in _compare(result, computed)]
    lines += [f"{m} of {s}, {pair}: the file lacks this score" for m, s, pair in again]
    return lines


def _compare(result: Result, again: Result) -> list[str]:
    """What differs between a result of the file and the one computed again."""
    problems = []
    (name, old), (new_name, new) = map(parse_signature, (result.signature, again.signature))
    if name != new_name:
        problems.append(f"it is signed as {name}, and computed again as {new_name}")
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) == new.get(key) or key in ("parts", "n"):
            continue
        if key in TEXTS:
            problems.append(f"{TEXTS[key]} are not those that it was computed from")
        else:
            problems.append(f"{key} was {old.get(key, 'not said')}, is {new.get(key, 'not said')}")
    if not problems and old.get("parts") != new.get("parts"):
        problems.append("the scores that it is a mean of are signed otherwise")
    if result.segments != again.segments:
        problems.append(f"it has {result.segments} segments, the rows {again.segments}")
    tolerance = _OF_MODELS if "dtype" in new else _TOLERANCE
    if not math.isclose(result.score, again.score, rel_tol=tolerance, abs_tol=tolerance):
        problems.append(f"the score is {result.score!r}, computed again {again.score!r}")
    if result.interferes != again.interferes:
        problems.append(f"interferes is {result.interferes}, and should be {again.interferes}")
    return problems


def _further(content: Mapping[str, Any], report: Report) -> list[str]:
    """Differences of the headline and of the tests of significance."""
    lines = []
    if "headline" in content and content["headline"] != list(report.headline):
        lines.append(f"headline: it is {content['headline']}, and should be {report.headline}")
    if (content.get("significance") or []) != report.more["significance"]:
        lines.append("significance: the tests differ from those computed again")
    return lines


def shown(lines: Sequence[str]) -> list[str]:
    """The first differences, and how many more there are."""
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
