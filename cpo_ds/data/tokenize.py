"""Tokenizes rows into `TokenizedPair`s: shared prefix, two branches, and the scored tokens.

Prompt + completion is tokenized as one text. The completion begins after the prompt's own tokens,
or earlier if a merge at the boundary changed the last of them. `data.encoder` adds the tokens of
the beginning. A completion ends as the chat template ends a turn, or by the end-of-sequence token
if no template does. With `add_bos="always"` texts have the tokens of TRL's CPOTrainer. Sequences
are never cut: pairs that are too long are dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from cpo_ds.data.encoder import TextEncoder, is_marked
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.schema import PreferenceRow, TokenizedPair
from cpo_ds.settings.texts import AddBos

Sharing = Literal["common", "prompt", "none"]


class Tokens(NamedTuple):
    """The tokens of prompt + completion, and the index of the first scored one."""

    ids: list[int]
    start: int


@dataclass
class TokenReport:
    """Counts of tokenization, and lengths in tokens of the parts of the pairs."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    merged_boundaries: int = 0
    unshared: int = 0
    spelled: int = 0  # rows whose texts spell special tokens
    unstopped: Counter[str] = field(default_factory=Counter)  # by the token that ends them
    lengths: dict[str, np.ndarray] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A summary to print, a line each."""
        lines = [f"  dropped: {count} ({reason})" for reason, count in self.dropped.items()]
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


def tokenize_rows(
    rows: Sequence[PreferenceRow],
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
    sharing: Sharing = "common",
    rope_key: Callable[[int], Hashable] = lambda length: 0,
    add_bos: AddBos = "auto",
    stops: Collection[int] = (),
) -> tuple[list[TokenizedPair], TokenReport]:
    """Tokenizes rows, in order; returns the pairs, and a report that counts the dropped ones.

    Drops pairs that are too long, or whose completions are the same in tokens. `max_tokens` limits
    prompt + one completion, with special tokens. A pair shares its prefix only if both sequences
    get the same rotary positions: if `rope_key` is the same for their lengths. `stops` are the
    tokens at which the model ends an answer. Raises `UserError` if a completion has no end and the
    tokenizer no end-of-sequence token, or if no pair is left.
    """
    # Tokenize, and drop pairs that do not fit.
    encoder = TextEncoder(tokenizer, add_bos, stops)
    report = TokenReport()
    pairs = []
    for row, chosen, rejected, merged in _tokenized(rows, encoder):
        prompt_tokens = max(chosen.start, rejected.start)
        if prompt_tokens > max_prompt_tokens:
            report.dropped[f"prompt longer than {max_prompt_tokens} tokens"] += 1
        elif max(len(chosen.ids), len(rejected.ids)) > max_tokens:
            report.dropped[f"prompt and completion longer than {max_tokens} tokens"] += 1
        elif chosen.ids == rejected.ids:
            report.dropped["chosen and rejected are the same in tokens"] += 1
        else:
            report.merged_boundaries += merged
            report.spelled += any(map(is_marked, (row.prompt, row.chosen, row.rejected)))
            for last in (chosen.ids[-1], rejected.ids[-1]):
                if last not in encoder.stops:
                    report.unstopped[encoder.name(last)] += 1
            is_alike = rope_key(len(chosen.ids)) == rope_key(len(rejected.ids))
            report.unshared += sharing != "none" and not is_alike
            pair_sharing = sharing if is_alike else "none"
            pairs.append(make_pair(chosen, rejected, row.direction, row.origin, pair_sharing))

    # Report.
    if not pairs:
        reasons = ", ".join(f"{n} {reason}" for reason, n in report.dropped.items())
        raise UserError(
            f"no pairs are left after tokenization ({reasons}); raise data.max_prompt_tokens or "
            "data.max_tokens, or check the data."
        )
    report.kept = len(pairs)
    report.lengths = _length_table(pairs)
    return pairs, report


def make_pair(
    chosen: tuple[list[int], int],
    rejected: tuple[list[int], int],
    direction: str,
    origin: str,
    sharing: Sharing = "common",
) -> TokenizedPair:
    """Joins two sequences, given like `Tokens`, into one pair with a shared prefix.

    The shared prefix never contains the last token of either sequence, so that each branch has at
    least one token to score.
    """
    (chosen_ids, chosen_start), (rejected_ids, rejected_start) = chosen, rejected

    # Find the length of the shared prefix.
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


def _tokenized(
    rows: Sequence[PreferenceRow], encoder: TextEncoder, chunk: int = 4096
) -> Iterator[tuple[PreferenceRow, Tokens, Tokens, bool]]:
    """Yields (row, chosen, rejected, whether a boundary merged), tokenizing `chunk` rows at a time.

    A boundary merges if the tokenizer joins the end of the prompt and the beginning of a completion
    into one token. Raises `UserError` if a completion needs an end-of-sequence token and there is
    none.
    """
    for begin in range(0, len(rows), chunk):
        count_work()
        part = rows[begin : begin + chunk]
        prompts = encoder.encode([row.prompt for row in part])
        chosen, rejected = (
            _sides(part, prompts, [getattr(row, name) for row in part], encoder)
            for name in ("chosen", "rejected")
        )
        for row, (good, merged), (bad, also_merged) in zip(part, chosen, rejected, strict=True):
            yield row, good, bad, merged or also_merged


def _sides(
    rows: Sequence[PreferenceRow],
    prompts: list[list[int]],
    completions: list[str],
    encoder: TextEncoder,
) -> list[tuple[Tokens, bool]]:
    """The tokens of each prompt + completion, and whether the boundary merged."""
    # A chat template ends completions itself.
    ended = [False] * len(rows)
    for index, row in enumerate(rows):
        if row.is_chat:
            completions[index], ended[index] = encoder.end_of_turn(completions[index])
    fulls = encoder.encode([row.prompt + text for row, text in zip(rows, completions, strict=True)])

    sides = []
    for row, prompt, full, has_end in zip(rows, prompts, fulls, ended, strict=True):
        start = common_prefix_length(prompt, full)  # the whole prompt, unless its end merged
        ids, first = encoder.begin(full, start, is_chat=row.is_chat)
        if not has_end:
            ids = _with_end(ids, first, encoder.tokenizer.eos_token_id)
        # No token predicts the very first one.
        sides.append((Tokens(ids, max(first, 1)), start < len(prompt)))
    return sides


def _with_end(ids: list[int], start: int, eos: int | None) -> list[int]:
    """Adds the end-of-sequence token unless the completion has it."""
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so a model could not learn where a "
            "translation ends; set eos_token in its tokenizer_config.json."
        )
    return ids if len(ids) > start and ids[-1] == eos else [*ids, eos]


def _length_table(pairs: Sequence[TokenizedPair]) -> dict[str, np.ndarray]:
    return {
        "prompt": np.array([min(p.chosen_start, p.rejected_start) for p in pairs]),
        "chosen": np.array([p.num_chosen_scored for p in pairs]),
        "rejected": np.array([p.num_rejected_scored for p in pairs]),
        "unique in a pair": np.array([len(p.tokens) for p in pairs]),
    }


def pairs_fingerprint(pairs: Iterable[TokenizedPair]) -> str:
    """A fingerprint of all pairs' tokens, layout and order: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair.tokens.tobytes())
        digest.update(f"{pair.num_prefix},{pair.chosen_start},{pair.rejected_start};".encode())
    return digest.hexdigest()[:16]
