"""Row -> `TokenizedPair`: which tokens a pair shares, where its branches begin, what is scored.

Tokens are those of TRL's CPOTrainer: prompt + completion is tokenized as one text, the completion
begins where the prompt's own tokens end (earlier where a merge at the boundary changed the last
of them), the beginning-of-sequence token is put first and the end-of-sequence token last
unless they are there already. Nothing is ever cut: what is too long is dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.schema import PreferenceRow, TokenizedPair

Sharing = Literal["common", "prompt", "none"]
Sequence_ = tuple[list[int], int]  # tokens of prompt + completion, index of the first scored one


@dataclass
class TokenReport:
    """What tokenization kept and dropped, and how long things are."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    merged_boundaries: int = 0
    lengths: dict[str, np.ndarray] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A summary to print, a line each."""
        lines = [f"  dropped: {count} ({reason})" for reason, count in self.dropped.items()]
        if self.merged_boundaries:
            lines.append(
                f"  prompt tokenized differently before its completion: {self.merged_boundaries}"
            )
        for name, values in self.lengths.items():
            p50, p95 = np.percentile(values, [50, 95])
            lines.append(
                f"  tokens, {name:<17} mean {values.mean():6.1f}   p50 {p50:4.0f}"
                f"   p95 {p95:4.0f}   max {values.max():4d}"
            )
        return lines


def tokenize_rows(
    rows: Sequence[PreferenceRow],
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
    sharing: Sharing = "common",
) -> tuple[list[TokenizedPair], TokenReport]:
    """Tokenizes rows, in order; drops what is too long or the same in tokens, and says so.

    `max_tokens` bounds prompt + one completion, special tokens included. Raises `UserError` where
    the tokenizer has no end-of-sequence token or nothing is left.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so a model could not learn where a "
            "translation ends; set eos_token in its tokenizer_config.json."
        )
    report = TokenReport()
    pairs = []
    for row, chosen, rejected, merged in _sequences(rows, tokenizer):
        prompt_tokens = max(chosen[1], rejected[1])
        if prompt_tokens > max_prompt_tokens:
            report.dropped[f"prompt longer than {max_prompt_tokens} tokens"] += 1
        elif max(len(chosen[0]), len(rejected[0])) > max_tokens:
            report.dropped[f"prompt and completion longer than {max_tokens} tokens"] += 1
        elif chosen[0] == rejected[0]:
            report.dropped["chosen and rejected are the same in tokens"] += 1
        else:
            report.merged_boundaries += merged
            pairs.append(make_pair(chosen, rejected, row.direction, row.origin, sharing))
    if not pairs:
        reasons = ", ".join(f"{n} {reason}" for reason, n in report.dropped.items())
        raise UserError(
            f"no pairs are left after tokenization ({reasons}); raise data.max_prompt_tokens or "
            "data.max_tokens, or look at the data."
        )
    report.kept = len(pairs)
    report.lengths = _length_table(pairs)
    return pairs, report


def make_pair(
    chosen: Sequence_, rejected: Sequence_, direction: str, origin: str, sharing: Sharing = "common"
) -> TokenizedPair:
    """Joins two (tokens, index of the first scored token) into one pair.

    The shared prefix stops one token short of either sequence: the last token of each is scored
    on its own branch.
    """
    (chosen_ids, chosen_start), (rejected_ids, rejected_start) = chosen, rejected
    shared = min(
        common_prefix_length(chosen_ids, rejected_ids), len(chosen_ids) - 1, len(rejected_ids) - 1
    )
    if sharing == "prompt":
        shared = min(shared, chosen_start, rejected_start)
    elif sharing == "none":
        shared = 0
    return TokenizedPair(
        tokens=np.array(chosen_ids + rejected_ids[shared:], dtype=np.int32),
        num_prefix=shared,
        num_chosen=len(chosen_ids) - shared,
        chosen_start=chosen_start,
        rejected_start=rejected_start,
        direction=direction,
        origin=origin,
    )


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def _sequences(rows: Sequence[PreferenceRow], tokenizer: Any, chunk: int = 4096) -> Any:
    """Yields (row, chosen, rejected, whether a boundary merged), tokenizing many rows at a time."""
    for begin in range(0, len(rows), chunk):
        count_work()
        part = rows[begin : begin + chunk]
        prompts = _encode(tokenizer, [row.prompt for row in part])
        chosen = _encode(tokenizer, [row.prompt + row.chosen for row in part])
        rejected = _encode(tokenizer, [row.prompt + row.rejected for row in part])
        for row, prompt, full_chosen, full_rejected in zip(
            part, prompts, chosen, rejected, strict=True
        ):
            sequences = [
                _sequence(prompt, full, tokenizer) for full in (full_chosen, full_rejected)
            ]
            merged = any(full[: len(prompt)] != prompt for full in (full_chosen, full_rejected))
            yield row, sequences[0], sequences[1], merged


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _sequence(prompt: list[int], full: list[int], tokenizer: Any) -> Sequence_:
    start = common_prefix_length(prompt, full)  # all of the prompt, but for a merge at its end
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and (start == 0 or full[0] != bos):
        full, start = [bos, *full], start + 1
    if len(full) == start or full[-1] != eos:
        full = [*full, eos]
    return full, max(start, 1)  # nothing predicts the very first token


def _length_table(pairs: Sequence[TokenizedPair]) -> dict[str, np.ndarray]:
    return {
        "prompt": np.array([min(p.chosen_start, p.rejected_start) for p in pairs]),
        "chosen": np.array([p.num_chosen_scored for p in pairs]),
        "rejected": np.array([p.num_rejected_scored for p in pairs]),
        "unique in a pair": np.array([len(p.tokens) for p in pairs]),
    }


def pairs_fingerprint(pairs: Iterable[TokenizedPair]) -> str:
    """16 hexadecimal digits that change with any pair's tokens, layout, or place in the order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair.tokens.tobytes())
        digest.update(f"{pair.num_prefix},{pair.chosen_start},{pair.rejected_start};".encode())
    return digest.hexdigest()[:16]
