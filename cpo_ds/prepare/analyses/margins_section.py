"""The section on margins: how far chosen and rejected are apart, with rows to read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.sameness import same_score
from cpo_ds.prepare.analyses.view import View
from cpo_ds.report.drawings import Histogram, Line, histogram_chart, line_chart
from cpo_ds.report.page import (
    Card,
    Cards,
    Drawing,
    Drawings,
    Part,
    Section,
    Table,
    count,
    decimal,
    decimals_for,
    share,
)
from cpo_ds.report.scale import ticks
from cpo_ds.report.series import Series

ANCHOR, TITLE = "margins", "How far chosen and rejected are apart"
_BINS, _CUTS = 40, 10
_EXAMPLES = 2  # rows of each kind
_LONGEST = 600  # letters of a text


def margins_section(view: View) -> Section:
    """The section: a histogram of margins, the pairs left at each cut, and example rows."""
    rows, margins = _margins(view)
    if not len(margins):
        why = "No row has two translations that score differently, so there are no margins."
        return Section(ANCHOR, TITLE, explanation=(why,))
    decimals = decimals_for(float(margins.std()))
    middle = decimal(float(np.median(margins)), decimals)
    finding = f"Half of {count(len(margins), 'pair')} have a margin of {middle} or more."
    explanation = (
        f"A pair's margin is the mean score by {view.selecting_name} of its chosen translation "
        "minus that of its rejected one. cpo-ds prepare select --min-margin CUT drops pairs with "
        "less. A small margin may be noise of the metric. A large one may mean that a translation "
        "is broken, so that the pair teaches little about good and better: read both kinds.",
    )
    parts: tuple[Part, ...] = (
        Drawings((_histogram(margins), _left_chart(margins))),
        _left_table(margins),
        *_examples(view, rows, margins, decimals),
    )
    human = int(view.choices.is_human.sum())
    notes = [f"Pairs that a person decided have no margin here: {count(human)}."] if human else []
    return Section(ANCHOR, TITLE, (finding,), explanation, parts, tuple(notes))


def _margins(view: View) -> tuple[np.ndarray, np.ndarray]:
    """The rows with a choice by scores, and their margins."""
    choices = view.choices
    rows = np.flatnonzero((choices.reason < 0) & (choices.is_human == 0))
    margins = [
        scores[choices.names[chosen]] - scores[choices.names[rejected]]
        for scores, chosen, rejected in zip(
            view.scored.row_scores(choices.means, rows),
            choices.chosen[rows].tolist(),
            choices.rejected[rows].tolist(),
            strict=True,
        )
    ]
    return rows, np.array(margins, float)


def _axis_end(margins: np.ndarray) -> float:
    """The end of the axis: a few large margins must not press the rest together."""
    return float(np.quantile(margins, 0.99)) or float(margins.max()) or 1.0


def _histogram(margins: np.ndarray) -> Drawing:
    edges = np.linspace(0, _axis_end(margins), _BINS + 1)
    counts = np.histogram(np.minimum(margins, edges[-1]), edges)[0]
    chart = Histogram("margins", 1, edges.tolist(), counts.tolist())
    text = "Histogram of margins; the table of cuts has numbers."
    note = "pairs by their margin; the last bar holds all larger ones"
    return Drawing("Margins", histogram_chart([chart], text), note)


def _left_chart(margins: np.ndarray) -> Drawing:
    cuts = np.linspace(0, _axis_end(margins), 200)
    left = len(margins) - np.searchsorted(np.sort(margins), cuts)
    curve = Series(cuts.tolist(), left.astype(float).tolist())
    none = Series([], [])
    lines = [Line("pairs left", 1, none, curve, none, 1)]
    ends = (0.0, float(cuts[-1])), (0.0, float(len(margins)))
    text = "Pairs left at each smallest margin; the table has numbers."
    chart = line_chart(lines, *ends, text, whole=False)
    return Drawing("Pairs left at each cut", chart, "pairs whose margin is at least the cut")


def _left_table(margins: np.ndarray) -> Table:
    groups = tuple(
        (f"{cut:.6g}", ((count(left), share(left, len(margins))),))
        for cut in ticks(0, _axis_end(margins), _CUTS)
        for left in [sum(margin >= cut or same_score(margin, cut) for margin in margins.tolist())]
    )
    return Table("Pairs left by --min-margin.", ("cut", "pairs left", "share"), groups)


def _examples(view: View, rows: np.ndarray, margins: np.ndarray, decimals: int) -> list[Cards]:
    """Rows with the largest, middle and smallest margins, read again for their texts.

    They are the same in any order of the rows: digests of the texts order equal margins, and no
    line of the file is shown.
    """
    keys = np.array([_key(row) for row in view.scored.rows], np.uint64)[rows]
    order = np.lexsort((keys, -margins)).tolist()
    size = min(_EXAMPLES, len(order))
    middle = (len(order) - size) // 2
    kinds = {
        "Rows with the largest margins.": order[:size],
        "Rows with margins in the middle.": order[middle : middle + size],
        "Rows with the smallest margins.": order[len(order) - size :],
    }
    if len(order) < 3 * size:  # so few rows that the kinds would be the same ones
        kinds = {"All rows, the largest margin first.": order}
    wanted = {int(rows[index]): index for indices in kinds.values() for index in indices}
    cards = {}
    for number, row in enumerate(view.scored.rows):
        if number in wanted:
            index = wanted[number]
            chosen, rejected = (
                view.choices.names[numbers[number]]
                for numbers in (view.choices.chosen, view.choices.rejected)
            )
            texts = [("source", row.source)]
            texts += [
                (f"{word}: {name}", row.translations[name])
                for word, name in (("chosen", chosen), ("rejected", rejected))
            ]
            shown = tuple((label, _cut(text)) for label, text in texts)
            margin = decimal(float(margins[index]), decimals)
            cards[index] = Card(row.language_pair, f"margin {margin}", shown)
    return [
        _cards(caption, [cards[index] for index in indices]) for caption, indices in kinds.items()
    ]


def _key(row: CandidateRow) -> int:
    """A number that tells rows apart by their texts."""
    text = "\0".join((row.language_pair, row.source, *row.translations.values()))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _cards(caption: str, cards: Sequence[Card]) -> Cards:
    return Cards(caption, tuple(cards))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
