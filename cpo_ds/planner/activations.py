"""Memory of a micro-batch's forward and backward pass: the real model run on tensors without data.

The policy is built from its configuration and run under torch's FakeTensorMode, so every family,
LoRA, gradient checkpointing and the chunked head cost what their own code costs. Weights and their
gradients are left out: `states` counts those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.model.attention import SharedPrefixLayout, registered_name
from cpo_ds.model.load import disable_dropout, head_transform
from cpo_ds.model.policy import PolicyModel
from cpo_ds.planner.memory_trace import MemoryTrace
from cpo_ds.schema import PackedBatch, TokenizedPair

# Tokens of a pair's shared prefix and of each branch. These are the means of 4,000 WMT22 pairs.
TYPICAL_PAIR = (55, 45, 45)
_FLASH = "cpo_ds_planned"  # transformers would look for a kernel of a name with "flash"


@dataclass(frozen=True)
class PassMemory:
    """Bytes of one micro-batch beyond weights and their gradients."""

    held: float  # what the body's forward pass keeps for its backward pass
    head: float  # most while the head is at work, forward and backward; held included
    body: float  # most while the body is

    @property
    def peak(self) -> float:
        """Most at any time."""
        return max(self.head, self.body)


@dataclass(frozen=True)
class PassModel:
    """`PassMemory` as a function of the tokens in a micro-batch: linear, as flash kernels are."""

    per_token: PassMemory
    fixed: PassMemory

    def at(self, tokens: float) -> PassMemory:
        """Bytes for a micro-batch of so many unique tokens."""
        held, head, body = (
            getattr(self.per_token, name) * tokens + getattr(self.fixed, name)
            for name in ("held", "head", "body")
        )
        return PassMemory(held, head, body)

    def most_tokens(self, room: float) -> int:
        """The largest micro-batch whose peak fits into `room` bytes; 0 where none does."""
        limits = (
            (room - getattr(self.fixed, name)) / max(getattr(self.per_token, name), 1e-9)
            for name in ("head", "body")
        )
        return max(0, int(min(limits)))


def pass_model(
    language_model: Any,
    config: Config,
    *,
    flash: bool,
    saves_inputs: bool,
    pair: tuple[int, int, int] = TYPICAL_PAIR,
) -> PassModel:
    """Measures two sizes of micro-batch of pairs with these (prefix, chosen, rejected) lengths.

    `language_model` is an outline on the meta device; it is used up. `flash` is whether a flash
    kernel attends (half precision on a GPU) rather than torch's fused attention under a mask.
    `saves_inputs` is whether every linear layer keeps its input, as under ZeRO-3, where DeepSpeed
    puts its own function in the place of torch's.
    """
    fewest = -(-config.model.head_chunk_tokens // sum(pair[1:]))  # fills a chunk of the head
    batches = fewest, 2 * fewest
    with FakeTensorMode(allow_non_fake_inputs=True), _linear(saves_inputs):
        policy = _policy(language_model, config, flash)
        decoder = policy.causal_lm.get_decoder()
        depth = len(decoder.layers)
        runs = {}
        for layers in sorted({min(depth, 4), min(depth, 2)}, reverse=True):
            decoder.layers = decoder.layers[:layers]
            runs[layers] = [_run(policy, _batch(pairs, pair)) for pairs in batches]
    small, large = (
        _line({layers: run[size] for layers, run in runs.items()}, depth) for size in (0, 1)
    )
    tokens = fewest * sum(pair)
    slope = _combine(large, small, 1 / tokens, -1 / tokens)
    return PassModel(slope, _combine(small, slope, 1.0, -tokens))


def _line(runs: dict[int, PassMemory], depth: int) -> PassMemory:
    """What a model of `depth` layers needs, from runs of shallower ones: layers are alike."""
    deep, shallow = max(runs), min(runs)
    if deep == shallow:
        return runs[deep]
    share = (depth - deep) / (deep - shallow)
    return _combine(runs[deep], runs[shallow], 1 + share, -share)


def _combine(one: PassMemory, other: PassMemory, a: float, b: float) -> PassMemory:
    return PassMemory(*(a * x + b * y for x, y in zip(astuple(one), astuple(other), strict=True)))


def _run(policy: PolicyModel, batch: PackedBatch) -> PassMemory:
    """Forward and backward over a micro-batch; each gradient is freed as soon as it is there."""
    marks: list[int] = []  # held before the head; peaks before it and during it

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
        (chosen - rejected).sum().backward()
    hook.remove()
    held, forward, head = marks
    return PassMemory(held, head, max(forward, trace.peak))


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _policy(language_model: Any, config: Config, flash: bool) -> PolicyModel:
    """The policy as `model.load.load_policy` makes it, on fake CPU tensors."""
    base = getattr(language_model, "get_base_model", lambda: language_model)()
    disable_dropout(base)
    base.set_attn_implementation(_FLASH if flash else registered_name("sdpa"))
    if config.model.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(language_model, head_transform(base.config, config.model))
    _allocate(policy)
    return policy.train()


def _allocate(policy: nn.Module) -> None:
    """Puts parameters and buffers on the CPU; tied ones stay tied."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in policy.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    fake = nn.Parameter(torch.empty_like(parameter, device="cpu"))
                    fake.requires_grad_(parameter.requires_grad)
                    if fake.requires_grad:
                        fake.register_post_accumulate_grad_hook(_drop_gradient)
                    made[parameter] = fake
                module._parameters[name] = made[parameter]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _batch(num_pairs: int, lengths: tuple[int, int, int]) -> PackedBatch:
    prefix, chosen, rejected = lengths
    pair = TokenizedPair(
        tokens=np.zeros(prefix + chosen + rejected, dtype=np.int32),
        num_prefix=prefix,
        num_chosen=chosen,
        chosen_start=prefix,
        rejected_start=prefix,
        direction="",
        origin="",
    )
    return pack([pair], (0,) * num_pairs)


class _StandInFlash(torch.autograd.Function):
    """Allocates and keeps what a variable-length flash kernel does, and computes nothing."""

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
    key_UKD = key_TKD.index_select(0, shared_prefix.key_index)
    value_UKD = value_TKD.index_select(0, shared_prefix.key_index)
    return _StandInFlash.apply(query_THD, key_UKD, value_UKD)[None], None


AttentionInterface.register(_FLASH, _stand_in_flash)


class _InputSavingLinear(torch.autograd.Function):
    """A linear layer that keeps its input also where its weight is frozen, as DeepSpeed's does."""

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
    if not saves_inputs:
        yield
        return
    with mock.patch("torch.nn.functional.linear", _input_saving_linear):
        yield
