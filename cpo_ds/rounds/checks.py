"""Checks all that the stages will need before the first of them starts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.config import Config
from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import check_names, with_names
from cpo_ds.errors import UserError
from cpo_ds.evaluate.guard import interferes
from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.prepare.score import comet_python
from cpo_ds.rounds.layout import SAMPLES, Layout
from cpo_ds.rounds.recipes import round_recipes
from cpo_ds.rounds.settings import RoundsSettings, TextSettings
from cpo_ds.scoring.metrics import Metric, parse_metrics
from cpo_ds.storage.hub_names import check_folder_or_name
from cpo_ds.translate.inputs import read_input
from cpo_ds.translate.model_choice import ModelChoice, choose_model
from cpo_ds.translate.vllm_model import check_vllm

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """All that the stages are planned from, read and checked."""

    settings: RoundsSettings
    layout: Layout
    policy: ModelChoice
    recipes: tuple[Config, ...]  # of round 1, 2, ...
    sources: tuple[Row, ...]
    watched: tuple[Row, ...]  # language pair, source and perhaps reference
    selecting: tuple[Metric, ...]
    watching: tuple[Metric, ...]
    deciding: tuple[Metric, ...]  # those of `watching` that are no relatives of `selecting`
    warnings: tuple[str, ...]

    @property
    def shown(self) -> tuple[Metric, ...]:
        """The metrics of an evaluation: those that watch, and those that select if they can."""
        has_references = all("reference" in row for row in self.watched)
        beside = (m for m in self.selecting if has_references or not m.is_lexical)
        return (*self.watching, *beside)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the inputs hold, as digests by name; those of texts and of the recipe."""
        recipe = self.recipes[0].model_dump(mode="json")
        texts = {"sources": list(self.sources), "watch": list(self.watched)}
        return {name: _digest(value) for name, value in (texts | {"recipe": recipe}).items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def check(settings: RoundsSettings) -> Inputs:
    """Reads texts, recipe and metrics, and checks them together.

    Raises `UserError`, with the setting, for anything that a stage would fail on and that can be
    known beforehand.
    """
    layout = Layout(Path(settings.output_dir))
    selecting = _metrics("select.metrics", settings.select.metrics)
    watching = _metrics("watch.metrics", settings.watch.metrics)
    deciding, warnings = guard(selecting, watching)

    # The policy, and the recipe of each round.
    check_folder_or_name("model", settings.policy.model)
    if settings.policy.adapter:
        check_folder_or_name("LoRA adapter", settings.policy.adapter)
    policy = choose_model(settings.policy.model, settings.policy.adapter)
    recipes = round_recipes(settings, policy, layout)

    # The texts.
    sources = _read("sources", settings.sources)
    watched = _read("watch", settings.watch)
    _check_rows("sources", sources, selecting, settings)
    _check_rows("watch", watched, watching, settings)
    _check_candidates(sources, settings.sample.num)
    if not all(row.reference for row in watched):
        warnings += [
            f"watch: rows without a reference, so the selecting metric {metric.name} is not shown"
            for metric in selecting
            if metric.is_lexical
        ]
    known = {row.source for row in sources}
    if shared := sum(row.source in known for row in watched):
        warnings.append(
            f"{shared} of {len(watched)} watched sources are among the sources of the rounds: "
            "scores of texts that were trained on say little; take others"
        )
    _check_environment(settings, policy, [*selecting, *watching])
    return Inputs(
        settings=settings,
        layout=layout,
        policy=policy,
        recipes=tuple(recipes),
        sources=tuple(row.values for row in sources),
        watched=tuple(_text_of(row) for row in watched),
        selecting=selecting,
        watching=watching,
        deciding=deciding,
        warnings=tuple(warnings),
    )


def guard(
    selecting: Sequence[Metric], watching: Sequence[Metric]
) -> tuple[tuple[Metric, ...], list[str]]:
    """The watched metrics that may decide, and warnings on those that may not.

    A metric that selects pairs may not be watched, and a relative of one is shown but decides
    nothing. Raises `UserError` for the former, and if no metric is left to decide.
    """
    models = {_model(metric): metric.name for metric in selecting}
    names = {metric.name for metric in selecting}
    for metric in watching:
        if _model(metric) in models:
            raise UserError(
                f"watch.metrics: {metric.name} selects the pairs too (select.metrics "
                f"{models[_model(metric)]}), so it would praise the policy for pleasing it; watch "
                "another metric, of another family."
            )
        if metric.name in names:
            raise UserError(
                f"watch.metrics and select.metrics both name a metric {metric.name}; rename one as "
                "NAME=CHECKPOINT."
            )
    chose = [metric.model for metric in selecting]
    related = [metric for metric in watching if interferes(metric, chose)]
    deciding = tuple(metric for metric in watching if metric not in related)
    if not deciding:
        raise UserError(
            f"watch.metrics: all of {', '.join(m.name for m in watching)} are relatives of the "
            f"selecting metrics {', '.join(m.name for m in selecting)}, so none can say what was "
            "gained; add one of another family, like chrf, metricx-24 or comet-22."
        )
    warnings = [
        f"watch.metrics: {metric.name} is a relative of a selecting metric (family "
        f"{facts_of(metric.name, metric.model).family}); it is shown, and decides nothing"
        for metric in related
    ]
    return deciding, warnings


def _model(metric: Metric) -> str:
    """The identity of a metric: its model, for a local one the whole path."""
    path = Path(metric.location).expanduser()
    return str(path.resolve()) if path.exists() else metric.model.lower()


def _metrics(setting: str, names: Sequence[str]) -> tuple[Metric, ...]:
    try:
        metrics = tuple(parse_metrics(list(names)))
    except UserError as error:
        raise UserError(f"{setting}: {str(error).removeprefix('--metric ')}") from None
    for metric in metrics:
        if "+" in metric.name:
            raise UserError(f"{setting}: name {metric.name} without a plus, as NAME={metric.model}")
    return metrics


def _read(section: str, texts: TextSettings) -> tuple[CandidateRow, ...]:
    """The rows of a section's texts. Raises `UserError`, with the section's name."""
    try:
        return read_input(
            path=Path(texts.path) if texts.path else None,
            text=None,
            test_set=texts.test_set,
            pair=texts.language_pair,
            references=Path(texts.references) if texts.references else None,
        ).rows
    except UserError as error:
        text = str(error).replace("--language-pair", f"{section}.language_pair")
        raise UserError(f"{section}: {text.replace('--references', 'references')}") from None


def _check_rows(
    section: str, rows: Sequence[CandidateRow], metrics: Sequence[Metric], settings: RoundsSettings
) -> None:
    """Raises `UserError` for a row without a reference that a metric needs, or without names."""
    languages = with_names(settings.policy.languages, "policy.languages")
    lexical = next((metric for metric in metrics if metric.is_lexical), None)
    for row in rows:
        check_names(row.language_pair, languages, row.where, "policy.languages: {{{}: NAME}}")
        if lexical and row.reference is None:
            raise UserError(
                f"{section}: {row.where} has no reference, which the metric {lexical.name} needs; "
                "add references, or take a metric that needs none, like kiwi-22."
            )
    wanted = settings.select.directions or []
    known = Counter(row.language_pair for row in rows)
    if section == "sources" and (missing := [d for d in wanted if d not in known]):
        raise UserError(
            f"select.directions: {missing[0]} is not in the sources, which have "
            f"{', '.join(sorted(known))}."
        )


def _check_candidates(rows: Sequence[CandidateRow], samples: int) -> None:
    """Raises `UserError` if a row has a candidate with the name of a sample."""
    taken = {f"{SAMPLES}-{number + 1}" for number in range(samples)}
    for row in rows:
        if clash := sorted(taken & set(row.candidates)):
            raise UserError(
                f"sources: {row.where} has a candidate {clash[0]}, the name of a round's sample; "
                "rename it."
            )


def _check_environment(
    settings: RoundsSettings, policy: ModelChoice, metrics: Sequence[Metric]
) -> None:
    """Raises `UserError` for programs and files that are missing."""
    if settings.translate.vllm:
        try:
            check_vllm(policy.adapter, policy.quantization, {})
        except UserError as error:
            raise UserError(str(error).replace("--vllm", "translate.vllm")) from None
    if any(not metric.is_lexical and not metric.is_metricx for metric in metrics):
        comet_python()
    for name in ("translate", "score", "train"):
        hostfile = getattr(settings, name).hostfile
        if hostfile and not Path(hostfile).is_file():
            raise UserError(f"{name}.hostfile: {hostfile} does not exist; correct it.")


def _text_of(row: CandidateRow) -> Row:
    """A watched row without translations that it may have."""
    values = {"language_pair": row.language_pair, "source": row.source}
    return values | ({"reference": row.reference} if row.reference else {})
