"""The section with translations that runs made of the same held-out sources while they trained."""

from __future__ import annotations

from collections.abc import Sequence

from cpo_ds.data.prompts import source_of
from cpo_ds.report.page import Card, Cards, Section
from cpo_ds.report.pairs_section import cut, labelled
from cpo_ds.report.run_folder import RunFolder
from cpo_ds.storage.metrics_file import Line

_SHOWN = 8  # sources of a run


def samples_section(runs: Sequence[RunFolder]) -> Section | None:
    """The section; None if no run translated held-out sources."""
    parts = tuple(
        Cards(f"{run.name}: translations at the first and at the latest evaluation.", cards)
        for run in runs
        if (cards := _cards(run))
    )
    if not parts:
        return None
    explanation = (
        "Greedy translations of a few held-out sources, to read rather than to compare with "
        "published ones.",
    )
    return Section("samples", "Translations while training", (), explanation, parts)


def _cards(run: RunFolder) -> tuple[Card, ...]:
    by_source: dict[tuple[str, str], list[Line]] = {}
    for sample in run.samples:
        by_source.setdefault((sample["language_pair"], sample["prompt"]), []).append(sample)
    return tuple(_card(*key, samples) for key, samples in list(by_source.items())[:_SHOWN])


def _card(direction: str, prompt: str, samples: list[Line]) -> Card:
    samples = sorted(samples, key=lambda sample: sample["step"])
    first, last = samples[0], samples[-1]
    texts = [("source", cut(source_of(prompt, direction) or prompt))]
    texts += [
        (_label(sample), cut(sample["translation"]) or "(nothing)")
        for sample in ([first, last] if last["step"] > first["step"] else [last])
    ]
    for key in ("reference", "chosen", "rejected"):
        values = last[key] if isinstance(last.get(key), list) else [last.get(key)]
        texts += labelled(f"{key} in the data", [text for text in values if isinstance(text, str)])
    return Card(direction or "source", "", tuple(texts))


def _label(sample: Line) -> str:
    """The step of a translation, and whether it did not come to its end."""
    is_cut = sample.get("is_whole") is False
    return f"step {sample['step']:,}{', cut at the limit of tokens' * is_cut}"
