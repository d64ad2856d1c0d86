"""The five formats of preference data.

A format is two functions of a raw row. The first returns the row's translation directions. The
second returns the texts of one direction, or the reason why the row has no pair for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cpo_ds.data.pair_rows import SAME_TEXTS, Texts, pick_pair
from cpo_ds.data.pair_scores import float32_scores
from cpo_ds.data.prompts import RenderChat, parse_direction
from cpo_ds.data.sameness import best_and_worst, distinct
from cpo_ds.data.scorers import lower_is_better
from cpo_ds.data.sources import RawRow
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.settings.data import DataConfig

_ALMA_SCORERS = ("kiwi", "xcomet", "kiwi_xcomet")
MEAN_SPELLINGS = ("kiwi_xcomet", "xcomet_kiwi", "kiwi-xcomet", "xcomet-kiwi")
_NO_VERDICT = "all scores equal"
LEXICAL = ("chrf", "bleu")  # metrics that always compare strings with the reference


class Format(NamedTuple):
    """Two functions that read a raw row; both raise `UserError` for a row with a bad value.

    `directions` returns `[""]` if the row has no direction. `pick` returns the row's texts for a
    direction. If the row has no pair, it returns the reason, a string.
    """

    directions: Callable[[RawRow], list[str]]
    pick: Callable[[RawRow, str], Texts | str]


def format_of(
    data: DataConfig, render_chat: RenderChat | None, *, with_scores: bool = False
) -> Format:
    """The format with the name `data.format`; `with_scores` says to give texts their scores."""
    if data.format == "alma-r":
        scorer = "kiwi_xcomet" if data.scorer in MEAN_SPELLINGS else data.scorer
        return Format(
            _alma_directions,
            lambda raw, direction: _pick_alma(raw, direction, scorer, with_scores=with_scores),
        )
    if data.format == "triplets":
        return Format(
            _language_pair, lambda raw, _: _pick_triplet(raw, data.scorer, with_scores=with_scores)
        )
    if data.format == "x-alma":
        return Format(_x_alma_direction, lambda raw, _: _three_texts(raw, "reject"))
    if data.format == "sample":
        return Format(_language_pair, lambda raw, _: _three_texts(raw, "rejected"))
    required = data.directions is not None
    return Format(
        lambda raw: _pair_direction(raw, required),
        lambda raw, _: pick_pair(raw, render_chat, with_scores=with_scores),
    )


def _three_texts(raw: RawRow, rejected: str) -> Texts:
    """The texts of a row that has them as fields; `rejected` is the name of the third field."""
    return Texts(raw.text("source"), raw.text("chosen"), (raw.text(rejected),))


def _pair_of(
    raw: RawRow,
    source: str,
    text: Mapping[str, str],
    picked: tuple[str, str] | None,
    scores: Mapping[str, float] | None,
) -> Texts | str:
    """The texts named as better and worse, with their scores if there are any."""
    if picked is None:
        return _NO_VERDICT
    better, worse = picked
    both = None if scores is None else float32_scores(raw, (scores[better], scores[worse]))
    return Texts(source, text[better], (text[worse],), both)


# Reading directions.


def _known(raw: RawRow, direction: str, field: str) -> str:
    """The direction itself. Raises `UserError` if it is none."""
    try:
        parse_direction(direction)
    except UserError as error:
        raise raw.error(field, f"has an {error}") from None
    return direction


def _language_pair(raw: RawRow) -> list[str]:
    return [_known(raw, raw.text("language_pair"), "language_pair")]


def _x_alma_direction(raw: RawRow) -> list[str]:
    direction = re.sub(r"\s*(->|_)\s*", "-", raw.text("directions").strip())
    return [_known(raw, direction, "directions")]


def _pair_direction(raw: RawRow, required: bool) -> list[str]:
    for column in ("direction", "language_pair"):
        if raw.values.get(column) is not None:
            return [_known(raw, raw.text(column), column)]
    if required:
        raise raw.error(
            "direction",
            "is missing, and data.directions needs it; add it, or remove data.directions",
        )
    return [""]


def _alma_directions(raw: RawRow) -> list[str]:
    """Both directions of the row's language pair, or the one it requires."""
    pair = raw.text("translation", "language_pair")
    source, target = parse_direction(_known(raw, pair, "translation.language_pair"))
    both = [f"{source}-{target}", f"{target}-{source}"]
    required = raw.get("translation").get("required_directions") or ""
    if not required:
        return both
    if required not in both:
        problem = f"is {required!r}; write {both[0]}, {both[1]}, or nothing for both"
        raise raw.error("translation.required_directions", problem)
    return [required]


# The format of ALMA-R-Preference.


def _pick_alma(raw: RawRow, direction: str, scorer: str, *, with_scores: bool) -> Texts | str:
    """Picks by the human verdict if there is one, else by the scores.

    The field Delta holds the verdict: above 0 gpt4 is better, below 0 alma is better. A row with a
    verdict may have no scores.
    """
    # Read the three translations.
    source_code, target = parse_direction(direction)
    columns = {"ref": target, "gpt4": f"gpt4_{target}", "alma": f"alma_{target}"}
    delta = raw.number_at("translation", "Delta")
    if not delta:
        _check_alma_scorer(raw, target, scorer)
    source = raw.text("translation", source_code)
    text = {name: raw.text("translation", column) for name, column in columns.items()}

    # Pick two of them.
    fields = {name: f"{name}_{target}_{scorer}" for name in text}
    if not delta:
        scores = {name: raw.number_at("translation", field) for name, field in fields.items()}
        picked = best_and_worst(scores)
        return _pair_of(raw, source, text, picked, scores if with_scores else None)
    picked = ("gpt4", "alma") if delta > 0 else ("alma", "gpt4")
    known = raw.mapping("translation")
    if not with_scores or all(known.get(fields[name]) is None for name in picked):
        return _pair_of(raw, source, text, picked, None)
    scores = {name: raw.number_at("translation", fields[name]) for name in picked}
    return _pair_of(raw, source, text, picked, scores)


def _check_alma_scorer(raw: RawRow, target: str, scorer: str) -> None:
    """Raises `UserError` for a score that neither this row nor the published data set has."""
    columns = raw.mapping("translation")
    start = f"ref_{target}_"
    if scorer in _ALMA_SCORERS or start + scorer in columns:
        return
    available = [name.removeprefix(start) for name in columns if name.startswith(start)]
    hint = did_you_mean(scorer, [*available, *_ALMA_SCORERS], least_likeness=0.6)
    raise UserError(
        f"data.scorer: {raw.where} has no score {scorer!r}{hint}; choose one that exists: "
        f"{', '.join(available) or 'none'}."
    )


# Triplets: any number of translations with scores.


def compares_with_reference(scorers: Any, metric: str) -> bool:
    """Whether a metric compares with the reference, according to the row's field `scorers`.

    Such a metric cannot judge the reference, since it would compare the text with itself.
    `cpo-ds prepare score` writes the field.
    """
    record = scorers.get(metric) if isinstance(scorers, dict) else None
    if isinstance(record, dict) and record.get("uses_reference") is not None:
        return bool(record["uses_reference"])
    return metric.lower() in LEXICAL


def _pick_triplet(raw: RawRow, scorer: str, *, with_scores: bool) -> Texts | str:
    # Read the candidates and the names that have a score.
    source, scores = raw.text("source"), raw.mapping("scores")
    metrics = _metrics(raw, scores, scorer)
    # A null candidate is no candidate: parquet gives every row the union of all rows' names.
    candidates = {
        name: raw.checked_text(text, f"candidates.{name}")
        for name, text in raw.mapping("candidates").items()
        if text is not None
    }
    scored = {
        name for metric in metrics for name, score in scores[metric].items() if score is not None
    }

    # Count the reference as a candidate, unless the metrics compare with it.
    if "reference" in scored and "reference" not in candidates:
        if any(compares_with_reference(raw.values.get("scorers"), metric) for metric in metrics):
            scored.remove("reference")
        else:
            candidates = {"reference": raw.text("reference")} | candidates

    # Pick the best and the worst candidate by the mean of the metrics.
    for name in sorted(scored - set(candidates)):
        raise raw.error(
            f"candidates.{name}", "is missing, but it has a score; add the text or remove the score"
        )
    if len(candidates) < 2:
        return "fewer than two candidates"
    signs = {m: -1 if lower_is_better(raw.values.get("scorers"), m) else 1 for m in metrics}
    means = {
        name: sum(signs[m] * raw.number_at("scores", m, name) for m in metrics) / len(metrics)
        for name in candidates
    }
    names = distinct(candidates, candidates)
    if len(names) < 2:
        return SAME_TEXTS
    picked = best_and_worst({name: means[name] for name in names})
    return _pair_of(raw, source, candidates, picked, means if with_scores else None)


def _metrics(raw: RawRow, scores: dict[str, Any], scorer: str) -> list[str]:
    """The metrics to average: `scorer` itself, or its parts if it is a sum or a known mean."""
    metrics = [scorer]
    if scores.get(scorer) is None and scorer in MEAN_SPELLINGS:
        metrics = ["kiwi", "xcomet"]
    elif scores.get(scorer) is None:
        metrics = [part.strip() for part in scorer.split("+")]
    for metric in metrics:
        if scores.get(metric) is None:
            available = [name for name, values in scores.items() if values is not None]
            problem = (
                f"is missing{did_you_mean(metric, available, least_likeness=0.6)}; data.scorer is "
                f"{scorer!r}, and the row's scores are: {', '.join(available)}"
            )
            raise raw.error(f"scores.{metric}", problem)
        raw.mapping("scores", metric)
    return metrics
