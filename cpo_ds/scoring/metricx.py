"""MetricX-24: mT5 models that give an error score from 0 to 25, of which lower is better.

The computation is that of Google's `metricx24/predict.py`: one decoder step, and of its logits that
of one token. A model sees source, translation and reference, or estimates quality without the
reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from cpo_ds.engine.frozen import shard_frozen
from cpo_ds.errors import UserError, one_line
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.scoring.metricx_files import MetricXFiles, read_weights
from cpo_ds.scoring.plan import Item, Score, joint_batches

SCORE_TOKEN = 250089  # <extra_id_10>, whose logit is the score
WORST = 25.0
LONGEST = 1535  # tokens: 1,536 with the end token, which is taken off
_LABELS = ("source: ", " candidate: ", " reference: ")
_TOKENS_OF_LABEL = 4
_EMBEDDINGS = "shared.weight"  # the weight of all embeddings, under any of their names


class MetricXScorer:
    """Scores translations by a MetricX-24 model.

    With `shard`, the model is split over the ranks, which then must score in step.
    """

    program = "MetricX"
    can_use_reference = True
    longest = LONGEST

    def __init__(
        self, files: MetricXFiles, ranks: Ranks, dtype: str, *, shard: bool, is_estimate: bool
    ) -> None:
        if dtype == "float16":
            raise UserError(
                "--dtype float16: mT5's activations overflow in it; score MetricX in float32 or "
                "bfloat16."
            )
        self.needs_reference = not is_estimate
        self.version = f"transformers {version('transformers')}"
        self._encode = tokenizer(files)
        self._device, precision = ranks.device, getattr(torch, dtype)
        weights = read_weights(files)
        self._head = _head(files, weights).to(device=ranks.device, dtype=precision, copy=True)
        model = _make_model(files, weights)
        self._engine = None
        if shard:
            self._engine = _split(model, files, ranks, precision)
        else:
            named = {name: weights[_in_file(name)] for name in model.state_dict()}
            model.load_state_dict(named, assign=True)
            model.tie_weights()
            model.to(device=ranks.device, dtype=precision)
        self._model = model.eval()

    def count_tokens(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, with those of its label."""
        return [len(self._encode(text)) + _TOKENS_OF_LABEL for text in texts]

    def cuts_off(self, item: Item, count: Callable[[str], int]) -> bool:
        """Whether the model does not see the end of the item."""
        # Tokens of the parts are at least as many as those of the whole, but for a few.
        near = sum(map(count, item.texts)) + _TOKENS_OF_LABEL * len(_LABELS) > self.longest
        return near and len(self._encode(input_text(item))) > self.longest

    def batches(
        self, items: list[Item], count: Callable[[str], int], batch_tokens: int
    ) -> list[list[Item]]:
        """Sorts items into batches."""
        return joint_batches(items, count, batch_tokens)

    @torch.no_grad()
    def score(self, items: list[Item]) -> list[Score]:
        """The score of each item of a batch. Raises `UserError` if one is not finite."""
        # Pad at the right. The mask hides the padding, so it changes no score but by rounding.
        ids = [self._encode(input_text(item))[: self.longest] for item in items]
        length = max(map(len, ids))
        inputs = torch.tensor([own + [0] * (length - len(own)) for own in ids])
        mask = torch.tensor([[1] * len(own) + [0] * (length - len(own)) for own in ids])
        outputs = self._model(
            input_ids=inputs.to(self._device),
            attention_mask=mask.to(self._device),
            decoder_input_ids=torch.zeros(len(ids), 1, dtype=torch.long, device=self._device),
            use_cache=False,
        )
        logits = (outputs.last_hidden_state[:, 0] @ self._head).float().cpu()
        if not torch.isfinite(logits).all():
            raise UserError("a score by MetricX is not finite; score with --dtype float32.")
        return [(score, None) for score in logits.clamp(0, WORST).tolist()]


def input_text(item: Item) -> str:
    """The text that the model reads; the reference is left out of quality estimates."""
    return "".join(label + text for label, text in zip(_LABELS, item.texts, strict=False))


def tokenizer(files: MetricXFiles) -> Callable[[str], list[int]]:
    """mT5's tokenizer without the end token. Raises `UserError` if its file is damaged.

    It gives the tokens of transformers' fast tokenizer, with which Google scores. That one has no
    bytes for unknown characters, and puts one unknown token in place of several such. Texts that
    spell a special token are plain characters.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(files.tokenizer))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{files.tokenizer} cannot be read: {one_line(error)}; get it again."
        ) from None
    unknown = model.unk_id()
    is_unknown = [number == unknown or model.is_byte(number) for number in range(len(model))]

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for number in model.encode(text):
            if not is_unknown[number]:
                ids.append(number)
            elif ids[-1:] != [unknown]:
                ids.append(unknown)
        return ids

    return encode


def _in_file(name: str) -> str:
    """The name in files of weights of a parameter: the embeddings have several names."""
    return _EMBEDDINGS if name.endswith("embed_tokens.weight") else name


def _head(files: MetricXFiles, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The row of the head that gives the score, [hidden]. Raises `UserError` if it is not there.

    A model whose head is its embeddings scales its hidden states before the head. transformers 5
    would tie the two whatever the settings say.
    """
    settings = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    is_tied = settings.get("tie_word_embeddings", False)
    name = _EMBEDDINGS if is_tied else "lm_head.weight"
    if name not in weights:
        raise UserError(f"{files.folder} lacks the weight {name}; get the whole model.")
    if len(weights[name]) <= SCORE_TOKEN:
        raise UserError(
            f"{files.folder} has {len(weights[name])} tokens, and MetricX gives scores by token "
            f"{SCORE_TOKEN} of mT5; give a MetricX model."
        )
    row = weights[name][SCORE_TOKEN]
    return row * settings["d_model"] ** -0.5 if is_tied else row


def _make_model(files: MetricXFiles, weights: dict[str, torch.Tensor]) -> Any:
    """The model without its head, on the device "meta". Raises `UserError` if weights are missing.

    transformers would give missing weights random values.
    """
    from transformers import MT5Config, MT5Model

    try:
        config = MT5Config.from_pretrained(str(files.folder))
        with torch.device("meta"):
            model = MT5Model(config)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        path = files.folder / "config.json"
        raise UserError(f"{path} cannot be used: {one_line(error)}; get it again.") from None
    for name, parameter in model.named_parameters():
        own = weights.get(_in_file(name))
        if own is None:
            raise UserError(f"{files.folder} lacks the weight {name}; get the whole model.")
        if own.shape != parameter.shape:
            raise UserError(
                f"{files.folder} has {name} as {tuple(own.shape)}, its settings say "
                f"{tuple(parameter.shape)}; get the model again."
            )
    return model


def _split(model: Any, files: MetricXFiles, ranks: Ranks, dtype: torch.dtype) -> Any:
    """Gives the model its weights, split over the ranks; returns the engine that gathers them."""
    # Memory without values takes no room until something is written to it.
    model.to_empty(device="cpu")
    model.tie_weights()

    def fill(name: str, part: nn.Module) -> None:
        # Rank 0 reads one part of the model; the others get its values from rank 0. The files are
        # opened anew each time, so that the memory of parts read before is released.
        weights = read_weights(files) if ranks.rank == 0 else {}
        for own, parameter in part.named_parameters(recurse=False):
            if hasattr(parameter, "ds_id"):  # embeddings that are split under another name
                continue
            parameter.data = (
                weights[_in_file(f"{name}.{own}")].to(dtype, copy=True)
                if ranks.rank == 0
                else torch.empty(parameter.shape, dtype=dtype)
            )

    return shard_frozen(model, fill, ranks.world_size)
