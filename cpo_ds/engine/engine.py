"""The one place that runs DeepSpeed: initialization, scaling, gathering, step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import nn

from cpo_ds.config import Config, OptimConfig
from cpo_ds.engine.groups import HPZ, QWZ, check_int8_parts, group_warning
from cpo_ds.engine.settings import zero_stage
from cpo_ds.model.policy import PolicyModel
from cpo_ds.ranks.liveness import count_common_work
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.schema import PackedBatch, PairLogps


@dataclass(frozen=True)
class Update:
    """What one optimizer step did: the gradient's norm before clipping, and whether it counted.

    `applied` is False where the gradient was not finite: the weights are then as they were.
    """

    grad_norm: float
    applied: bool


@contextmanager
def sharded_loading(settings: dict[str, Any], ranks: Ranks) -> Iterator[None]:
    """Inside it, transformers splits each parameter over the ranks as it loads it (ZeRO-3 only).

    Raises `UserError` on all ranks where their groups of hierarchical partitioning do not match.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    _check_groups(settings["zero_optimization"], ranks)
    # transformers looks at a weak reference to this object while it loads.
    keep = HfDeepSpeedConfig(settings) if zero_stage(settings) == 3 else None
    try:
        yield
    finally:
        if keep is not None:
            unset_hf_deepspeed_config()


def _check_groups(zero: dict[str, Any], ranks: Ranks) -> None:
    """Compares what the ranks made of `auto`; rank 0 says where groups are no hosts."""
    if HPZ not in zero:
        return
    warning = group_warning(ranks.gather(zero[HPZ]), ranks.hosts)
    if warning and ranks.rank == 0:
        print(f"warning: {warning}.", flush=True)


def gather_parameters(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Makes sharded parameters whole on every rank; rank 0's changes to them are kept."""
    return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)


class Engine:
    """The policy under DeepSpeed: forward, accumulate gradients, update.

    `reference` is DPO's, as `model.load.load_reference` makes it, where it is a model of its own.
    """

    def __init__(
        self,
        policy: PolicyModel,
        config: Config,
        settings: dict[str, Any],
        reference: PolicyModel | None = None,
    ) -> None:
        if zero_stage(settings) == 3:
            _share_head(policy)
        self.policy = policy
        self._switches_adapter_off = config.loss.takes_reference_from("adapter")
        self.reference = reference and _sharded_reference(reference, settings)
        self.stage = zero_stage(settings)
        self.is_float16 = config.model.dtype == "float16"
        self._plain_norm: float | None = None
        self.optimizer = optimizer = _optimizer(policy, config.optim)
        if self.stage == 0 and config.model.dtype == "float32":
            # DeepSpeed wraps nothing here, so its clipping is ours: it reports no norm.
            settings = settings | {"gradient_clipping": 0.0}
            optimizer.register_step_pre_hook(self._clip_plain_gradients)
        self._max_grad_norm = config.optim.max_grad_norm
        self.deepspeed, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=settings, dist_init_required=False
        )
        if settings["zero_optimization"].get(QWZ):
            named: Iterable[tuple[str, Any]] = policy.named_parameters()
            gathered = {name: p.ds_numel for name, p in named if not p.ds_persist}
            check_int8_parts(gathered, self.world_size)
        if self.stage == 0 and config.model.dtype == "float32" and self.world_size == 1:
            # It would copy all gradients, twice, to add them up over this one rank.
            self.deepspeed.enable_backward_allreduce = False

    @property
    def world_size(self) -> int:
        """Ranks over all hosts."""
        return self.deepspeed.world_size

    def score(self, batch: PackedBatch) -> PairLogps:
        """One forward pass, and one of the reference where there is one to be made.

        A collective under ZeRO-3: every rank must make as many.
        """
        count_common_work()
        reference = self._reference_logps(batch)
        chosen, rejected = self.deepspeed(batch)
        counts = (batch.num_chosen_tokens, batch.num_rejected_tokens)
        return PairLogps(chosen, rejected, *counts, *reference)

    @torch.no_grad()
    def _reference_logps(self, batch: PackedBatch) -> Iterable[torch.Tensor]:
        """Log-probs of chosen and rejected under the reference, [P] each; nothing without one."""
        if self.reference is not None:
            return self.reference(batch)
        if self._switches_adapter_off:
            with self.policy.language_model.disable_adapter():
                return self.deepspeed(batch)
        return () if batch.reference_logps is None else batch.reference_logps.unbind(1)

    def accumulate(self, loss_share: torch.Tensor) -> None:
        """Backward pass of a micro-batch's share of the global batch's loss.

        The one place where scaling is undone: shares add up over micro-batches and ranks to the
        loss, but DeepSpeed takes the mean over ranks.
        """
        count_common_work()
        finite = torch.isfinite(loss_share.detach())
        # A share that is not finite must not hide behind a finite gradient: it becomes NaN, which
        # DeepSpeed finds in the gradient's norm on all ranks before it touches the weights.
        poison = torch.where(finite, 1.0, torch.nan)
        self.deepspeed.backward(loss_share * poison * self.world_size, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> Update:
        """One optimizer step over what was accumulated; all ranks get the same answer."""
        count_common_work()
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            self.deepspeed.step()
        except _NonFiniteGradient:
            return Update(grad_norm=float("nan"), applied=False)
        applied = not getattr(self.deepspeed.optimizer, "overflow", False)
        norm = self._plain_norm
        if norm is None:
            norm = float(self.deepspeed.get_global_grad_norm())
        return Update(grad_norm=norm, applied=applied)

    def _clip_plain_gradients(self, optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm or torch.inf)
        self._plain_norm = norm.item()
        if not torch.isfinite(norm):
            raise _NonFiniteGradient

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over ranks, in place."""
        torch.distributed.all_reduce(values)
        return values

    def max_over_ranks(self, value: float) -> float:
        """The largest of the ranks' values."""
        values = torch.tensor([value], dtype=torch.float64, device=self.deepspeed.device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return values.item()

    def whole_parameters(self, *, trained_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, whole tensor) of the language model, one at a time, on all ranks alike."""
        for name, parameter in self.policy.language_model.named_parameters():
            if parameter.requires_grad or not trained_only:
                count_common_work()
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    yield name, parameter.detach()


def _share_head(policy: PolicyModel) -> None:
    """The head is applied outside its own module, so ZeRO-3 must be told who uses it."""
    deepspeed.zero.register_external_parameter(policy.scoring_head, policy.head_weight)


def _sharded_reference(reference: PolicyModel, settings: dict[str, Any]) -> Any:
    """A frozen model as it is called: under ZeRO-3 by an engine of its own, without optimizer."""
    if zero_stage(settings) < 3:
        return reference
    _share_head(reference)
    zero = {k: v for k, v in settings["zero_optimization"].items() if k != "offload_optimizer"}
    engine, *_ = deepspeed.initialize(
        model=reference, config=settings | {"zero_optimization": zero}, dist_init_required=False
    )
    engine.eval()
    return engine


class _NonFiniteGradient(Exception):
    """Raised inside torch's optimizer step, before it touches a weight."""


def _optimizer(policy: PolicyModel, optim: OptimConfig) -> torch.optim.AdamW:
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            (other if _is_norm_or_bias(name) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": other, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def _is_norm_or_bias(name: str) -> bool:
    """What transformers' Trainer does not decay either."""
    return name.endswith("bias") or "norm" in name.lower()
