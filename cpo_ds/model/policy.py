"""The module that DeepSpeed wraps: `PackedBatch` in, log-probs of all completions out.

Shape suffixes: S scored tokens, P pairs, K rejected completions of a pair, E width of the model,
V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cpo_ds.model.logprobs import HeadTransform, head_logits, token_logps
from cpo_ds.model.shared_prefix import SharedPrefixLayout
from cpo_ds.schema import PackedBatch


class ScoringHead(nn.Module):
    """The language model's head, applied in chunks to the scored positions only.

    It has no parameters: the weight belongs to the language model and comes as an argument. It is a
    module of its own so that ZeRO-3 gathers the weight for this call only (see `engine.Engine`).
    """

    def __init__(self, transform: HeadTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(
        self, hidden_SE: torch.Tensor, weight_VE: torch.Tensor, targets_S: torch.Tensor | None
    ) -> torch.Tensor:
        """Log-prob of each target: [S], float32. Without targets, the logits: [S, V], float32."""
        if targets_S is None:
            return head_logits(hidden_SE, weight_VE, self.transform)[0]
        return token_logps(hidden_SE, weight_VE, targets_S, self.transform)


class PolicyModel(nn.Module):
    """A causal language model from transformers, with or without a LoRA adapter.

    `fingerprint` is the fingerprint of the model's weights as they were loaded, without an adapter.
    """

    def __init__(
        self, language_model: Any, transform: HeadTransform, fingerprint: str = ""
    ) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.language_model = language_model
        self.scoring_head = ScoringHead(transform)

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself. An adapter's layers are inside it."""
        wrapped = getattr(self.language_model, "get_base_model", None)
        return wrapped() if wrapped else self.language_model

    @property
    def head_weight(self) -> nn.Parameter:
        """Weight of the language model's head, [V, E]; under ZeRO-3 an empty shard until used."""
        return self.causal_lm.get_output_embeddings().weight

    def forward(
        self, batch: PackedBatch, *, predicts: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        """Sums of the log-probs of chosen completions, [P], and of rejected ones, [P, K]: float32.

        With `predicts`, the logits at each scored position instead: [S, V], float32.

        Returns a plain tuple, since ZeRO-3 finds the tensors for its backward hooks in tuples.
        """
        # Hidden states of all tokens, without the model's own head.
        decoder = self.causal_lm.get_decoder()
        layout = SharedPrefixLayout(batch.segment_lengths, batch.input_ids.device)
        hidden = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            shared_prefix=layout,
        ).last_hidden_state
        # Log-probs of scored tokens only. One in the prefix may count for several completions.
        scored = hidden.squeeze(0).index_select(0, batch.score_positions)
        if predicts:
            logits: torch.Tensor = self.scoring_head(scored, self.head_weight, None)
            return logits
        logps = self.scoring_head(scored, self.head_weight, batch.score_targets)
        counts = (batch.score_in_chosen, *batch.score_in_rejected.T)
        chosen, *rejected = _sums_by_pair([logps * one for one in counts], batch)
        return chosen, torch.stack(rejected, dim=1)


def _sums_by_pair(values_S: Sequence[torch.Tensor], batch: PackedBatch) -> list[torch.Tensor]:
    """Sums over the tokens of each pair, in the same order in every run: each [S] -> [P].

    `index_add` would be shorter, but on a GPU it adds in any order. A matrix product would carry a
    value that is not finite into the sums of all pairs.
    """
    # Each pair gets a row that is at least as long as its tokens; unused places stay zero.
    length = max(map(sum, batch.segment_lengths))
    pairs_S = batch.score_pairs  # sorted, so that a search finds each pair's first token
    in_row_S = torch.arange(len(pairs_S), device=pairs_S.device)
    in_row_S = in_row_S - torch.searchsorted(pairs_S, pairs_S)
    place_S = pairs_S * length + in_row_S
    sums = []
    for values in values_S:
        places = values.new_zeros(batch.num_pairs * length)
        filled = places.index_copy(0, place_S, values)
        sums.append(filled.view(batch.num_pairs, length).sum(1))
    return sums
