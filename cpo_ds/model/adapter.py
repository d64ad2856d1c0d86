"""LoRA adapters: a starting one, which is continued or merged, and a new one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import peft
import torch
from peft.tuners.trainable_tokens import layer as rows_of_tokens
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn

from cpo_ds.config import Config, LoraConfig
from cpo_ds.errors import UserError, one_line
from cpo_ds.model.adapter_checks import check_adapter
from cpo_ds.model.hub import adapter_weights, unavailable
from cpo_ds.model.merging import Merging
from cpo_ds.ranks.liveness import count_work

# Kinds that peft can add to weights that are split over ranks, each one tested.
SPLIT_KINDS = (
    "ADALORA", "BOFT", "C3A", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LOKR", "LORA", "MISS",
    "OFT", "PEANUT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "RANDLORA", "ROAD", "SHIRA",
    "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip

# Makes sharded parameters whole inside a `with` block and keeps what is written to them.
GatherParameters = Callable[[Iterable[nn.Parameter]], AbstractContextManager[Any]]


def gather_nothing(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """The `GatherParameters` of a model that is not sharded: its parameters are whole already."""
    return nullcontext()


def with_adapter(causal_lm: Any, config: Config, gather: GatherParameters) -> Any:
    """Returns the model as the recipe trains it, with its adapters, if any.

    A starting adapter is continued, or merged into the model's weights. Raises `UserError` for an
    adapter that cannot be served exactly.
    """
    if config.model.adapter:
        check_adapter(config.model, causal_lm.config)
        if config.continues_adapter:
            return _continued_adapter(causal_lm, config, config.model.adapter, gather)
        merge_adapter(causal_lm, starting_merging(causal_lm.config, config), gather)
    if config.lora is None:
        return causal_lm.requires_grad_(True)
    return _new_adapter(causal_lm, config.lora, config.train.seed)


def starting_adapter(causal_lm: Any, config: Config, adapter: str) -> Any:
    """Loads an adapter of any kind that peft knows, by name or folder, and adds it to the model.

    Raises `UserError` if the adapter is missing, incomplete or does not fit the model.
    """
    settings, is_trained = starting_settings(config, adapter), config.continues_adapter

    def load() -> Any:
        return peft.PeftModel.from_pretrained(
            causal_lm, adapter, config=settings, is_trainable=is_trained,
            autocast_adapter_dtype=False,
        )  # fmt: skip

    return _complete(load, adapter)


def adapter_on_split(causal_lm: Any, config: Config, adapter: str, gather: GatherParameters) -> Any:
    """Adds an adapter to a model whose weights are split over the ranks.

    The adapter, of one of `SPLIT_KINDS`, is whole on every rank. Raises `UserError` as
    `starting_adapter` does.
    """
    settings = starting_settings(config, adapter)
    return _complete(lambda: _added(causal_lm, settings, adapter, gather), adapter)


def _complete(load: Callable[[], Any], adapter: str) -> Any:
    """The result of `load`, a model with the adapter.

    Raises `UserError` if the adapter is missing, incomplete or does not fit the model.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # peft only warns of weights that the files lack
            adapted = load()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None
    messages = [str(warning.message) for warning in caught]
    missing = next((message for message in messages if "missing adapter keys" in message), None)
    if missing:
        raise UserError(
            f"the LoRA adapter {adapter} does not hold all of its weights for this model: "
            f"{one_line(missing)}"
        )
    return adapted


def _continued_adapter(
    causal_lm: Any, config: Config, adapter: str, gather: GatherParameters
) -> Any:
    """Adds a checked adapter to a model that may be sharded, to train it further."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _added(causal_lm, starting_settings(config, adapter), adapter, gather)


def _added(causal_lm: Any, settings: Any, adapter: str, gather: GatherParameters) -> Any:
    """Adds an adapter of PEFT's `settings`, with its weights, to a model that may be sharded."""
    rows = getattr(settings, "trainable_token_indices", None) or getattr(
        settings, "token_indices", None
    )
    layers = tuple(f"{name}.weight" for name in rows) if isinstance(rows, dict) else ()
    layers = ("embed_tokens.weight",) if rows and not layers else layers
    read = [weight for name, weight in causal_lm.named_parameters() if name.endswith(layers)]
    stored = adapter_weights(adapter)
    with gather(read), _rows_of_whole_weights():
        adapted = peft.get_peft_model(causal_lm, settings, autocast_adapter_dtype=False)
    # Weights of the base that the file replaces have their own names in it.
    replaced = [weight for name, weight in adapted.named_parameters() if name in stored]
    with gather(replaced):
        adapted.load_adapter(
            adapter, "default", is_trainable=not settings.inference_mode,
            autocast_adapter_dtype=False,
        )  # fmt: skip
    return adapted


def kept_weights(adapted: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Weights of the base that an adapter's file holds and that training does not change.

    They have their names in the file. `adapted` is the model that continues the adapter.
    """
    named = dict(adapted.named_parameters(remove_duplicate=False))
    weights = adapter_weights(adapter)
    return {n: w for n, w in weights.items() if n in named and not named[n].requires_grad}


@contextmanager
def _rows_of_whole_weights() -> Iterator[None]:
    """Lets peft read rows of embeddings that are whole; under ZeRO-3 it would insist on CUDA."""
    keep = rows_of_tokens.check_deepspeed_zero3_enabled
    rows_of_tokens.check_deepspeed_zero3_enabled = lambda: False
    try:
        yield
    finally:
        rows_of_tokens.check_deepspeed_zero3_enabled = keep


def starting_merging(model_config: Any, config: Config) -> Merging:
    """The starting adapter, to be merged into weights of the recipe's precision."""
    adapter = config.model.adapter
    assert adapter is not None
    return Merging(
        model_config,
        getattr(torch, config.model.dtype),
        lambda hollow: starting_adapter(hollow, config, adapter),
        adapter_weights(adapter),
    )


def starting_settings(config: Config, adapter: str) -> Any:
    """PEFT's settings of the starting adapter, trainable if the recipe continues it.

    Raises `UserError` if they cannot be read or contradict the recipe's `lora` section.
    """
    try:
        settings = peft.PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None
    settings.inference_mode = not config.continues_adapter
    if config.continues_adapter and config.lora:
        _check_same_adapter(settings, config.lora, adapter)
        settings.lora_dropout = config.lora.dropout
    return settings


def _check_same_adapter(settings: Any, lora: LoraConfig, adapter: str) -> None:
    """Raises `UserError` if the recipe's `lora` section describes another adapter."""

    def modules(names: Any) -> Any:
        return names if isinstance(names, str) else sorted(names)

    for name, of_adapter, in_recipe in (
        ("rank", settings.r, lora.rank),
        ("alpha", settings.lora_alpha, lora.alpha),
        ("target_modules", modules(settings.target_modules), modules(lora.target_modules)),
    ):
        if of_adapter != in_recipe:
            raise UserError(
                f"lora.{name} is {in_recipe}, but the adapter {adapter} that the run continues has "
                f"{of_adapter}; make them equal, or leave the lora section out."
            )


def _new_adapter(causal_lm: Any, lora: LoraConfig, seed: int) -> Any:
    # All ranks draw the same numbers: each makes the whole small matrices, then shards them.
    torch.manual_seed(seed)
    return add_adapter(causal_lm, new_settings(lora))


def add_adapter(causal_lm: Any, settings: Any) -> Any:
    """Adds a new adapter of PEFT's `settings`. Raises `UserError` if it does not fit the model."""
    try:
        return peft.get_peft_model(causal_lm, settings, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:
        raise UserError(
            f"lora.target_modules {settings.target_modules} does not fit this model: "
            f"{one_line(error)}"
        ) from None


def new_settings(lora: LoraConfig) -> Any:
    """PEFT's settings of a new adapter, from the recipe's `lora` section."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


@torch.no_grad()
def merge_adapter(causal_lm: Any, merging: Merging, gather: GatherParameters) -> None:
    """Merges an adapter into a model's weights, one module at a time."""
    if merging.unties:
        untie(causal_lm, gather)
    weights = dict(causal_lm.named_parameters())
    for names in merging.changed():
        count_work()
        # A tied weight has one of its names here.
        parameters = {name: weights[name] for name in names if name in weights}
        with gather(parameters.values()):
            for name, parameter in parameters.items():
                parameter.copy_(merging.merged(name, lambda name: weights[name].detach()))


@torch.no_grad()
def untie(causal_lm: Any, gather: GatherParameters) -> None:
    """Gives the head a weight of its own, equal to the embeddings that it was tied to."""
    embeddings = causal_lm.get_input_embeddings().weight
    with gather([embeddings]):
        head = nn.Parameter(embeddings.detach().clone(), requires_grad=False)
    causal_lm.get_output_embeddings().weight = head
    causal_lm.config.tie_word_embeddings = False


@torch.no_grad()
def merge_trained(adapted: Any, gather: GatherParameters) -> Any:
    """Merges a model's own adapter into it, one layer at a time; returns the plain model."""
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            count_work()
            with gather(module.parameters()):
                module.merge()
    return adapted.unload()
