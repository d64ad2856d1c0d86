"""Tokenizes rows into `TokenizedPair`s: shared prefix, branches, and the scored tokens.

Prompt + completion is tokenized as one text. The completion begins after the prompt's own tokens,
or earlier if a merge at the boundary changed the last of them. `data.encoder` adds the tokens of
the beginning. A completion ends as the chat template ends a turn, or by the end-of-sequence token
if no template does. With `add_bos="always"` texts have the tokens of TRL's CPOTrainer. Sequences
are never cut: pairs that are too long are dropped and counted. If a pair has several rejected
completions, those that do not fit are dropped alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from cpo_ds.data.encoder import TextEncoder, is_marked
from cpo_ds.data.token_report import TokenReport
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.schema import PreferenceRow, TokenizedPair
from cpo_ds.settings.data import AddBos

Sharing = Literal["common", "prompt", "none"]
TOGETHER = 4096  # rows that are tokenized together


class Tokens(NamedTuple):
    """The tokens of prompt + completion, and the index of the first scored one."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class PairRules:
    """When two sequences make a pair, and how many of their tokens it shares.

    `max_tokens` limits prompt + one completion, with special tokens. A pair shares its prefix only
    if both sequences get the same rotary positions: if `rope_key` is the same for their lengths.
    """

    max_prompt_tokens: int
    max_tokens: int
    sharing: Sharing = "common"
    rope_key: Callable[[int], Hashable] = lambda length: 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons to drop a pair, or one of its rejected completions, in words."""
        return (
            f"prompt longer than {self.max_prompt_tokens} tokens",
            f"prompt and completion longer than {self.max_tokens} tokens",
            "chosen and rejected are the same in tokens",
            "two rejected completions are the same in tokens",
        )

    def reason(self, chosen: Tokens, rejected: Tokens) -> int | None:
        """The index in `reasons` of the reason to drop a pair; None if it is kept."""
        if max(chosen.start, rejected.start) > self.max_prompt_tokens:
            return 0
        if max(len(chosen.ids), len(rejected.ids)) > self.max_tokens:
            return 1
        return 2 if chosen.ids == rejected.ids else None

    def split(
        self, chosen: Tokens, rejected: Sequence[Tokens]
    ) -> tuple[list[int], tuple[int, ...]]:
        """The numbers of rejected completions that make a pair, and why the others do not."""
        kept: list[int] = []
        reasons = []
        for number, tokens in enumerate(rejected):
            reason = self.reason(chosen, tokens)
            if reason is None and any(tokens.ids == rejected[other].ids for other in kept):
                reason = 3
            if reason is None:
                kept.append(number)
            else:
                reasons.append(reason)
        return kept, tuple(reasons)


class Outcome(NamedTuple):
    """The pair of a row, or the index of the reason in `PairRules.reasons` to drop it."""

    pair: TokenizedPair | None
    reason: int | None
    merged: bool = False  # the tokenizer joined prompt and completion at their boundary
    spelled: bool = False  # a text spells a special token
    unshared: bool = False  # only because rotary positions differ
    lost: tuple[int, ...] = ()  # reasons why rejected completions of a kept pair were dropped


def outcomes(
    rows: Sequence[PreferenceRow], encoder: TextEncoder, rules: PairRules
) -> Iterator[Outcome]:
    """Yields the outcome of each row, in order.

    Raises `UserError` if a completion has no end and the tokenizer no end-of-sequence token.
    """
    for row, chosen, rejected, merged in _tokenized(rows, encoder):
        kept, lost = rules.split(chosen, rejected)
        if not kept:
            yield Outcome(None, lost[0])
            continue
        completions = (chosen, *(rejected[number] for number in kept))
        is_alike = len({rules.rope_key(len(tokens.ids)) for tokens in completions}) == 1
        sharing = rules.sharing if is_alike else "none"
        scores = row.scores and (row.scores[0], *(row.scores[1 + number] for number in kept))
        pair = make_pair(
            *completions, direction=row.direction, origin=row.origin, sharing=sharing, scores=scores
        )
        spelled = any(map(is_marked, row.texts))
        yield Outcome(pair, None, merged, spelled, rules.sharing != "none" and not is_alike, lost)


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

    Drops pairs that are too long, or whose completions are the same in tokens; see `PairRules`.
    `stops` are the tokens at which the model ends an answer. Raises `UserError` as `outcomes` does,
    or if no pair is left.
    """
    encoder = TextEncoder(tokenizer, add_bos, stops)
    rules = PairRules(max_prompt_tokens, max_tokens, sharing, rope_key)
    report, pairs = TokenReport(), []
    for outcome in outcomes(rows, encoder, rules):
        if outcome.reason is not None:
            report.dropped[rules.reasons[outcome.reason]] += 1
        if (pair := outcome.pair) is None:
            continue
        pairs.append(pair)
        report.merged_boundaries += outcome.merged
        report.spelled += outcome.spelled
        report.unshared += outcome.unshared
        report.lost.update(rules.reasons[reason] for reason in outcome.lost)
        for end in np.cumsum(pair.segments)[1:]:
            if (last := pair.tokens[end - 1]) not in encoder.stops:
                report.unstopped[encoder.name(int(last))] += 1
    report.kept = len(pairs)
    report.check()
    report.set_lengths(
        starts=np.concatenate([pair.starts for pair in pairs]),
        scored=np.concatenate([pair.num_scored for pair in pairs]),
        completions=np.array([len(pair.starts) for pair in pairs]),
        unique=np.array([len(pair.tokens) for pair in pairs]),
    )
    return pairs, report


def make_pair(
    chosen: tuple[list[int], int],
    *rejected: tuple[list[int], int],
    direction: str,
    origin: str,
    sharing: Sharing = "common",
    scores: tuple[float, ...] | None = None,
) -> TokenizedPair:
    """Joins sequences, given like `Tokens`, into one pair with a shared prefix.

    The shared prefix never contains the last token of a sequence, so that each branch has at least
    one token to score.
    """
    ids, starts = zip(chosen, *rejected, strict=True)

    # Find the length of the shared prefix.
    shared = min(
        min(common_prefix_length(ids[0], other), len(ids[0]) - 1, len(other) - 1)
        for other in ids[1:]
    )
    if sharing == "prompt":
        shared = min(shared, *starts)
    elif sharing == "none":
        shared = 0

    return TokenizedPair(
        tokens=np.array([*ids[0], *(token for one in ids[1:] for token in one[shared:])], np.int32),
        num_prefix=shared,
        branch_lengths=tuple(len(one) - shared for one in ids),
        starts=starts,
        direction=direction,
        origin=origin,
        scores=scores,
    )


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def _tokenized(
    rows: Sequence[PreferenceRow], encoder: TextEncoder, chunk: int = TOGETHER
) -> Iterator[tuple[PreferenceRow, Tokens, list[Tokens], bool]]:
    """Yields (row, chosen, rejected, whether a boundary merged), tokenizing `chunk` rows at a time.

    A boundary merges if the tokenizer joins the end of the prompt and the beginning of a completion
    into one token. Raises `UserError` if a completion needs an end-of-sequence token and there is
    none.
    """
    for begin in range(0, len(rows), chunk):
        count_work()
        part = rows[begin : begin + chunk]
        prompts = encoder.encode([row.prompt for row in part])
        chosen = _sides(part, prompts, [row.chosen for row in part], encoder)
        rejected = iter(_rejected_sides(part, prompts, encoder))
        for row, (good, merged) in zip(part, chosen, strict=True):
            bad = [next(rejected) for _ in row.rejected]
            yield row, good, [tokens for tokens, _ in bad], merged or any(also for _, also in bad)


def _rejected_sides(
    rows: Sequence[PreferenceRow], prompts: list[list[int]], encoder: TextEncoder
) -> list[tuple[Tokens, bool]]:
    """`_sides` of the rejected completions of all rows, one row's after the other's."""
    repeated = [
        (row, prompt, text)
        for row, prompt in zip(rows, prompts, strict=True)
        for text in row.rejected
    ]
    of_texts, their_prompts, texts = (list(column) for column in zip(*repeated, strict=True))
    return _sides(of_texts, their_prompts, texts, encoder)


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


def problem_of(row: PreferenceRow, encoder: TextEncoder) -> tuple[int, str] | None:
    """The error of `outcomes` for a row, as a text; None if there is none.

    With it comes its place among the errors of rows that are tokenized together: prompts are
    tokenized first, then chosen and then rejected completions.
    """
    prompts: list[list[int]] = []
    stages: tuple[Callable[[], object], ...] = (
        lambda: prompts.extend(encoder.encode([row.prompt])),
        lambda: _sides([row], prompts, [row.chosen], encoder),
        lambda: _rejected_sides([row], prompts, encoder),
    )
    for stage, tokenize in enumerate(stages):
        try:
            tokenize()
        except UserError as error:
            return stage, str(error)
    return None


def _with_end(ids: list[int], start: int, eos: int | None) -> list[int]:
    """Adds the end-of-sequence token unless the completion has it."""
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so a model could not learn where a "
            "translation ends; set eos_token in its tokenizer_config.json."
        )
    return ids if len(ids) > start and ids[-1] == eos else [*ids, eos]
