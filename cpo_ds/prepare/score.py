"""`cpo-ds prepare score`: adds scores to rows with candidates.

COMET needs older libraries than training. So if a metric needs COMET, this process is replaced by
one of the Python in `.venv-comet`. For several ranks it is replaced by DeepSpeed's launcher.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ds import __version__
from cpo_ds.data.candidates import CandidateRow, left_out, read_candidates, write_rows
from cpo_ds.errors import UserError
from cpo_ds.ranks.relaunch import as_one_of_ranks, become_ranks, is_rank
from cpo_ds.scoring.metrics import Metric, parse_metrics
from cpo_ds.shipped import is_checkout
from cpo_ds.storage.results import cache_of, hold_cache

if TYPE_CHECKING:
    from cpo_ds.ranks.ranks import Ranks
    from cpo_ds.scoring.run import MetricScores

_COMET_PYTHON = "CPO_DS_COMET_PYTHON"  # path of a Python that has COMET, if not .venv-comet's


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds prepare score`."""
    # Rows and metrics.
    add = parser.add_argument
    add("--input", required=True, type=Path, help="rows with candidates, jsonl")
    add("--output", required=True, type=Path, help="the same rows with scores")
    add(
        "--metric",
        required=True,
        action="append",
        dest="metrics",
        metavar="NAME_OR_CHECKPOINT",
        help="kiwi, xcomet, kiwi-22, comet-22, metricx-24, metricx-24-qe, chrf, bleu, a Hugging "
        "Face name, or a checkpoint file or folder; NAME=CHECKPOINT names it in the output. Repeat "
        "the option for more",
    )

    # How COMET computes, and on which ranks.
    add("--shard", action="store_true", help="split each COMET model over the ranks (ZeRO-3)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="precision of COMET (float32)",
    )
    add(
        "--use-reference",
        action="store_true",
        help="show the reference to metrics that work with and without one, like XCOMET",
    )
    add("--spans", action="store_true", help="keep XCOMET's error spans")
    add("--batch-tokens", type=int, default=4096, help="tokens of a batch, padding included (4096)")
    add("--cache", type=Path, help="folder that keeps finished scores (OUTPUT.cache)")
    add("--ranks", type=int, default=1, help="processes on this host (1)")
    add("--hostfile", help="hosts and slots, as for training, in place of --ranks")


def run(arguments: argparse.Namespace) -> int:
    """Scores the rows and writes them; returns the exit code. Raises `UserError`."""
    metrics = parse_metrics(arguments.metrics)
    if arguments.batch_tokens < 1 or arguments.ranks < 1:
        raise UserError("--batch-tokens and --ranks take numbers above 0.")

    # Unless a launcher started this process as a rank, go on in another process if need be.
    needs_comet = not all(metric.is_lexical or metric.is_metricx for metric in metrics)
    if not is_rank():
        if not arguments.input.is_file():
            raise UserError(f"--input {arguments.input} does not exist.")
        python = comet_python() if needs_comet else sys.executable
        if python != sys.executable or arguments.ranks > 1 or arguments.hostfile:
            become_ranks(python, arguments.argv, arguments.ranks, arguments.hostfile)
    with as_one_of_ranks() as ranks:
        _score(arguments, metrics, ranks)
    return 0


def comet_python() -> str:
    """The Python that has COMET: this one, or that of `.venv-comet` beside the package.

    Raises `UserError` if there is none.
    """
    found = importlib.util.find_spec("comet")
    if found is not None and found.origin:  # a mere folder of that name, here, has no origin
        return sys.executable
    beside = Path(__file__).resolve().parents[2] / ".venv-comet" / "bin" / "python"
    python = Path(os.environ.get(_COMET_PYTHON, beside))
    if not python.is_file():
        make = "bash scripts/setup.sh --comet"
        if not is_checkout():
            make = (
                "python3.12 -m venv comet; comet/bin/pip install unbabel-comet deepspeed "
                f"'setuptools<81'; comet/bin/pip install --no-deps cpo-ds=={__version__}; export "
                f"{_COMET_PYTHON}=$PWD/comet/bin/python"
            )
        raise UserError(
            f"COMET's environment is missing ({python}); make it by: {make}. Or set "
            f"{_COMET_PYTHON} to a Python that has unbabel-comet, deepspeed and cpo-ds."
        )
    return str(python)


def _score(arguments: argparse.Namespace, metrics: list[Metric], ranks: Ranks) -> None:
    """Scores the rows on all ranks; rank 0 writes them."""
    # Imported late: it needs torch.
    from cpo_ds.scoring.run import Scoring, score_metric

    # Every rank reads the rows. Rank 0 locks the cache until the process ends.
    cache = arguments.cache or cache_of(arguments.output)
    rows, skipped = ranks.everywhere(lambda: _read(str(arguments.input)))
    locks: list[Any] = []  # keeps the locked file open
    ranks.on_first(lambda: locks.append(hold_cache(cache)))
    ranks.say(f"read {len(rows)} rows, {sum(len(row.translations) for row in rows)} translations")

    # Score by one metric after the other.
    scoring = Scoring(
        arguments.dtype, arguments.shard, arguments.use_reference, arguments.batch_tokens
    )
    added: list[dict[str, Any]] = [{"scores": {}, "scorers": {}} for _ in rows]
    for metric in metrics:
        scores = score_metric(metric, rows, cache, scoring, ranks)
        skipped += Counter({f"{metric.name}: {k}": n for k, n in scores.left_out.items()})
        if ranks.rank == 0:
            _add(added, metric.name, scores, with_spans=arguments.spans)
    for line in left_out(skipped):
        ranks.say(line)

    # Write the rows with their new fields.
    ranks.on_first(
        lambda: write_rows(
            arguments.output,
            (_merge(row.values, new) for row, new in zip(rows, added, strict=True)),
        )
    )
    ranks.say(f"written to {arguments.output}")


def _read(path: str) -> tuple[list[CandidateRow], Counter[str]]:
    """The rows, and counts of skipped values.

    Raises `UserError` for a bad row, also for one whose scores cannot be added to.
    """
    rows, skipped = read_candidates(path)
    for row in rows:
        for field in ("scores", "scorers", "error_spans"):
            if not isinstance(row.values.get(field) or {}, dict):
                raise UserError(
                    f"{row.where}: field {field} is not an object, so no metric can be added to "
                    "it; correct or remove it."
                )
    return rows, skipped


def _add(added: list[dict[str, Any]], name: str, scores: MetricScores, *, with_spans: bool) -> None:
    """Adds a metric's scores, their record and error spans to the new fields of each row."""
    for new, items in zip(added, scores.items, strict=True):
        results = {candidate: scores.results[item.key] for candidate, item in items.items()}
        new["scores"][name] = {candidate: result[0] for candidate, result in results.items()}
        new["scorers"][name] = scores.record
        if with_spans:
            spans = {candidate: result[1] for candidate, result in results.items()}
            if any(value is not None for value in spans.values()):
                new.setdefault("error_spans", {})[name] = spans


def _merge(values: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row with the new ones. New scores replace old ones of the same metric."""
    return values | {key: (values.get(key) or {}) | value for key, value in new.items()}
