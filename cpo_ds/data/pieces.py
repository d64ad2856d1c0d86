"""Raw rows to tokens, a piece at a time, so that several processes can share the work.

A piece is a few thousand raw rows. Each is read, checked, rendered and tokenized by itself, and its
outcome says what became of every row. Errors are a part of the outcome: the first one in the order
of the rows counts, whichever process met it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from cpo_ds.data.chat import chat_renderer
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.data.held_out import seen_source
from cpo_ds.data.prompts import RenderChat
from cpo_ds.data.rows import RowReader, RowReport
from cpo_ds.data.selected import named_metrics
from cpo_ds.data.sources import RawRow
from cpo_ds.data.tokenize import Outcome, PairRules, outcomes, problem_of
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow, TokenizedPair
from cpo_ds.settings.data import DataConfig

ROWS = 2048  # raw rows in a piece
KEPT, UNTOKENIZED = -1, -2  # instead of the index of a reason to drop a row
MERGED, SPELLED, UNSHARED = 1, 2, 4  # bits of `flags`


class RawPiece(NamedTuple):
    """Raw rows as they were read, and the error that ended the reading after them, if any."""

    rows: list[RawRow | None]
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """What tokenization made of rows; an entry for each row, or for each row that became a pair."""

    rows: Sequence[tuple[str, str, int]]  # direction, file and line of each row
    reasons: np.ndarray  # int8: in `PairRules.reasons`, KEPT or UNTOKENIZED, of each row
    flags: np.ndarray  # uint8: bits, of each row
    texts: np.ndarray  # uint64: a digest of each row's source text, [rows, 2]
    problems: Sequence[tuple[int, int, str]]  # row, stage (see `problem_of`) and error
    counts: np.ndarray  # int32: tokens of each pair
    prefixes: np.ndarray  # int32: tokens of each pair's prefix
    completions: np.ndarray  # int32: of each pair
    branches: np.ndarray  # int32: length and start of each completion's branch, [completions, 2]
    lost: np.ndarray  # int32: row and reason of each dropped completion of a kept pair, [lost, 2]
    tokens: np.ndarray  # int32: of all pairs
    scores: np.ndarray | None  # float32: of each completion; None if they were not asked for


@dataclass(frozen=True)
class Piece:
    """What became of the rows of a piece."""

    report: RowReport
    problem: str | None = None  # the error of a row, or of reading
    columns: Columns | None = None  # of the rows that reading kept; None if there are none
    num_plain: int = 0  # rows that no template rendered
    looks_rendered: Sequence[int] = ()  # those among them that look as if one had
    selected_by: Sequence[str] | None = None  # see `named_metrics`


def raw_pieces(rows: Iterator[RawRow | None], size: int = ROWS) -> Iterator[RawPiece]:
    """Cuts raw rows into pieces. The last one holds the error that ended the reading, if any."""
    part: list[RawRow | None] = []
    try:
        while part := list(_first(rows, size, part)):
            yield RawPiece(part)
            part = []
    except UserError as error:
        yield RawPiece(part, str(error))


def _first(
    rows: Iterator[RawRow | None], size: int, part: list[RawRow | None]
) -> list[RawRow | None]:
    """The next rows, which are in `part` even if reading fails."""
    for row in islice(rows, size):
        part.append(row)
    return part


def renderer_of(data: DataConfig, encoder: TextEncoder) -> RenderChat | None:
    """The chat template of the encoder's tokenizer by the settings; None if it has none."""
    arguments, day = data.chat_template_kwargs, data.template_date
    return chat_renderer(encoder.tokenizer, encoder.plain, arguments, day)


class PieceMaker:
    """Reads and tokenizes pieces by the settings of a run and its tokenizer.

    `stops` are the tokens at which the model ends an answer. `with_scores` says that the objective
    needs the completions' scores.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Any,
        rules: PairRules,
        stops: Collection[int] = (),
        with_scores: bool = False,
    ) -> None:
        """Raises `UserError` for settings that do not fit the tokenizer."""
        self.data, self.rules, self.with_scores = data, rules, with_scores
        self.encoder = TextEncoder(tokenizer, data.add_bos, stops)
        render_chat = renderer_of(data, self.encoder)
        marks = self.encoder.parsed if data.special_tokens == "parsed" else self.encoder.plain
        self.reader = RowReader(data, render_chat, marks, with_scores=with_scores)

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, which make their own functions of the same settings."""
        encoder = self.encoder
        arguments = (self.data, encoder.tokenizer, self.rules, encoder.stops, self.with_scores)
        return PieceMaker, arguments

    def check(self, raw: RawPiece) -> None:
        """Reads a piece without tokenizing it. Raises `UserError` for its first bad row."""
        for _ in self.reader.rows(raw.rows, RowReport()):
            pass

    def make(self, raw: RawPiece) -> Piece:
        """The outcome of a piece."""
        report = RowReport()
        try:
            rows = list(self.reader.rows(raw.rows, report))
        except UserError as error:
            return Piece(report, str(error))
        if raw.problem is not None or not rows:
            return Piece(report, raw.problem)
        made, problems = self._tokenize(rows)
        plain = [index for index, row in enumerate(rows) if not row.is_chat]
        looks = self._looking_rendered(rows, plain)
        pairs = [outcome.pair for outcome in made if outcome.pair is not None]
        named = named_metrics(self.data, [row.values for row in raw.rows if row])
        columns = Columns(
            rows=[(row.direction, *_file_and_line(row.origin)) for row in rows],
            reasons=np.array([_reason(outcome) for outcome in made], np.int8),
            flags=np.array([_flags(outcome) for outcome in made], np.uint8),
            texts=_digests(seen_source(row, self.reader.languages) for row in rows),
            problems=problems,
            counts=np.array([len(pair.tokens) for pair in pairs], np.int32),
            prefixes=np.array([pair.num_prefix for pair in pairs], np.int32),
            completions=np.array([len(pair.starts) for pair in pairs], np.int32),
            branches=_two_columns(
                branch
                for pair in pairs
                for branch in zip(pair.branch_lengths, pair.starts, strict=True)
            ),
            lost=_two_columns(
                (row, reason) for row, outcome in enumerate(made) for reason in outcome.lost
            ),
            tokens=np.concatenate([np.empty(0, np.int32), *(pair.tokens for pair in pairs)]),
            scores=_scores(pairs) if self.with_scores else None,
        )
        return Piece(report, None, columns, len(plain), looks, named)

    def _tokenize(
        self, rows: list[PreferenceRow]
    ) -> tuple[list[Outcome], list[tuple[int, int, str]]]:
        """The outcome of each row, and the errors: row, stage (see `problem_of`) and text."""
        try:
            return list(outcomes(rows, self.encoder, self.rules)), []
        except UserError:
            of_rows = [problem_of(row, self.encoder) for row in rows]
            problems = [(index, *of_row) for index, of_row in enumerate(of_rows) if of_row]
            return [Outcome(None, UNTOKENIZED)] * len(rows), problems

    def _looking_rendered(self, rows: list[PreferenceRow], plain: list[int]) -> list[int]:
        """The rows that look as if a template had rendered them, if the settings do not say it."""
        if self.data.format != "pairs" or self.data.special_tokens is not None:
            return []
        looks = self.encoder.looks_rendered
        return [index for index in plain if looks(rows[index].prompt, rows[index].chosen)]


def _scores(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """The scores of all completions; NaN for those of a row without any, which is an error."""
    known = [pair.scores or (np.nan,) * len(pair.starts) for pair in pairs]
    return np.array([score for scores in known for score in scores], np.float32)


def _two_columns(rows: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.array(list(rows), np.int32).reshape(-1, 2)


def _reason(outcome: Outcome) -> int:
    return KEPT if outcome.reason is None else outcome.reason


def _flags(outcome: Outcome) -> int:
    return MERGED * outcome.merged + SPELLED * outcome.spelled + UNSHARED * outcome.unshared


def _file_and_line(origin: str) -> tuple[str, int]:
    file, _, line = origin.rpartition(":")
    return file, int(line)


def _digests(texts: Iterable[str]) -> np.ndarray:
    """A digest of 128 bits of each text, [texts, 2]."""
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
