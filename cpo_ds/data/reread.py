"""Reads the rows of a few pairs again, since tokenized pairs are kept without their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.encoder import unmarked
from cpo_ds.data.formats import format_of
from cpo_ds.data.pair_rows import conversations
from cpo_ds.data.pieces import PieceMaker, renderer_of
from cpo_ds.data.prompts import alma_prompt, parse_direction
from cpo_ds.data.rows import RowReport, raw_rows_of
from cpo_ds.data.sameness import is_blank
from cpo_ds.data.sources import RawRow
from cpo_ds.data.tokenize import PairRules
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.settings.data import DataConfig


@dataclass(frozen=True)
class PairTexts:
    """The texts of a pair, and the tokens of its prompt as a model continues it."""

    direction: str  # "" if it is not known
    prompt: str
    tokens: tuple[int, ...]  # of the prompt
    request: str  # the prompt without a chat template around it
    chosen: str
    rejected: tuple[str, ...]
    reference: str | None  # None if the row has none
    target: str  # the English name of the target language, "" if it is not known
    is_chat: bool  # a chat template rendered the prompt


def read_again(
    data: DataConfig, tokenizer: Any, path: str | None, wanted: Sequence[tuple[str, str]]
) -> list[PairTexts]:
    """The texts of the pairs with these origins and directions, in this order.

    `path` is that of the rows; None is `data.path`. Raises `UserError` if a row is not there any
    more.
    """
    reader = _Reader(data, tokenizer)
    origins = {origin for origin, _ in wanted}
    rows: dict[str, RawRow] = {}
    for raw in raw_rows_of(data, path):
        count_work()
        if raw is not None and raw.origin in origins:
            rows[raw.origin] = raw
            if len(rows) == len(origins):
                break
    if lost := sorted(origins - set(rows)):
        raise UserError(
            f"{lost[0]}, a held-out row, is not in the data any more; run the same command again."
        )
    return [reader.texts(rows[origin], direction) for origin, direction in wanted]


class _Reader:
    """Makes texts of raw rows by the `data` section and the tokenizer."""

    def __init__(self, data: DataConfig, tokenizer: Any) -> None:
        maker = PieceMaker(data, tokenizer, PairRules(data.max_prompt_tokens, data.max_tokens))
        self._rows, self._encoder = maker.reader, maker.encoder
        self._render = renderer_of(data, self._encoder)
        self._format, self._is_pairs = format_of(data, self._render), data.format == "pairs"
        self._has_columns = data.format == "alma-r"  # one for each language

    def texts(self, raw: RawRow, direction: str) -> PairTexts:
        """The texts of a row that gave a pair in this direction."""
        of_raw = self._rows.rows([raw], RowReport())
        row = next(row for row in of_raw if row.direction == direction)
        languages, prompt = self._rows.languages, row.prompt
        code = parse_direction(direction)[1] if direction else ""
        # The texts before a chat template rendered them.
        if self._is_pairs and row.is_chat and self._render is not None:
            asked, *answers = conversations(raw)
            request = asked[-1].get("content", "")
            chosen, *others = (str(answer[-1].get("content", "")) for answer in answers)
            rejected = tuple(others)
            prompt = self._render(asked, True)
        else:
            picked = self._format.pick(raw, direction)
            assert not isinstance(picked, str)
            request, chosen, rejected, _ = picked
            if not self._is_pairs:
                request = alma_prompt(request, *parse_direction(direction), languages)
        (tokens,) = self._encoder.prompts([prompt], is_chat=row.is_chat)
        return PairTexts(
            direction, unmarked(prompt), tuple(tokens), request, chosen, rejected,
            self._reference(raw, code), languages.get(code, code), row.is_chat,
        )  # fmt: skip

    def _reference(self, raw: RawRow, target_code: str) -> str | None:
        """The row's reference; in ALMA-R's format, its text in the target language."""
        if self._has_columns:
            texts, name = raw.values.get("translation"), target_code
        else:
            texts, name = raw.values, "reference"
            if texts.get(name) is None:
                texts = raw.values.get("candidates")
        text = texts.get(name) if isinstance(texts, dict) else None
        return text if isinstance(text, str) and not is_blank(text) else None
