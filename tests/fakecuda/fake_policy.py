"""The policy as `load_policy` makes it, on CUDA tensors without data, and a pass through it.

Import this after `guard.load`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import transformers
from audit import Audit, as_one_kernel, one_kernel_operations
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model import fused_layers, load
from cpo_ds.model.layer_parts import EAGER, Parts
from cpo_ds.model.policy import PolicyModel
from cpo_ds.planner.activations import allocate
from cpo_ds.run.metrics import pair_columns
from cpo_ds.schema import PackedBatch, StepTotals, TokenizedPair

CUDA = torch.device("cuda", 0)
HOPPER = (9, 0)  # compute capability of an H100
_LOSS_FACTOR = 8.0  # of the number of ranks, or a loss scale


@contextmanager
def fake_cuda(capability: tuple[int, int] = HOPPER) -> Iterator[None]:
    """Inside it, tensors have no data, and torch tells of a GPU of this compute capability."""
    answers = {"get_device_capability": capability, "get_device_name": "NVIDIA H100 80GB HBM3"}
    patches = {name: mock.Mock(return_value=answer) for name, answer in answers.items()}
    parts = Parts(**{name: as_one_kernel(formula) for name, formula in vars(EAGER).items()})
    with (
        mock.patch.multiple(torch.cuda, **patches),
        mock.patch.multiple(
            fused_layers, why_not_compiled=lambda device: None, compiled_parts=lambda: parts
        ),
        one_kernel_operations(),
    ):
        yield


def load_real(config: Config) -> tuple[PolicyModel, str]:
    """The policy of a model folder on CUDA tensors without data, and the line for the log."""
    policy, line = load.load_policy(config, device=CUDA)
    return _on_cuda(policy), line


def load_shape(config: Config, shape: Any) -> PolicyModel:
    """The policy of a transformers configuration, as `load_policy` would make it from files."""

    def without_weights(model: Any, model_config: Any, attention: str, *_: Any) -> Any:
        causal_lm = transformers.AutoModelForCausalLM.from_config(
            model_config, dtype=getattr(torch, config.model.dtype), attn_implementation=attention
        )
        return causal_lm.to(getattr(torch, config.model.dtype))

    with (
        torch.device("meta"),
        mock.patch.multiple(
            load,
            load_model_config=lambda name: shape,
            load_causal_lm=without_weights,
            weights_fingerprint=lambda *_: "",
        ),
    ):
        policy, _ = load.load_policy(config, device=CUDA)
    for parameter in policy.parameters():  # peft keeps to the base's precision only if it has data
        parameter.data = parameter.data.to(getattr(torch, config.model.dtype))
    return _on_cuda(policy)


def _on_cuda(policy: PolicyModel) -> PolicyModel:
    """Puts parameters and buffers on CUDA, as DeepSpeed does; tied ones stay tied."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        allocate(policy, CUDA)
    return policy.train()


@dataclass
class Pass:
    """A forward and backward pass, with the operations of each of its stages."""

    audit: Audit
    batch: PackedBatch
    loss: torch.Tensor


def run_pass(policy: PolicyModel, pairs: Sequence[TokenizedPair], config: Config) -> Pass:
    """Copies a micro-batch to the device, scores it, and propagates its loss back."""
    mode = next(policy.parameters()).fake_mode  # type: ignore[attr-defined]
    packed = pack(pairs, range(len(pairs)))
    totals = StepTotals(len(pairs), len(pairs), 1, 1, 1, 1)
    audit = Audit()
    with mode, _stages(policy, audit), audit:
        batch = packed.to(CUDA)
        audit.stage = "body forward"
        chosen, rejected = policy(batch)
        logps = batch.logps(chosen, rejected)
        terms = pair_terms(logps, config.loss)
        loss = step_share(terms, totals, config.loss)
        pair_columns(terms, logps)
        # As `Engine.accumulate` does.
        poison = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        audit.stage = "head backward"
        (loss * poison * _LOSS_FACTOR).backward()
    return Pass(audit, packed, loss)


@contextmanager
def _stages(policy: PolicyModel, audit: Audit) -> Iterator[None]:
    """Sets the audit's stage when the head begins and ends, forward and backward."""

    def begin(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        audit.stage = "head forward"
        inputs[0].register_hook(lambda grad: setattr(audit, "stage", "body backward"))

    def end(*_: Any) -> None:
        audit.stage = "loss"

    head = policy.scoring_head
    hooks = [head.register_forward_pre_hook(begin), head.register_forward_hook(end)]
    yield
    for hook in hooks:
        hook.remove()
