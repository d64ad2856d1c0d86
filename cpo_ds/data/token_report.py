"""Counts of tokenization: dropped pairs, unusual ones, and lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from cpo_ds.errors import UserError


@dataclass
class TokenReport:
    """Counts of tokenization, and lengths in tokens of the parts of the pairs."""

    kept: int = 0
    comparisons: int = 0  # rejected completions of the kept pairs
    dropped: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # rejected completions of kept pairs
    merged_boundaries: int = 0
    unshared: int = 0
    spelled: int = 0  # rows whose texts spell special tokens
    unstopped: Counter[str] = field(default_factory=Counter)  # by the token that ends them
    lengths: dict[str, np.ndarray] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `UserError` if no pair is left."""
        if not self.kept:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items())
            raise UserError(
                f"no pairs are left after tokenization ({reasons}); raise data.max_prompt_tokens "
                "or data.max_tokens, or check the data."
            )

    def set_lengths(
        self, starts: np.ndarray, scored: np.ndarray, completions: np.ndarray, unique: np.ndarray
    ) -> None:
        """Sets the lengths of the parts of the kept pairs.

        `starts` are the first scored tokens and `scored` the numbers of scored tokens of all
        completions, those of a pair in a row, chosen first. `completions` are the numbers of
        completions and `unique` the tokens of each pair.
        """
        chosen = np.cumsum([0, *completions[:-1]])
        self.comparisons = len(scored) - len(completions)
        self.lengths = {
            "prompt": np.minimum.reduceat(starts, chosen),
            "chosen": scored[chosen],
            "rejected": np.delete(scored, chosen),
            "unique in a pair": unique,
        }

    def lines(self) -> list[str]:
        """A summary to print, a line each."""
        lines = [f"  dropped: {count} ({reason})" for reason, count in self.dropped.items()]
        lines += [
            f"  rejected completions dropped from pairs: {count} ({reason})"
            for reason, count in self.lost.items()
        ]
        if self.comparisons > self.kept:
            lines.append(f"  rejected completions of these pairs: {self.comparisons}")
        if self.merged_boundaries:
            lines.append(
                f"  prompt tokenized differently before its completion: {self.merged_boundaries}"
            )
        if self.unshared:
            lines.append(
                "  without a shared prefix, since the model's rotary positions differ by length: "
                f"{self.unshared}"
            )
        if self.spelled:
            lines.append(f"  text of a special token, taken as characters: {self.spelled} rows")
        for token, count in self.unstopped.items():
            lines.append(
                f"  completions end with {token}, at which the model's generation does not stop "
                f"(eos_token_id of its generation_config.json): {count}"
            )
        for name, values in self.lengths.items():
            p50, p95 = np.percentile(values, [50, 95])
            lines.append(
                f"  tokens, {name:<17} mean {values.mean():6.1f}   p50 {p50:4.0f}"
                f"   p95 {p95:4.0f}   max {values.max():4d}"
            )
        return lines
