"""Lines of `memory_vs_dpo.py` prepared for its page and charts: named, grouped, in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from pages.text import TRAININGS, Line

NAMES = {
    "cpo": "CPO",
    "dpo-precomputed": "DPO, reference precomputed",
    "dpo-adapter": "DPO, reference by adapter off",
    "dpo-reference": "DPO, reference model",
    "liger-cpo": "Liger CPO loss, padded",
    "trl-cpo": "TRL CPOTrainer",
    "trl-dpo": "TRL DPOTrainer",
}
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "reference": "reference model",
    "activations": "activations",
    "head": "head",
    "activations_and_head": "activations, head, all else",
    "libraries": "libraries",
    "other": "everything else",
}

Groups = dict[tuple[int | None, str, str], list[Line]]  # by length, training and method


def grouped(lines: Iterable[Line]) -> Groups:
    """Runs that differ in their repeat alone, all parameters before LoRA, methods as in `NAMES`."""
    groups: Groups = {}
    for line in lines:
        key = (line["sequence_length"], line["training"], line["method"])
        groups.setdefault(key, []).append(line)
    order = [list(TRAININGS), list(NAMES)]
    return dict(
        sorted(
            groups.items(),
            key=lambda item: (item[0][0] or 0, order[0].index(item[0][1]),
                              order[1].index(item[0][2])),
        )
    )  # fmt: skip


def measured(runs: list[Line]) -> list[Line]:
    """The runs that ended well."""
    return [run for run in runs if run.get("pairs_per_second") is not None]


def size_of(runs: Sequence[Line], name: str) -> float:
    """The median of a size over the runs."""
    return median(run[name] for run in runs)


def has_part(run: Line, part: str) -> bool:
    """Whether a run measured more than zero for this part of memory."""
    return bool(run.get(f"{part}_gib"))
