"""Loads policy and reference from folders or by Hugging Face names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import nn

from cpo_ds.config import Config, ModelConfig
from cpo_ds.errors import UserError
from cpo_ds.model.adapter import GatherParameters, gather_nothing, with_adapter
from cpo_ds.model.attention import registered_name
from cpo_ds.model.attention_choice import choose_backend
from cpo_ds.model.base_checks import check_report, check_weights
from cpo_ds.model.base_settings import (
    check_not_quantized,
    quantization_of,
    read_settings,
)
from cpo_ds.model.fingerprint import weights_fingerprint
from cpo_ds.model.fused_layers import choose_parts, fuse_layers
from cpo_ds.model.hub import unavailable
from cpo_ds.model.logprobs import HeadTransform
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.positions import longest_unchanged, rotate_each_sequence
from cpo_ds.model.quantization import prepare_quantized, quantizer
from cpo_ds.model.recomputation import recompute_layers

# Models for which the packed layout is exact, each one tested. They are decoders whose tokens
# influence each other only through attention from transformers' registry and through positions.
SUPPORTED_MODEL_TYPES = (
    "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral",
    "olmo2", "phi3", "qwen2", "qwen3",
)  # fmt: skip


def read_model_config(name_or_path: str) -> Any:
    """A model's transformers configuration. Raises `UserError` if it cannot be read."""
    config = read_settings(name_or_path)
    text = config.get_text_config()
    padding, embeddings = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if padding is not None and embeddings is not None and not -embeddings <= padding < embeddings:
        text.pad_token_id = None  # torch refuses such an id, and packed rows have no padding
    return config


def load_model_config(name_or_path: str) -> Any:
    """The configuration of a model to train.

    Raises `UserError` for an unsupported type and for a quantized model too.
    """
    config = read_model_config(name_or_path)
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        part = config.get_text_config().model_type
        advice = f" Its text part ({part}) can be trained as a model of its own (docs/models.md)."
        raise UserError(
            f"model {name_or_path} is of type {config.model_type}, for which the packed "
            f"shared-prefix layout is not known to be exact; supported types are "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}.{advice if part in SUPPORTED_MODEL_TYPES else ''}"
        )
    check_not_quantized(name_or_path, config)
    return config


def model_shape(config: Config) -> str:
    """16 hexadecimal digits that change with the model's configuration."""
    values = load_model_config(config.model.name_or_path).to_dict()
    # A library's version, or the folder's name, makes no other model.
    shape = {k: v for k, v in values.items() if not k.startswith("_") and "version" not in k}
    text = json.dumps(shape, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_token_ids(sequences: Iterable[Sequence[int] | np.ndarray], model_config: Any) -> None:
    """Raises `UserError` if sequences hold tokens that the model has no embedding for."""
    embeddings = getattr(model_config.get_text_config(), "vocab_size", None)
    largest = max((int(np.max(tokens)) for tokens in sequences if len(tokens)), default=0)
    if embeddings is not None and largest >= embeddings:
        raise UserError(
            f"the tokenizer gives token {largest}, but the model has {embeddings} embeddings; take "
            "the tokenizer that belongs to the model."
        )


def load_policy(
    config: Config,
    *,
    device: torch.device,
    gather: GatherParameters = gather_nothing,
    place_on_device: bool = False,
) -> tuple[PolicyModel, str]:
    """Loads the policy with its adapter and attention backend; returns it and a line for the log.

    Under ZeRO-3 call it inside `engine.sharded_loading`, so that each parameter is read, split and
    freed in turn. `gather(parameters)` makes sharded parameters whole inside a `with` block and
    keeps changes to them. `place_on_device` reads weights straight onto `device`. Raises
    `UserError` for a model that cannot be read or cannot be trained exactly.
    """
    # The attention backend is chosen first, since a model is loaded for one.
    model = config.model
    model_config = load_model_config(model.name_or_path)
    backend, reason = choose_backend(
        model.attention,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        dtype=getattr(torch, model.dtype),
        softcap=getattr(model_config, "attn_logit_softcapping", None),
        head_size=getattr(model_config, "head_dim", None)
        or model_config.hidden_size // model_config.num_attention_heads,
    )
    # The fingerprint is of the weights in the files, before rounding or any adapter changes them.
    quantization = quantizer(model)
    fingerprint = _fingerprint_of_files(model, model_config) if quantization else ""
    causal_lm = load_causal_lm(
        model, model_config, registered_name(backend), device, place_on_device, quantization
    )
    fingerprint = fingerprint or weights_fingerprint(causal_lm, _sum_over_ranks)
    prepare_quantized(causal_lm)
    disable_dropout(causal_lm)
    if config.data.max_tokens > longest_unchanged(model_config):
        rotate_each_sequence(causal_lm.get_decoder())
    recompute_layers(causal_lm, model.gradient_checkpointing)
    language_model = with_adapter(causal_lm, config, gather)
    parts, layers = choose_parts(model.kernels, device)
    if parts is not None:
        fuse_layers(causal_lm.get_decoder(), parts)
    policy = PolicyModel(language_model, head_transform(model_config, model), fingerprint)
    _check_head(policy)
    # transformers loads models in evaluation mode, in which no layer recomputes its activations.
    policy.train()
    return policy, f"attention: {backend} ({reason}); {layers}"


def load_reference(
    config: Config,
    *,
    device: torch.device,
    gather: GatherParameters = gather_nothing,
    place_on_device: bool = False,
) -> PolicyModel:
    """Loads DPO's reference, a frozen copy of the policy before training.

    Arguments are those of `load_policy`. A new LoRA adapter changes nothing before training, so it
    is left out.
    """
    start = config.model_copy(update={"lora": None})
    reference, _ = load_policy(start, device=device, gather=gather, place_on_device=place_on_device)
    return reference.requires_grad_(False).eval()


def _sum_over_ranks(values: torch.Tensor) -> None:
    # The values are in host memory, which NCCL cannot read.
    reachable = values.cuda() if torch.distributed.get_backend() == "nccl" else values
    torch.distributed.all_reduce(reachable)
    values.copy_(reachable)


def _fingerprint_of_files(model: ModelConfig, model_config: Any) -> str:
    """The fingerprint of a model's weights in `model.dtype`, the same on all ranks.

    Rank 0 reads them into host memory, which frees them before the call ends.
    """
    fingerprint = [""]
    is_alone = not torch.distributed.is_initialized()
    if is_alone or torch.distributed.get_rank() == 0:
        whole = load_causal_lm(model, model_config, "eager", torch.device("cpu"), False)
        fingerprint = [weights_fingerprint(whole, _sum_over_ranks)]
    if not is_alone:
        torch.distributed.broadcast_object_list(fingerprint)
    return fingerprint[0]


def load_causal_lm(
    model: ModelConfig,
    model_config: Any,
    attention: str,
    device: torch.device,
    place_on_device: bool,
    quantization: Any = None,
) -> Any:
    """The transformers model, each of its weights with a value from the files, and none left over.

    `quantization` is transformers' settings of it; None keeps weights in `model.dtype`. Raises
    `UserError` for a model that cannot be loaded so.
    """
    expected: tuple[type[Exception], ...] = (OSError, ValueError, SafetensorError)
    if quantization_of(model_config) is None:
        check_weights(model.name_or_path, model_config)
    else:  # its files have other names than the model, and its library may raise anything
        expected = (Exception,)
    try:
        causal_lm, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            model.name_or_path,
            config=model_config,
            dtype=getattr(torch, model.dtype),
            attn_implementation=attention,
            device_map={"": device} if place_on_device else None,
            quantization_config=quantization,
            ignore_mismatched_sizes=True,  # refused by name
            output_loading_info=True,
            trust_remote_code=False,
        )
    except expected as error:
        raise unavailable("model", model.name_or_path, error) from None
    check_report(model.name_or_path, loaded)
    return causal_lm


def disable_dropout(causal_lm: nn.Module) -> None:
    """Switches off the model's own dropout (LoRA's is set by `lora.dropout`)."""
    layers = [layer for layer in causal_lm.modules() if isinstance(layer, BaseTunerLayer)]
    of_adapters = {module for layer in layers for module in layer.modules()}
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout) and module not in of_adapters:
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def head_transform(model_config: Any, model: ModelConfig) -> HeadTransform:
    """The scaling or capping of logits that the model's family applies after its head."""
    scale = getattr(model_config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(model_config, "logits_scaling", None) or 1.0  # Granite
    return HeadTransform(
        scale=scale,
        softcap=getattr(model_config, "final_logit_softcapping", None),
        chunk_tokens=None if model.head_chunk_tokens == "auto" else model.head_chunk_tokens,
    )


def _check_head(policy: PolicyModel) -> None:
    """Raises `UserError` for a head that `ScoringHead` would not apply exactly."""
    head = policy.causal_lm.get_output_embeddings()
    if isinstance(head, BaseTunerLayer | AuxiliaryTrainingWrapper):
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
