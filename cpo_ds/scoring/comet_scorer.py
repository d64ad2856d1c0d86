"""A COMET model that scores batches of translations, whole in this process or split over the ranks.

The computation is COMET's own (`prepare_sample`, `predict_step`, `forward`), with two shortcuts:
texts that a batch shares are encoded once, and error spans are decoded for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from cpo_ds.engine.frozen import shard_frozen
from cpo_ds.errors import UserError
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.scoring.checkpoint import Checkpoint, check_complete, make_model, read_weights
from cpo_ds.scoring.plan import ErrorSpan, Item, Score, joint_batches, separate_batches
from cpo_ds.scoring.spans import decode_spans


class CometScorer:
    """Scores translations by a COMET model.

    With `shard`, the model is split over the ranks, which then must score in step.
    """

    program = "COMET"

    def __init__(self, checkpoint: Checkpoint, ranks: Ranks, dtype: str, *, shard: bool) -> None:
        self._model = make_model(checkpoint)
        self.version = f"unbabel-comet {version('unbabel-comet')}"
        self._device = ranks.device
        self._engine = None
        if shard:
            self._engine = _load_sharded(self._model, checkpoint, ranks, getattr(torch, dtype))
        else:
            _load_whole(self._model, checkpoint, ranks.device, getattr(torch, dtype))
        self._model.eval()
        # Unified and XCOMET models read source, translation and reference as one sequence. Others
        # encode each text by itself.
        self._reads_jointly = hasattr(self._model, "concat_inputs")
        if self._reads_jointly and self._model.word_level:
            # XCOMET: decode the error spans of a batch at once, since COMET's loop is slow.
            labels = self._model.label_encoder.ids_to_label
            tokenizer = self._model.encoder.tokenizer
            self._model.decode = partial(decode_spans, tokenizer=tokenizer, labels=labels)

    @property
    def needs_reference(self) -> bool:
        """Whether the model scores nothing without a reference."""
        return self._model.requires_references()

    @property
    def can_use_reference(self) -> bool:
        """Whether the model looks at a reference if there is one."""
        if not self._reads_jointly:
            return self.needs_reference
        return "ref" in self._model.hparams.input_segments

    @property
    def longest(self) -> int:
        """The most tokens that the model reads at once; COMET cuts off the rest."""
        return self._model.encoder.max_positions

    def cuts_off(self, item: Item, count: Callable[[str], int]) -> bool:
        """Whether COMET cuts off a part of the item; `count` gives the tokens of a text."""
        lengths = [count(text) for text in item.texts]
        return (sum(lengths) if self._reads_jointly else max(lengths)) > self.longest

    def count_tokens(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, special ones included."""
        return [len(ids) for ids in self._model.encoder.tokenizer(texts)["input_ids"]]

    def batches(
        self, items: list[Item], count: Callable[[str], int], batch_tokens: int
    ) -> list[list[Item]]:
        """Sorts items into batches. Either all of them have a reference or none."""
        cut = joint_batches if self._reads_jointly else separate_batches
        return cut(items, count, batch_tokens)

    @torch.no_grad()
    def score(self, items: list[Item]) -> list[Score]:
        """The score of each item of a batch. Raises `UserError` if one is not finite."""
        if self._reads_jointly:
            scores, spans = self._score_jointly(items)
        else:
            scores, spans = self._score_separately(items), None
        finite = torch.isfinite(scores).tolist()
        if not all(finite):
            item = items[finite.index(False)]
            raise UserError(
                f"a score is not finite: {item.language_pair}, source {item.source[:60]!r}; "
                "score with --dtype float32 or bfloat16."
            )
        no_spans: list[list[ErrorSpan] | None] = [None] * len(items)
        return list(zip(scores.tolist(), spans or no_spans, strict=True))

    def _score_jointly(
        self, items: list[Item]
    ) -> tuple[torch.Tensor, list[list[ErrorSpan]] | None]:
        """Scores, [items], and error spans by a model that reads an item's texts as one."""
        samples = [dict(zip(("src", "mt", "ref"), item.texts, strict=False)) for item in items]
        inputs = self._model.prepare_sample(samples, stage="predict")
        moved = tuple({k: self._move(v) for k, v in sequence.items()} for sequence in inputs)
        prediction = self._model.predict_step(moved)
        metadata = prediction.get("metadata", {})
        return prediction["scores"].float().cpu(), metadata.get("error_spans")

    def _score_separately(self, items: list[Item]) -> torch.Tensor:
        """Scores, [items], by a model that encodes each text and compares their embeddings."""
        # Encode each different text of the batch once.
        texts = sorted({text for item in items for text in item.texts})
        number_of = {text: number for number, text in enumerate(texts)}
        inputs = {k: self._move(v) for k, v in self._model.encoder.prepare_sample(texts).items()}
        embeddings = self._model.compute_sentence_embedding(**inputs)

        # Let the model compare: as `input_ids` it gets numbers of texts, and a replaced method
        # looks up the embeddings of these numbers.
        rows = torch.tensor([[number_of[text] for text in item.texts] for item in items])
        compared: dict[str, Any] = {}
        for column, name in enumerate(("src", "mt", "ref")[: rows.shape[1]]):
            compared |= {f"{name}_input_ids": rows[:, column], f"{name}_attention_mask": None}
        self._model.get_sentence_embedding = lambda numbers, _: embeddings[numbers]
        return self._model(**compared).score.float().cpu()

    def _move(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, torch.Tensor) else value


def _load_whole(
    model: Any, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> None:
    """Gives the model all its weights on one device."""
    weights = read_weights(checkpoint)
    check_complete(model, weights, checkpoint.path)
    model.load_state_dict(weights, strict=False, assign=True)
    model.to(device=device, dtype=dtype)
    _cast_inputs_of_heads(model)


def _load_sharded(model: Any, checkpoint: Checkpoint, ranks: Ranks, dtype: torch.dtype) -> Any:
    """Gives the model its weights; returns the DeepSpeed engine of the split encoder.

    The heads are small and whole on every rank.
    """
    check_complete(model, read_weights(checkpoint), checkpoint.path)

    def fill(name: str, part: nn.Module) -> None:
        # Rank 0 reads one part of the encoder; the others get its values from rank 0. The file is
        # opened anew each time, so that the memory of parts read before is released.
        weights = read_weights(checkpoint) if ranks.rank == 0 else {}
        for own, parameter in part.named_parameters(recurse=False):
            full_name = ".".join(filter(None, ("encoder", name, own)))
            parameter.data = (
                weights[full_name].to(dtype, copy=True)
                if ranks.rank == 0
                else torch.empty(parameter.shape, dtype=dtype)
            )

    engine = shard_frozen(model.encoder, fill, ranks.world_size)
    others = {k: v for k, v in read_weights(checkpoint).items() if not k.startswith("encoder.")}
    model.load_state_dict(others, strict=False, assign=True)
    for name, part in model.named_children():
        if name != "encoder":
            part.to(device=ranks.device, dtype=dtype)
    _cast_inputs_of_heads(model)
    return engine


def _cast_inputs_of_heads(model: Any) -> None:
    """Casts the inputs of the heads to the heads' precision.

    COMET's mixing of layers gives float32 if it normalizes, whatever the model's precision.
    """
    for name in ("estimator", "hidden2tag"):
        head = getattr(model, name, None)
        if head is not None:
            dtype = next(head.parameters()).dtype
            head.register_forward_pre_hook(lambda _, inputs, d=dtype: (inputs[0].to(d),))
