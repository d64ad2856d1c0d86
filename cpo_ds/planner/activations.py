"""Memory of a micro-batch's forward and backward pass, measured on tensors without data.

The real policy is built from its configuration and run on torch's meta device. So every model
family, LoRA, gradient checkpointing and the chunked head cost what their own code allocates.
Weights and their gradients are left out: `states` counts those. Attention on a CPU chooses its
operations by the device: that runs on CPU tensors of torch's FakeTensorMode, which takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.model.attention import registered_name
from cpo_ds.model.attention_choice import choose_backend
from cpo_ds.model.fused_layers import fuse_layers
from cpo_ds.model.layer_parts import EAGER
from cpo_ds.model.load import disable_dropout, head_transform
from cpo_ds.model.logprobs import chunk_tokens
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.recomputation import recompute_layers
from cpo_ds.model.shared_prefix import SharedPrefixLayout, gather_keys
from cpo_ds.planner.memory_trace import MemoryTrace
from cpo_ds.planner.passes import DepthModel, PassMemory, depth_model
from cpo_ds.planner.row_shape import PAIR
from cpo_ds.schema import PackedBatch, TokenizedPair

TYPICAL_PAIR = PAIR.lengths  # tokens of a pair's shared prefix, chosen and rejected translation
# The name has no "flash": for one with it, transformers would look for a kernel to import.
_FLASH = "cpo_ds_planned"


def measure_passes(
    language_model: Any,
    config: Config,
    *,
    recomputes: bool,
    flash: bool,
    saves_inputs: bool,
    pair: tuple[int, ...] = TYPICAL_PAIR,
) -> DepthModel:
    """Measures two depths and two sizes of micro-batch, and draws lines through them.

    `language_model` is an outline on the meta device; it is used up. `recomputes` is whether all of
    its layers recompute their activations, or none. `flash` is whether attention runs in a flash
    kernel (16 bits on a GPU) rather than pair by pair. `saves_inputs` is whether every linear layer
    keeps its input: under ZeRO-3 DeepSpeed replaces torch's function by one that does. `pair` gives
    the tokens of (prefix, chosen, rejected, ...).
    """
    # As many pairs as fill a chunk of the head, rounded up.
    fewest = -(-_chunk(language_model, config) // sum(pair[1:]))
    # Run models of two small depths: layers are alike, and a deep model takes long. Not of one
    # layer, since the first one may keep less: its input needs no gradient if weights are frozen.
    decoder = getattr(language_model, "get_base_model", lambda: language_model)().get_decoder()
    deep = min(len(decoder.layers), 3)
    decoder.layers = decoder.layers[:deep]
    without_data = nullcontext() if flash else FakeTensorMode(allow_non_fake_inputs=True)
    device = torch.device("meta" if flash else "cpu")
    with without_data, _linear(saves_inputs):
        policy = _policy(
            language_model, config, device,
            recomputes=recomputes, flash=flash, saves_inputs=saves_inputs,
        )  # fmt: skip
        runs: dict[int, tuple[PassMemory, PassMemory]] = {}
        for layers in sorted({deep, 2 if deep > 2 else 1}, reverse=True):
            decoder.layers = decoder.layers[:layers]
            batches = (_batch(pairs, pair).to(device) for pairs in (fewest, 2 * fewest))
            small, large = (_run(policy, batch) for batch in batches)
            runs[layers] = small, large
    tokens = fewest * sum(pair)
    return depth_model((tokens, 2 * tokens), runs)


def _run(policy: PolicyModel, batch: PackedBatch) -> PassMemory:
    """Measures a forward and backward pass; each gradient is freed as soon as it is computed."""
    marks: list[int] = []  # memory before the head runs; peaks before it and during it

    def head_begins(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        marks.extend((trace.current, trace.peak))
        trace.reset_peak()
        inputs[0].register_hook(head_ends)

    def head_ends(grad: torch.Tensor) -> None:
        marks.append(trace.peak)
        trace.reset_peak()

    hook = policy.scoring_head.register_forward_pre_hook(head_begins)
    with MemoryTrace([*policy.parameters(), *policy.buffers()]) as trace:
        chosen, rejected = policy(batch)
        (chosen[:, None] - rejected).sum().backward()
    hook.remove()
    held, forward, head = marks
    return PassMemory(held, head, max(forward, trace.peak))


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _policy(
    language_model: Any,
    config: Config,
    device: torch.device,
    *,
    recomputes: bool,
    flash: bool,
    saves_inputs: bool = False,
) -> PolicyModel:
    """Builds the policy like `model.load.load_policy`, but of tensors without data."""
    base = getattr(language_model, "get_base_model", lambda: language_model)()
    disable_dropout(base)
    base.set_attn_implementation(_FLASH if flash else registered_name(_attention(base, config)))
    recompute_layers(base, recomputes)
    if config.model.kernels != "transformers":
        # A linear layer that is split over ranks (ZeRO-3) runs in its own module.
        fuse_layers(base.get_decoder(), EAGER, adapters=not saves_inputs)
    policy = PolicyModel(language_model, head_transform(base.config, config.model))
    allocate(policy, device)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return policy.train()


def _chunk(language_model: Any, config: Config) -> int:
    """Scored tokens in a chunk of the head's."""
    chunk = config.model.head_chunk_tokens
    weight = language_model.get_output_embeddings().weight
    return chunk_tokens(len(weight), trained=weight.requires_grad) if chunk == "auto" else chunk


def _attention(base: Any, config: Config) -> str:
    """The backend that a run takes without a kernel for sequences of different lengths."""
    return choose_backend(
        "auto",
        capability=None,
        dtype=getattr(torch, config.model.dtype),
        softcap=getattr(base.config, "attn_logit_softcapping", None),
        head_size=0,
    )[0]


def allocate(model: nn.Module, device: torch.device) -> None:
    """Replaces parameters and buffers by empty ones on a device; tied ones stay tied.

    They get no memory on the meta device and inside a FakeTensorMode.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}  # by the parameter before
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    empty = torch.empty_like(parameter, device=device)
                    made[parameter] = nn.Parameter(empty, parameter.requires_grad)
                module._parameters[name] = made[parameter]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _batch(num_pairs: int, lengths: tuple[int, ...]) -> PackedBatch:
    return pack([pair_of_lengths(*lengths)], (0,) * num_pairs)


def pair_of_lengths(prefix: int, *branches: int) -> TokenizedPair:
    """A pair of so many tokens, whatever they are; its completions begin after the prefix."""
    return TokenizedPair(
        tokens=np.zeros(prefix + sum(branches), dtype=np.int32),
        num_prefix=prefix,
        branch_lengths=branches,
        starts=(prefix,) * len(branches),
        direction="",
        origin="",
    )


class _StandInFlash(torch.autograd.Function):
    """Allocates the memory of a variable-length flash kernel without computing anything."""

    @staticmethod
    def forward(
        ctx: Any, query_THD: torch.Tensor, key_UKD: torch.Tensor, value_UKD: torch.Tensor
    ) -> torch.Tensor:
        output_THD = torch.empty_like(query_THD)
        sums_HT = query_THD.new_empty(query_THD.shape[1::-1], dtype=torch.float32)
        ctx.save_for_backward(query_THD, key_UKD, value_UKD, output_THD, sums_HT)
        return output_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(state) for state in ctx.saved_tensors[:3])


def _stand_in_flash(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared_prefix: SharedPrefixLayout,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    query_THD, key_TKD, value_TKD = (state[0].transpose(0, 1) for state in (query, key, value))
    key_UKD, value_UKD = (gather_keys(state, shared_prefix) for state in (key_TKD, value_TKD))
    return _StandInFlash.apply(query_THD, key_UKD, value_UKD)[None], None


AttentionInterface.register(_FLASH, _stand_in_flash)


class _InputSavingLinear(torch.autograd.Function):
    """DeepSpeed's linear layer under ZeRO-3: it keeps its input even if its weight is frozen."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        return states.matmul(weight.t())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        (grad,) = grads
        grad_states = grad.matmul(weight) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_states, None
        return grad_states, grad.flatten(0, -2).t().matmul(states.flatten(0, -2))


def _input_saving_linear(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    result = _InputSavingLinear.apply(states, weight)
    return result if bias is None else result + bias


@contextmanager
def _linear(saves_inputs: bool) -> Iterator[None]:
    """Inside it, linear layers keep their inputs if `saves_inputs`."""
    if not saves_inputs:
        yield
        return
    with mock.patch("torch.nn.functional.linear", _input_saving_linear):
        yield
