"""Values that one stage passes to the next: rows, tokenized pairs, packed batches, step totals.

Shapes in comments: T unique tokens of a micro-batch, S scored targets, P pairs, K rejected
completions of the pair that has most of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands that only handle rows start without these slow imports
    import numpy as np
    import torch


@dataclass(frozen=True)
class PreferenceRow:
    """One preference: the prompt exactly as the model sees it, a better completion and worse ones.

    `direction` is like `"en-de"`, or `""` if it is not known. `origin` is the row's file and line,
    like `"pairs.jsonl:12"`, for messages. `is_chat` says that a chat template rendered the texts,
    with the tokens that begin a conversation and end a turn. Texts that spell a special token are
    marked (see `data.encoder`). `scores` are those of chosen, then of each rejected completion, if
    the objective needs them; none of the rejected ones is above the chosen one.
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...]  # at least one
    direction: str
    origin: str
    is_chat: bool = False
    scores: tuple[float, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt and all completions."""
        return (self.prompt, self.chosen, *self.rejected)


@dataclass(frozen=True, eq=False)
class TokenizedPair:
    """A preference pair as one sequence, `prefix · chosen branch · rejected branch`.

    A pair may have several rejected branches, one after the other. The prefix is the common
    beginning of all sequences (prompt + completion). It stops at least one token before the end of
    each, so that no branch is empty. `branch_lengths` and `starts` have an entry for the chosen
    completion, then one for each rejected one. A start indexes the first scored token in
    `prefix + branch`, and is at least 1. `reference_logps` are the log-probs of the completions
    under DPO's reference model, if they were computed before training; `scores` are the
    completions' scores, if the objective needs them.
    """

    tokens: np.ndarray  # int32, prefix · chosen branch · rejected branches
    num_prefix: int
    branch_lengths: tuple[int, ...]
    starts: tuple[int, ...]
    direction: str
    origin: str
    reference_logps: tuple[float, ...] | None = None
    scores: tuple[float, ...] | None = None  # numbers that float32 holds exactly

    @property
    def num_comparisons(self) -> int:
        """Number of rejected completions, each of which is compared with the chosen one."""
        return len(self.branch_lengths) - 1

    @property
    def segments(self) -> tuple[int, ...]:
        """Numbers of tokens of the prefix and of each branch."""
        return (self.num_prefix, *self.branch_lengths)

    @property
    def num_scored(self) -> tuple[int, ...]:
        """Numbers of scored tokens of the completions, with their end-of-sequence tokens."""
        return tuple(
            self.num_prefix + branch - start
            for branch, start in zip(self.branch_lengths, self.starts, strict=True)
        )

    @property
    def longest_sequence(self) -> int:
        """Number of tokens of the longest (prompt + completion)."""
        return self.num_prefix + max(self.branch_lengths)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: pairs end to end in a single row, nothing padded.

    A hidden state at `score_positions[s]` predicts `score_targets[s]`. Targets are an index list
    rather than shifted labels because the last shared position predicts the first token of all
    branches, and a token of a shared beginning of completions counts for each of them. Columns of
    pairs with fewer than K rejected completions are filled with zeros, or with a length of 1.
    """

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64; a rejected branch restarts where its prefix ends
    segment_lengths: tuple[tuple[int, ...], ...]  # P x (prefix, chosen, rejected, ...)
    score_positions: torch.Tensor  # [S] int64, into T
    score_targets: torch.Tensor  # [S] int64, token ids
    score_pairs: torch.Tensor  # [S] int64, into P
    score_in_chosen: torch.Tensor  # [S] float32, 1 where the target counts for chosen
    score_in_rejected: torch.Tensor  # [S, K] float32, 1 where it counts for a rejected one
    num_chosen_tokens: torch.Tensor  # [P] float32
    num_rejected_tokens: torch.Tensor  # [P, K] float32
    comparison_shares: torch.Tensor  # [P, K] float32: 1 / k for each of a pair's k comparisons
    pair_indices: tuple[int, ...]  # P indices into the data set
    counted: bool = True  # False: a stand-in that keeps ranks in step; it must not count
    reference_logps: torch.Tensor | None = None  # [P, 1 + K] float32: chosen, rejected; precomputed
    scores: torch.Tensor | None = None  # [P, 1 + K] float32: chosen, rejected

    @property
    def num_pairs(self) -> int:
        """Pairs in this micro-batch."""
        return len(self.segment_lengths)

    def logps(
        self, chosen: torch.Tensor, rejected: torch.Tensor, *reference: torch.Tensor
    ) -> PairLogps:
        """A policy's log-probs of this micro-batch, and those of the reference if there are any."""
        assert rejected.shape == self.num_rejected_tokens.shape  # [P] would broadcast to [P, P]
        counts = (self.num_chosen_tokens, self.num_rejected_tokens, self.comparison_shares)
        return replace(PairLogps(chosen, rejected, *counts, *reference), scores=self.scores)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that are tensors, by name."""
        import torch

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: to_device(tensor, device) for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor from the host without making the host wait for the device."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory would wait
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of one micro-batch's completions: sums over tokens, float32.

    `reference_*` are the log-probs under DPO's reference model, or None if the objective has none.
    So are `scores`, those of the completions in the data.
    """

    chosen: torch.Tensor  # [P]
    rejected: torch.Tensor  # [P, K], 0 where a pair has fewer rejected completions
    num_chosen_tokens: torch.Tensor  # [P]
    num_rejected_tokens: torch.Tensor  # [P, K], 1 there
    comparison_shares: torch.Tensor  # [P, K]: 1 / k for each of a pair's k comparisons, 0 there
    reference_chosen: torch.Tensor | None = None  # [P]
    reference_rejected: torch.Tensor | None = None  # [P, K]
    scores: torch.Tensor | None = None  # [P, 1 + K]: chosen, rejected


@dataclass(frozen=True)
class StepTotals:
    """Counts over the global batch of one optimizer step, known before its first backward pass.

    `pairs` and `chosen_tokens` are the denominators of the loss. A pair with k rejected completions
    has k comparisons. `padded_tokens` is the number of tokens that the same micro-batches would
    have as padded rows, two for each comparison.
    """

    pairs: int
    comparisons: int
    chosen_tokens: int
    scored_tokens: int
    unique_tokens: int
    padded_tokens: int
