"""Values that one stage passes to the next: rows, tokenized pairs, packed batches, step totals.

Shapes in comments: T unique tokens of a micro-batch, S scored targets, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands that only handle rows start without these slow imports
    import numpy as np
    import torch


@dataclass(frozen=True)
class PreferenceRow:
    """One preference: the prompt exactly as the model sees it, and two completions.

    `direction` is like `"en-de"`, or `""` if it is not known. `origin` is the row's file and line,
    like `"pairs.jsonl:12"`, for messages. `is_chat` says that a chat template rendered the texts,
    with the tokens that begin a conversation and end a turn. Texts that spell a special token are
    marked (see `data.encoder`).
    """

    prompt: str
    chosen: str
    rejected: str
    direction: str
    origin: str
    is_chat: bool = False


@dataclass(frozen=True, eq=False)
class TokenizedPair:
    """A preference pair as one sequence, `prefix · chosen branch · rejected branch`.

    The prefix is the common beginning of (prompt + chosen) and (prompt + rejected). It stops at
    least one token before the end of either, so that no branch is empty. `chosen_start` and
    `rejected_start` index the first scored token in `prefix + branch`; both are at least 1.
    `reference_logps` are the log-probs of the chosen and the rejected completion under DPO's
    reference model, if they were computed before training.
    """

    tokens: np.ndarray  # int32, prefix · chosen branch · rejected branch
    num_prefix: int
    num_chosen: int
    chosen_start: int
    rejected_start: int
    direction: str
    origin: str
    reference_logps: tuple[float, float] | None = None

    @property
    def num_rejected(self) -> int:
        """Number of tokens of the rejected branch."""
        return len(self.tokens) - self.num_prefix - self.num_chosen

    @property
    def num_chosen_scored(self) -> int:
        """Number of scored tokens of the chosen completion, with the end-of-sequence token."""
        return self.num_prefix + self.num_chosen - self.chosen_start

    @property
    def num_rejected_scored(self) -> int:
        """Number of scored tokens of the rejected completion, with the end-of-sequence token."""
        return self.num_prefix + self.num_rejected - self.rejected_start

    @property
    def longest_sequence(self) -> int:
        """Number of tokens of the longer of (prompt + chosen) and (prompt + rejected)."""
        return self.num_prefix + max(self.num_chosen, self.num_rejected)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: pairs end to end in a single row, nothing padded.

    A hidden state at `score_positions[s]` predicts `score_targets[s]`. Targets are an index list
    rather than shifted labels because the last shared position predicts the first token of both
    branches, and a token of a shared beginning of both completions counts for both sides.
    """

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64; a rejected branch restarts where its prefix ends
    segment_lengths: tuple[tuple[int, int, int], ...]  # P x (prefix, chosen, rejected)
    score_positions: torch.Tensor  # [S] int64, into T
    score_targets: torch.Tensor  # [S] int64, token ids
    score_pairs: torch.Tensor  # [S] int64, into P
    score_in_chosen: torch.Tensor  # [S] float32, 1 where the target counts for chosen
    score_in_rejected: torch.Tensor  # [S] float32, 1 where it counts for rejected
    num_chosen_tokens: torch.Tensor  # [P] float32
    num_rejected_tokens: torch.Tensor  # [P] float32
    pair_indices: tuple[int, ...]  # P indices into the data set
    counted: bool = True  # False: a stand-in that keeps ranks in step; it must not count
    reference_logps: torch.Tensor | None = None  # [P, 2] float32: chosen, rejected; precomputed

    @property
    def num_pairs(self) -> int:
        """Pairs in this micro-batch."""
        return len(self.segment_lengths)

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
    """Log-probs of one micro-batch's completions: sums over tokens, [P] each, float32.

    `reference_*` are the log-probs under DPO's reference model, or None if the objective has none.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    num_chosen_tokens: torch.Tensor
    num_rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor | None = None
    reference_rejected: torch.Tensor | None = None


@dataclass(frozen=True)
class StepTotals:
    """Counts over the global batch of one optimizer step, known before its first backward pass.

    `pairs` and `chosen_tokens` are the denominators of the loss. `padded_tokens` is the number of
    tokens that the same micro-batches would have as padded rows, one row per completion.
    """

    pairs: int
    chosen_tokens: int
    scored_tokens: int
    unique_tokens: int
    padded_tokens: int
