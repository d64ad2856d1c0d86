"""Tokenizer, policy and LoRA adapter, from folders or Hugging Face names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn

from cpo_ds.config import Config, LoraConfig, ModelConfig
from cpo_ds.model.attention import choose_backend, registered_name
from cpo_ds.model.fingerprint import weights_fingerprint
from cpo_ds.model.hub import not_there, one_line
from cpo_ds.model.logprobs import HeadTransform
from cpo_ds.model.policy import PolicyModel
from cpo_ds.schema import TokenizedPair, UserError

# Decoder-only models whose attention goes through transformers' registry and whose only other
# mixing of tokens is by position: those for which the packed layout is exact, each one tested.
SUPPORTED_MODEL_TYPES = (
    "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral",
    "olmo2", "phi3", "qwen2", "qwen3",
)  # fmt: skip

GatherParameters = Callable[[Iterable[nn.Parameter]], AbstractContextManager[Any]]


def _gather_nothing(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    return nullcontext()


def load_tokenizer(name_or_path: str) -> Any:
    """The model's tokenizer. Raises `UserError` where there is none."""
    try:
        return transformers.AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise not_there("tokenizer", name_or_path, error) from None


def load_model_config(name_or_path: str) -> Any:
    """The model's transformers configuration. Raises `UserError` for one that cannot be served."""
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise not_there("model", name_or_path, error) from None
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"model {name_or_path} is of type {config.model_type}, for which the packed "
            f"shared-prefix layout is not known to be exact; supported types are "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}."
        )
    return config


def check_token_ids(pairs: Iterable[TokenizedPair], model_config: Any) -> None:
    """Raises `UserError` where the tokenizer gives ids that the model has no embedding for."""
    largest = max(int(pair.tokens.max()) for pair in pairs)
    if largest >= model_config.vocab_size:
        raise UserError(
            f"the tokenizer gives token {largest}, but the model has {model_config.vocab_size} "
            "embeddings; take the tokenizer that belongs to the model."
        )


def load_policy(
    config: Config,
    *,
    device: torch.device,
    gather: GatherParameters = _gather_nothing,
    place_on_device: bool = False,
) -> tuple[PolicyModel, str]:
    """Loads the policy, its adapter and its attention backend; returns it and a line for the log.

    Under ZeRO-3 call it inside `engine.sharded_loading`: each parameter is then read, split and
    freed in turn. `gather(parameters)` makes sharded parameters whole inside its context and
    keeps what is written to them. `place_on_device` reads weights straight onto `device`.
    Raises `UserError` for a model that is not there or cannot be served exactly.
    """
    model = config.model
    model_config = load_model_config(model.name_or_path)
    backend, reason = choose_backend(
        model.attention,
        device_type=device.type,
        dtype=getattr(torch, model.dtype),
        softcap=getattr(model_config, "attn_logit_softcapping", None),
    )
    causal_lm = load_causal_lm(
        model, model_config, registered_name(backend), device, place_on_device
    )
    fingerprint = weights_fingerprint(causal_lm, _sum_over_ranks)
    _disable_dropout(causal_lm)
    if model.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    language_model = with_adapter(causal_lm, config, partial(merge_adapter, gather=gather))
    policy = PolicyModel(language_model, _head_transform(model_config, model), fingerprint)
    _check_head(policy)
    return policy, f"attention: {backend} ({reason})"


def _sum_over_ranks(values: torch.Tensor) -> None:
    # They are on the host, where NCCL does not reach.
    there = values.cuda() if torch.distributed.get_backend() == "nccl" else values
    torch.distributed.all_reduce(there)
    values.copy_(there)


def load_causal_lm(
    model: ModelConfig,
    model_config: Any,
    attention: str,
    device: torch.device,
    place_on_device: bool,
) -> Any:
    """The transformers model, its weights whole. Raises `UserError` where some are not there."""
    try:
        causal_lm, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            model.name_or_path,
            config=model_config,
            dtype=getattr(torch, model.dtype),
            attn_implementation=attention,
            device_map={"": device} if place_on_device else None,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise not_there("model", model.name_or_path, error) from None
    except RuntimeError as error:  # what sharded loading makes of another shape
        if "loading state_dict" not in str(error):
            raise
        raise not_there("model", model.name_or_path, error) from None
    for kind, problem in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        if loaded[kind]:
            names = sorted(key if isinstance(key, str) else key[0] for key in loaded[kind])
            raise UserError(
                f"the model in {model.name_or_path} {problem} {len(names)} of its weights "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), which would start "
                "at random; get the whole model, or mend its config.json."
            )
    return causal_lm


def with_adapter(causal_lm: Any, config: Config, merge: Callable[[Any], Any]) -> Any:
    """Adds the starting adapter (to be trained on, or handed to `merge`) and a new one."""
    if config.model.adapter:
        adapted = _starting_adapter(causal_lm, config, config.model.adapter)
        if config.continues_adapter:
            return adapted
        causal_lm = merge(adapted)
    if config.lora is None:
        return causal_lm.requires_grad_(True)
    return _new_adapter(causal_lm, config.lora, config.train.seed)


def _starting_adapter(causal_lm: Any, config: Config, adapter: str) -> Any:
    try:
        settings = starting_settings(config, adapter)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(
                causal_lm,
                adapter,
                config=settings,
                is_trainable=config.continues_adapter,
                autocast_adapter_dtype=False,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise not_there("LoRA adapter", adapter, error) from None
    missing = next((str(w.message) for w in said if "missing" in str(w.message)), None)
    if missing:
        raise UserError(
            f"the LoRA adapter {adapter} does not hold all of its weights for this model: "
            f"{one_line(missing)}"
        )
    return adapted


def starting_settings(config: Config, adapter: str) -> Any:
    """PEFT's settings of the starting adapter, to be trained on where the recipe says so."""
    try:
        settings = peft.PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise not_there("LoRA adapter", adapter, error) from None
    settings.inference_mode = not config.continues_adapter
    if config.continues_adapter and config.lora:
        _check_same_adapter(settings, config.lora, adapter)
        settings.lora_dropout = config.lora.dropout
    return settings


def _check_same_adapter(settings: Any, lora: LoraConfig, adapter: str) -> None:
    def modules(names: Any) -> Any:
        return names if isinstance(names, str) else sorted(names)

    for name, there, here in (
        ("rank", settings.r, lora.rank),
        ("alpha", settings.lora_alpha, lora.alpha),
        ("target_modules", modules(settings.target_modules), modules(lora.target_modules)),
    ):
        if there != here:
            raise UserError(
                f"lora.{name} is {here}, but the adapter {adapter} that the run continues has "
                f"{there}; make them equal, or leave the lora section out."
            )


def _new_adapter(causal_lm: Any, lora: LoraConfig, seed: int) -> Any:
    # The same seed on every rank: each makes the whole of these small matrices, then shards them.
    torch.manual_seed(seed)
    try:
        return peft.get_peft_model(causal_lm, new_settings(lora), autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:
        raise UserError(
            f"lora.target_modules {lora.target_modules} does not fit this model: {one_line(error)}"
        ) from None


def new_settings(lora: LoraConfig) -> Any:
    """PEFT's settings of a new adapter."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


@torch.no_grad()
def merge_adapter(adapted: Any, gather: GatherParameters = _gather_nothing) -> Any:
    """Adds a LoRA adapter to its base weights, one layer at a time; returns the plain model."""
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            with gather(module.parameters()):
                weight += module.get_delta_weight("default").to(weight.dtype)
    return adapted.unload()


def _disable_dropout(causal_lm: nn.Module) -> None:
    """Switches off the model's own dropout (LoRA's is set by `lora.dropout`)."""
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _head_transform(model_config: Any, model: ModelConfig) -> HeadTransform:
    """How this family scales or caps its logits."""
    scale = getattr(model_config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(model_config, "logits_scaling", None) or 1.0  # Granite
    return HeadTransform(
        scale=scale,
        softcap=getattr(model_config, "final_logit_softcapping", None),
        chunk_tokens=model.head_chunk_tokens,
    )


def _check_head(policy: PolicyModel) -> None:
    head = policy.causal_lm.get_output_embeddings()
    if isinstance(head, BaseTunerLayer | ModulesToSaveWrapper):
        raise UserError(
            "the adapter changes lm_head, which is applied outside its module here; leave lm_head "
            "out of the adapter's target_modules and modules_to_save."
        )
    embeddings = policy.causal_lm.get_input_embeddings()
    if policy.causal_lm.config.tie_word_embeddings and isinstance(embeddings, BaseTunerLayer):
        raise UserError(
            "the adapter changes embed_tokens, which in this model is the head's weight too; leave "
            "it out of the adapter's target_modules."
        )
    if getattr(head, "bias", None) is not None:
        raise UserError("the model's head has a bias, which is not supported.")
