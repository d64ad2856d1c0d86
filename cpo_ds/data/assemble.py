"""Puts the pieces of a run's data together: counts and splits them, and writes the file of pairs.

Pieces are read twice: a survey of all rows decides which of them are held out, then the pairs of
each part are written. Between the two, memory holds a few numbers for each row and no texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from cpo_ds.config import Config
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.data.held_out import held_out_indices
from cpo_ds.data.pair_columns import Block, PairsDigest
from cpo_ds.data.pair_file import Contents, PairWriter, Part
from cpo_ds.data.pieces import KEPT, MERGED, SPELLED, UNSHARED, Columns, Piece, PieceMaker
from cpo_ds.data.rows import RowReport, check_rows
from cpo_ds.data.token_report import TokenReport
from cpo_ds.data.tokenize import TOGETHER
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The pieces of one path, read again at each call, and the path as messages name it."""

    pieces: Callable[[], Iterator[Piece]]
    place: str


class _Numbers:
    """A number for each text, in order of their first appearance."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


@dataclass
class _Survey:
    """What is known of all rows of a path: an entry in each array for each row."""

    report: RowReport
    directions: list[str]
    origins: np.ndarray  # a number for each line of a file
    texts: np.ndarray  # digests of the source texts, [rows, 2]
    num_plain: int = 0
    num_looks: int = 0
    first_looks: str = ""  # the origin of the first row that looks rendered
    selected_by: list[str] | None = None  # see `named_metrics`


def assemble(
    sources: Sequence[Source], maker: PieceMaker, config: Config, file: IO[bytes], say: Say
) -> bytes:
    """Writes the file of all pairs; returns its checksum. `say` prints what reading counted.

    `sources` are data.path and, if there is one, data.eval_path. Raises `UserError` for the first
    bad row, or if a part has no pairs, and `OSError`.
    """
    data, lines = config.data, list[str]()

    def tell(*texts: str) -> None:
        lines.extend(texts)
        for text in texts:
            say(text)

    # Held-out pairs are rows of their own or a part of the training rows.
    survey = _survey(sources[0])
    check_rows(survey.report, data)
    tell(*survey.report.lines())
    _check_not_rendered(survey)
    chosen = [(0, np.ones(len(survey.directions), bool))]
    if data.eval_path:
        other = _survey(sources[1])
        check_rows(other.report, data, data.eval_path)
        tell("held out:", *other.report.lines())
        chosen.append((1, np.ones(len(other.directions), bool)))
    elif data.eval_fraction:
        held = _held_out(survey, data.eval_fraction, config.train.seed)
        chosen = [(0, ~held), (0, held)]

    # Write both parts, and after them what the file holds.
    writer = PairWriter(file, with_scores=maker.with_scores)
    names = (_Numbers(), _Numbers())
    parts = [_write_part(writer, sources, which, mask, maker, names) for which, mask in chosen]
    directions, files = (list(numbers.texts) for numbers in names)
    places = [name.partition("\0") for name in files]
    return writer.finish(
        Contents(
            lines,
            parts[0],
            parts[1] if parts[1:] else Part(),
            directions,
            [(int(which), name) for which, _, name in places],
            survey.selected_by,
        )
    )


def _survey(source: Source) -> _Survey:
    report, directions, files = RowReport(), list[str](), _Numbers()
    known: dict[str, str] = {}  # one object for each direction, however many rows have it
    origins, texts = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
    num_plain, looks, first, selected_by = 0, 0, "", None
    for piece in source.pieces():
        count_work()
        if piece.problem is not None:
            raise UserError(piece.problem)
        report.add(piece.report)
        if (columns := piece.columns) is None:
            continue
        directions += [known.setdefault(name, name) for name, _, _ in columns.rows]
        origins.append(
            np.array([(files[file] << 40) + line for _, file, line in columns.rows], np.int64)
        )
        texts.append(columns.texts)
        if piece.selected_by is not None:
            selected_by = list(dict.fromkeys([*(selected_by or []), *piece.selected_by]))
        num_plain += piece.num_plain
        looks += len(piece.looks_rendered)
        if piece.looks_rendered and not first:
            _, file, line = columns.rows[piece.looks_rendered[0]]
            first = f"{file}:{line}"
    return _Survey(
        report,
        directions,
        np.concatenate(origins),
        np.concatenate(texts),
        num_plain,
        looks,
        first,
        selected_by,
    )


def _check_not_rendered(survey: _Survey) -> None:
    """Raises `UserError` if most texts look as if a chat template had rendered them before."""
    if 2 * survey.num_looks > survey.num_plain:
        raise UserError(
            f"{survey.first_looks}: the prompt begins, or the completion ends, with a special "
            f"token, as do {survey.num_looks} of {survey.num_plain} pairs. Set "
            "data.special_tokens: parsed if these are the tokens that they spell, or plain if they "
            "are characters."
        )


def _held_out(survey: _Survey, fraction: float, seed: int) -> np.ndarray:
    """Which rows to hold out. Raises `UserError` if either side would be empty."""
    texts, origins = (
        np.unique(values, axis=0, return_inverse=True)[1].reshape(-1).tolist()
        for values in (survey.texts, survey.origins)
    )
    held = np.zeros(len(survey.directions), bool)
    held[held_out_indices(survey.directions, texts, origins, fraction, seed)] = True
    return held


@dataclass
class _Counts:
    """Columns of a part's rows, from which its report is made."""

    reasons: list[np.ndarray] = field(default_factory=list)  # of each row
    lost: list[np.ndarray] = field(default_factory=list)  # reasons, of each dropped completion
    flags: list[np.ndarray] = field(default_factory=list)  # of each pair
    lengths: list[np.ndarray] = field(default_factory=list)  # of each pair
    completions: list[np.ndarray] = field(default_factory=list)  # of each pair
    starts: list[np.ndarray] = field(default_factory=list)  # of each completion, as all others
    scored: list[np.ndarray] = field(default_factory=list)
    last: list[np.ndarray] = field(default_factory=list)  # last tokens


def _write_part(
    writer: PairWriter,
    sources: Sequence[Source],
    which: int,
    mask: np.ndarray,
    maker: PieceMaker,
    names: tuple[_Numbers, _Numbers],
) -> Part:
    """Writes the pairs of the rows of `mask`. Raises `UserError` if there are none."""
    counts, digest, largest = _Counts(), PairsDigest(), 0
    problems: list[tuple[int, int, int, str]] = []
    begin = position = 0  # in the rows of the source, and in those of the part
    for piece in sources[which].pieces():
        if (columns := piece.columns) is None:
            continue
        rows = mask[begin : begin + len(columns.rows)]
        before = position + np.cumsum(rows) - 1
        problems += [
            (int(before[row]) // TOGETHER, stage, int(before[row]), text)
            for row, stage, text in columns.problems
            if rows[row]
        ]
        begin, position = begin + len(rows), position + int(rows.sum())
        block, flags = _block(columns, rows, names, f"{which}\0", sources[which].place)
        counts.reasons.append(columns.reasons[rows])
        counts.lost.append(columns.lost[rows[columns.lost[:, 0]], 1])
        if not len(block):
            continue
        writer.add(block)
        largest = max(largest, int(block.tokens.max()))
        _count(counts, digest, block, flags)
    # As if all rows had been tokenized in order, `TOGETHER` of them at a time.
    if problems:
        raise UserError(min(problems)[-1])
    report = _report(counts, maker)
    return Part(report.kept, report.lines(), digest.text(), largest)


def _block(
    columns: Columns, rows: np.ndarray, names: tuple[_Numbers, _Numbers], prefix: str, place: str
) -> tuple[Block, np.ndarray]:
    """The pairs of some rows of a piece, and their flags."""
    is_pair = columns.reasons == KEPT
    chosen = rows[is_pair]  # among the piece's pairs
    counts = columns.counts
    origins = [columns.rows[int(row)] for row in np.flatnonzero(rows & is_pair)]
    of_chosen = np.repeat(chosen, columns.completions)
    branches, scores = columns.branches[of_chosen], columns.scores
    block = Block(
        columns.tokens[np.repeat(chosen, counts)],
        _offsets(counts[chosen]),
        num_prefix=columns.prefixes[chosen],
        branch_lengths=branches[:, 0],
        starts=branches[:, 1],
        branch_offsets=_offsets(columns.completions[chosen]),
        direction=np.array([names[0][direction] for direction, _, _ in origins], np.int32),
        file=np.array(
            [names[1][prefix + file.removeprefix(place)] for _, file, _ in origins], np.int32
        ),
        line=np.array([line for _, _, line in origins], np.int64),
        scores=None if scores is None else scores[of_chosen],
    )
    return block, columns.flags[is_pair][chosen]


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _count(counts: _Counts, digest: PairsDigest, block: Block, flags: np.ndarray) -> None:
    """Adds a block to the counts and to the fingerprint of a part."""
    completions = np.diff(block.branch_offsets)
    counts.flags.append(flags)
    counts.lengths.append(np.diff(block.offsets).astype(np.int64))
    counts.completions.append(completions.astype(np.int64))
    counts.starts.append(block.starts.astype(np.int64))
    prefixes = np.repeat(block.num_prefix, completions)
    counts.scored.append((prefixes + block.branch_lengths - block.starts).astype(np.int64))
    # Branches follow each other, each pair's after its prefix.
    ends = np.cumsum(block.branch_lengths) + np.repeat(np.cumsum(block.num_prefix), completions)
    counts.last.append(block.tokens[ends - 1])
    digest.add_block(block)


def _report(counts: _Counts, maker: PieceMaker) -> TokenReport:
    """The report of a part. Raises `UserError` if no pair is left."""
    report, reasons = TokenReport(), np.concatenate(counts.reasons)
    for counter, given in ((report.dropped, reasons), (report.lost, np.concatenate(counts.lost))):
        for reason in _in_order(given[given >= 0]):
            counter[maker.rules.reasons[reason]] = int((given == reason).sum())
    report.kept = int((reasons == KEPT).sum())
    report.check()
    flags, lengths = np.concatenate(counts.flags), np.concatenate(counts.lengths)
    report.merged_boundaries, report.spelled, report.unshared = (
        int((flags & bit > 0).sum()) for bit in (MERGED, SPELLED, UNSHARED)
    )
    _count_unstopped(report, np.concatenate(counts.last), maker.encoder)
    starts, scored, completions = (
        np.concatenate(values) for values in (counts.starts, counts.scored, counts.completions)
    )
    report.set_lengths(starts, scored, completions, lengths)
    return report


def _count_unstopped(report: TokenReport, last: np.ndarray, encoder: TextEncoder) -> None:
    others = last[~np.isin(last, list(encoder.stops))]
    for token in _in_order(others):
        report.unstopped[encoder.name(token)] += int((others == token).sum())


def _in_order(values: np.ndarray) -> list[int]:
    """The different values, in order of their first appearance."""
    different, first = np.unique(values, return_index=True)
    return [int(value) for value in different[np.argsort(first)]]
