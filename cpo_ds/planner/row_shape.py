"""The tokens that rows of a data set have: of a prompt, and of chosen and rejected translations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpo_ds.errors import UserError

if TYPE_CHECKING:
    from cpo_ds.config import Config

# Mean tokens of 4,000 WMT22 pairs.
PROMPT_TOKENS, TRANSLATION_TOKENS = 55, 45
LOOKED_AT = 1000  # rows


@dataclass(frozen=True)
class RowShape:
    """A row of typical lengths with a mean number of rejected translations, which share its prompt.

    `source` is how that number is known, in words; "" if no row can have more than one.
    """

    rejected: float = 1.0
    source: str = ""

    @property
    def scored_tokens(self) -> float:
        """Tokens of all translations."""
        return TRANSLATION_TOKENS * (1 + self.rejected)

    @property
    def tokens(self) -> float:
        """Unique tokens of the row."""
        return PROMPT_TOKENS + self.scored_tokens

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of a whole row of about this size: the prefix, then each translation."""
        return PROMPT_TOKENS, *(TRANSLATION_TOKENS,) * (1 + max(1, round(self.rejected)))


PAIR = RowShape()


def shape_of_rows(config: Config, rejected: int | None = None) -> RowShape:
    """The rows of a recipe, as given by `rejected`, else by the first rows of its data.

    Only the format `pairs` has rows with several rejected translations. Its data is looked at if it
    is on this machine; nothing is downloaded. If it cannot be read, rows are taken for pairs, and
    `source` says so: the run itself will tell what is wrong with it.
    """
    if rejected is not None:
        return RowShape(rejected, "as --rejected says")
    if config.data.format != "pairs":
        return PAIR
    mean = _mean_of_first(config)
    if mean is None:
        return RowShape(1.0, "as no rows are here to look at; --rejected gives another number")
    return RowShape(mean, f"the mean of the first rows of {config.data.path}")


def _mean_of_first(config: Config) -> float | None:
    """The mean number of rejected translations of the first rows; None if they cannot be read."""
    # Imported late: readers of files take time that no other plan needs.
    from cpo_ds.data.pair_rows import rejected_by_field
    from cpo_ds.data.rows import raw_rows_of
    from cpo_ds.data.sources import local_path

    if config.data.path is None or local_path(config.data.path) is None:
        return None
    try:
        rows = itertools.islice(raw_rows_of(config.data), LOOKED_AT)
        counts = [len(rejected_by_field(raw)) for raw in rows if raw is not None]
    except (UserError, OSError):
        return None
    counts = [count for count in counts if count]  # a row with an empty list is dropped
    return sum(counts) / len(counts) if counts else None
