"""The section on held-out pairs: how their margins moved, and those that moved most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cpo_ds.report.drawings import histogram_chart
from cpo_ds.report.page import Card, Cards, Drawing, Drawings, Part, Section, decimal
from cpo_ds.report.pair_lengths import histogram
from cpo_ds.report.pair_texts import Key, PairTexts, find_texts
from cpo_ds.report.run_folder import RunFolder
from cpo_ds.report.series import quantile

_SHOWN, _SHOWN_OF_SEVERAL = 4, 2  # pairs of a run that gained most, and as many that lost most
_LONGEST = 700  # letters of a text
_MOST_REJECTED = 8  # texts of a card


class Move(NamedTuple):
    """A pair's margin at the first and at the latest evaluation."""

    key: Key
    before: float
    after: float

    @property
    def change(self) -> float:
        """How much the margin grew."""
        return self.after - self.before


def pairs_section(runs: Sequence[RunFolder]) -> Section | None:
    """The section; None if no run kept the margins of its pairs."""
    parts: list[Part] = []
    notes: list[str] = []
    for run in runs:
        moves, steps = moves_of(run)
        if moves:
            own, reason = _parts(run, moves, steps, _SHOWN_OF_SEVERAL if runs[1:] else _SHOWN)
            parts += own
            if reason:
                notes.append(f"Texts of {run.name} are not shown: {reason}.")
    if not parts:
        return None
    explanation = (
        "A margin above zero means that the chosen translation has the higher reward. A pair "
        "that lost margin is worth reading: perhaps its chosen translation is not the better one.",
    )
    return Section(
        "pairs", "Pairs that gained and lost most", (), explanation, tuple(parts), tuple(notes)
    )


def moves_of(run: RunFolder) -> tuple[list[Move], tuple[int, int]]:
    """The pairs with a margin at both evaluations, the largest gain first, and both steps."""
    steps = sorted({margin.step for margin in run.margins})
    if len(steps) < 2:
        return [], (0, 0)
    first, latest = (
        {(m.origin, m.direction): m.reward_margin for m in run.margins if m.step == step}
        for step in (steps[0], steps[-1])
    )
    moves = [Move(key, first[key], after) for key, after in latest.items() if key in first]
    return sorted(moves, key=lambda move: -move.change), (steps[0], steps[-1])


def _parts(
    run: RunFolder, moves: list[Move], steps: tuple[int, int], shown: int
) -> tuple[list[Part], str]:
    """A histogram of margins and the cards of a run, and why texts are missing."""
    gained = [move for move in moves[:shown] if move.change > 0]
    lost = [move for move in moves[::-1][:shown] if move.change < 0]
    wanted = {move.key for move in (*gained, *lost)}
    texts, reason = find_texts(run.config.get("data"), wanted)
    grown = sum(move.change > 0 for move in moves)
    parts: list[Part] = [_histogram(run, moves, steps, grown)]
    for word, chosen in (("gained", gained), ("lost", lost)):
        if chosen:
            cards = tuple(_card(move, texts.get(move.key)) for move in chosen)
            caption = f"{run.name}: pairs that {word} most from step {steps[0]} to {steps[1]}."
            parts.append(Cards(caption, cards))
    return parts, reason


def _histogram(run: RunFolder, moves: list[Move], steps: tuple[int, int], grown: int) -> Drawings:
    """Margins of all pairs before and after."""
    columns = [[move.before for move in moves], [move.after for move in moves]]
    together = columns[0] + columns[1]
    # A few far pairs must not press the rest into one bar; they count in the outermost bars.
    ends = quantile(together, 0.005), quantile(together, 0.995)
    ends = (
        (min(ends[0], 0.0), max(ends[1], 0.0)) if ends[0] < ends[1] else (ends[0] - 1, ends[0] + 1)
    )
    charts = [
        histogram(f"step {step}", colour, values, ends)
        for step, colour, values in zip(steps, (8, 1), columns, strict=True)
    ]
    text = f"Reward margins of {len(moves)} pairs at steps {steps[0]} and {steps[1]}."
    drawing = Drawing(
        f"{run.name}: reward margins of held-out pairs",
        histogram_chart(charts, text),
        f"{grown:,} of {len(moves):,} pairs gained margin; pairs beyond either end are in its bar",
    )
    return Drawings((drawing,), legend=((8, f"step {steps[0]}"), (1, f"step {steps[1]}")))


def _card(move: Move, texts: PairTexts | None) -> Card:
    origin, direction = move.key
    shown: list[tuple[str, str]] = []
    if texts:
        source, chosen, *rejected = texts
        shown = [("source", cut(source)), ("chosen", cut(chosen))]
        shown += labelled("rejected", rejected)
    margins = f"{decimal(move.before, 2)} → {decimal(move.after, 2)}"
    remark = f"margin {margins} ({decimal(move.change, 2, sign=True)})"
    return Card(direction or "pair", remark, (*shown, ("where", origin)))


def labelled(label: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Texts with a label each, which counts them if there are several; some of very many."""
    count = len(texts)
    shown = [
        (f"{label}, {number} of {count}" if count > 1 else label, cut(text))
        for number, text in enumerate(texts[:_MOST_REJECTED], 1)
    ]
    if count > _MOST_REJECTED:
        shown.append((label, f"and {count - _MOST_REJECTED} more"))
    return shown


def cut(text: str) -> str:
    """A text of at most so many letters; a longer one ends in an ellipsis."""
    text = text.strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
