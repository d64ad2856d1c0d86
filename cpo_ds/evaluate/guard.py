"""The guard against interference: a metric that chose training pairs does not judge the training.

A model that learned from pairs which a metric selected scores better by that metric, and by its
relatives, than people would say; so do translations that it chose among samples (Pombal et al.,
arXiv 2503.08327). Such a metric is marked and kept out of the headline, and unrelated ones are
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cpo_ds.evaluate.metric_facts import COMET, LEXICAL, METRICX, facts_of
from cpo_ds.evaluate.results import Result
from cpo_ds.scoring.metrics import Metric

Selected = Mapping[str, Sequence[str]]  # the metrics that selected a system's training pairs

_TO_ADD = {LEXICAL: "chrf", COMET: "kiwi-22", METRICX: "metricx-24"}


def interferes(metric: Metric, selected_by: Sequence[str]) -> bool:
    """Whether a metric is one of those that selected pairs, or a relative of one."""
    family = facts_of(metric.name, metric.model).family
    return family in {facts_of(name).family for name in selected_by}


def mark(results: Sequence[Result], metrics: Sequence[Metric], selected: Selected) -> list[Result]:
    """The results, with those marked that a training's own metrics, or their relatives, gave."""
    by_name = {metric.name: metric for metric in metrics}
    return [
        replace(r, interferes=interferes(by_name[r.metric], selected.get(r.system, ())))
        for r in results
    ]


def headline(metrics: Sequence[Metric], selected: Selected) -> tuple[str, ...]:
    """The metrics that may stand in a headline: those that chose no system's pairs.

    A number of a trained system beside one of another system is an unfair comparison for both, so
    one system is enough to keep a metric out.
    """
    everything = [name for names in selected.values() for name in names]
    return tuple(metric.name for metric in metrics if not interferes(metric, everything))


def advice(metrics: Sequence[Metric], selected: Selected) -> list[str]:
    """Sentences on the metrics that are marked, and on those to set beside them."""
    everything = list(dict.fromkeys(name for names in selected.values() for name in names))
    if not everything:
        return []
    families = {facts_of(name).family for name in everything}
    shown = {facts_of(m.name, m.model).family for m in metrics}
    unrelated = shown - families
    said = [
        f"{system}: {', '.join(names)} selected its training pairs or its translations"
        for system, names in selected.items()
        if names
    ]
    marked = [metric.name for metric in metrics if interferes(metric, everything)]
    if marked:
        said.append(
            f"not in the headline: {', '.join(marked)}, as they selected pairs or translations, "
            "or are relatives of metrics that did"
        )
    if len(marked) == len(metrics):
        said.append("there is no headline: every metric is marked")

    # A neural and a lexical metric of other families.
    if not unrelated - {LEXICAL}:
        neural = next(name for family, name in reversed(_TO_ADD.items()) if family not in families)
        said.append(f"no unrelated neural metric is shown: add one, like --metric {neural}")
    if LEXICAL in families:
        said.append("BLEU and chrF are relatives, so no lexical metric is unrelated to the pairs")
    elif LEXICAL not in shown:
        said.append(f"no lexical metric is shown: add --metric {_TO_ADD[LEXICAL]}")
    return said
