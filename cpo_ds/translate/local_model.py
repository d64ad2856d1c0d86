"""Translates batches of prompts by a causal language model of transformers.

The model is whole on this rank's device, or split over the ranks, which then work in step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

from cpo_ds.config import Config, ModelConfig
from cpo_ds.engine.engine import gather_parameters
from cpo_ds.engine.frozen import gather_by_layer, split_while_loading
from cpo_ds.errors import UserError, one_line
from cpo_ds.model.adapter import (
    SPLIT_KINDS,
    adapter_on_split,
    starting_adapter,
    starting_settings,
)
from cpo_ds.model.base_settings import quantization_of
from cpo_ds.model.hub import adapter_fingerprint, unavailable
from cpo_ds.model.load import load_causal_lm, read_model_config
from cpo_ds.model.quantization import quantizer
from cpo_ds.settings.data import DataConfig
from cpo_ds.storage.hub_names import check_folder_or_name
from cpo_ds.translate.job import Translation

_WEIGHTS = ("*.safetensors", "*.bin")
_SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")  # of model and tokenizer
_SPLIT_IT = "split it over N processes: `cpo-ds translate` with --ranks N --shard."
_BLOCK, _STRIDE = 2**12, 2**22  # bytes: 4 KiB of every 4 MiB of weights are read


def identity(name_or_path: str, adapter: str | None) -> str:
    """A text that identifies the model and the adapter by content, wherever they lie.

    A model of the hub is identified by its commit, a folder by its files: large files by their size
    and a sample of their content. Raises `UserError` if the model is missing.
    """
    check_folder_or_name("model", name_or_path)
    folder = Path(name_or_path)
    if not folder.is_dir():
        try:  # the hub's cache has a folder named by the commit
            model = Path(cached_file(name_or_path, "config.json")).parent.name
        except (OSError, ValueError) as error:
            raise unavailable("model", name_or_path, error) from None
    else:
        model = folder_fingerprint(folder)
    return model if adapter is None else f"{model}+{adapter_fingerprint(adapter)}"


def folder_fingerprint(folder: Path) -> str:
    """32 hexadecimal digits that change with the model's settings, tokenizer or weights."""
    digest = hashlib.sha256()
    for pattern in (*_SETTINGS, *_WEIGHTS):
        for path in sorted(folder.glob(pattern)):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, size, _STRIDE if pattern in _WEIGHTS else _BLOCK):
                    file.seek(start)
                    digest.update(file.read(_BLOCK))
                file.seek(max(0, size - _BLOCK))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]


def generation_settings(name_or_path: str, config: Any) -> dict[str, Any]:
    """A model's settings of generation that differ from transformers' defaults."""
    try:
        settings = transformers.GenerationConfig.from_pretrained(name_or_path)
    except OSError:  # it has no generation_config.json
        settings = transformers.GenerationConfig.from_model_config(config)
    except ValueError as error:
        raise UserError(
            f"generation_config.json of the model {name_or_path} cannot be used: {one_line(error)}"
        ) from None
    return settings.to_diff_dict()


def padding_id(preferred: Iterable[int | None], embeddings: int) -> int:
    """The first of the ids that has an embedding, else 0. Any will do, since padding is masked."""
    valid = (token for token in preferred if token is not None and 0 <= token < embeddings)
    return next(valid, 0)


def check_shardable(adapter: str | None, quantization: str | None, config: Any) -> None:
    """Raises `UserError` for a model or an adapter that cannot be split over ranks exactly."""
    if quantization or quantization_of(config):
        raise UserError("--shard cannot split a quantized model; leave --shard out.")
    if adapter is None:
        return
    model = ModelConfig(name_or_path="", adapter=adapter, adapter_mode="merge")
    settings = starting_settings(Config(model=model, data=DataConfig(format="sample")), adapter)
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    if kind not in SPLIT_KINDS:
        raise UserError(
            f"the adapter {adapter} is of the kind {kind}, which peft cannot add to weights that "
            "are split over ranks; leave --shard out, or merge it into its base by peft "
            "(merge_and_unload, save_pretrained) and give that model."
        )


def _load(settings: ModelConfig, device: torch.device, shards: int) -> tuple[Any, Any]:
    """The model with its adapter; if it is split, also the engine that makes its layers whole."""
    attention: Any = None  # None: transformers chooses
    base, adapter = read_model_config(settings.name_or_path), settings.adapter
    recipe = Config(model=settings, data=DataConfig(format="sample"))
    # The adapter stays unmerged, as it was trained: merging would round the weights.
    if not shards:
        model = load_causal_lm(settings, base, attention, device, True, quantizer(settings))
        return starting_adapter(model, recipe, adapter) if adapter else model, None
    with split_while_loading(settings.dtype, shards):
        model = inner = load_causal_lm(settings, base, attention, device, False)
        if adapter:
            model = adapter_on_split(model, recipe, adapter, gather_parameters)
            inner = model.get_base_model()
    return model, gather_by_layer(inner, shards)


class LocalModel:
    """A model with its adapter and its tokenizer. Raises `UserError` if one cannot be loaded.

    With `shards`, the number of ranks, the model is split over them. All ranks must then call
    `translate` equally often.
    """

    def __init__(
        self,
        name_or_path: str,
        adapter: str | None,
        dtype: str,
        tokenizer: Any,
        device: torch.device,
        quantization: Any = None,
        *,
        shards: int = 0,
    ) -> None:
        # Load the model as training does.
        settings = ModelConfig(
            name_or_path=name_or_path, adapter=adapter, dtype=dtype, quantization=quantization,
            adapter_mode="merge" if adapter else "continue",
        )  # fmt: skip
        try:
            model, engine = _load(settings, device, shards)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{device} has too little memory for {'its share of ' if shards else ''}the model; "
                + ("give more ranks." if shards else _SPLIT_IT)
            ) from None
        self._model, self._tokenizer, self._device = model.eval(), tokenizer, device
        self._engine: Any = engine  # None if the model is whole
        self._steps_with_others = shards > 1

        # An answer ends with one of the model's tokens for that; padding fills the batch up.
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        embeddings = model.config.get_text_config().vocab_size
        self._padding = padding_id((tokenizer.pad_token_id, *self._ends), embeddings)

    @property
    def generation_settings(self) -> dict[str, Any]:
        """The model's settings of generation that differ from transformers' defaults."""
        return self._model.generation_config.to_diff_dict()

    @torch.no_grad()
    def translate(
        self, prompts: Sequence[Sequence[int]], seed: int, **generation: Any
    ) -> list[Translation]:
        """The model's continuation of each prompt, by transformers' `generate`.

        Raises `UserError` if the device has too little memory for the batch.
        """
        # Pad the prompts on the left: all of them must end right before their answers.
        longest = max(map(len, prompts))
        ids = [[self._padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]

        # Generate. The seed makes a batch's samples independent of the batches before it.
        torch.manual_seed(seed)
        try:
            sequences = self._model.generate(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                pad_token_id=self._padding,
                eos_token_id=self._ends or None,
                # A model's own settings may ask for more than the sequences.
                num_return_sequences=1,
                return_dict_in_generate=False,
                # Ranks that are done go on computing with those that are not.
                synced_gpus=self._steps_with_others,
                **generation,
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"{self._device} has too little memory for {len(prompts)} sentences at a time; "
                "give the same command with a lower --batch-tokens or fewer --beams: what is "
                f"finished is kept.{'' if self._engine else f' Or {_SPLIT_IT}'}"
            ) from None

        # Cut the answers out and decode them.
        answers = sequences[:, longest:].tolist()
        return [self._translation(len(p), a) for p, a in zip(prompts, answers, strict=True)]

    def _translation(self, prompt_tokens: int, answer: list[int]) -> Translation:
        """Decodes an answer up to the first token that ends it."""
        end = next((i for i, token in enumerate(answer) if token in self._ends), None)
        text = self._tokenizer.decode(
            answer[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        tokens = len(answer) if end is None else end + 1
        return Translation(text, end is not None, prompt_tokens, tokens)
