"""All that turns a recipe's data into pairs, made once and sent to the processes that do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from cpo_ds.config import Config
from cpo_ds.data.assemble import Say, Source, assemble
from cpo_ds.data.identity import place_of
from cpo_ds.data.pieces import Piece, PieceMaker, RawPiece, raw_pieces
from cpo_ds.data.rows import raw_rows_of


class Inputs(NamedTuple):
    """All that turns a recipe's data into pairs, made and checked."""

    config: Config
    tokenizer: Any
    model_config: Any
    maker: PieceMaker

    def paths(self) -> list[str | None]:
        """The paths to read; None is data.path."""
        return [None, *filter(None, [self.config.data.eval_path])]

    def raw_pieces(self, path: str | None) -> Iterator[RawPiece]:
        """Raw rows of a path, a piece at a time; an error is in the last of them."""
        return raw_pieces(raw_rows_of(self.config.data, path))

    def places(self) -> list[str]:
        """The paths as messages name them."""
        return [place_of(self.config.data, path) for path in self.paths()]

    def assemble(
        self, pieces: Sequence[Callable[[], Iterator[Piece]]], file: IO[bytes], say: Say
    ) -> bytes:
        """Writes the file of pairs from the pieces of each path; returns its checksum.

        Raises `UserError` for data that cannot be trained with, and `OSError`.
        """
        sources = [Source(*both) for both in zip(pieces, self.places(), strict=True)]
        return assemble(sources, self.maker, self.config, file, say)
