"""Runs the policy under DeepSpeed: forward and backward passes, updates, checkpoints.

No other module of the package touches a DeepSpeed engine of a training run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import nn

from cpo_ds.config import Config
from cpo_ds.engine.groups import check_int8_parts, group_warning
from cpo_ds.engine.leaves import mark_leaf_layers
from cpo_ds.engine.optimizer import make_optimizer
from cpo_ds.engine.release import free_models
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.errors import UserError
from cpo_ds.model.policy import PolicyModel
from cpo_ds.ranks.liveness import count_common_work
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.schema import PackedBatch, PairLogps, to_device


@dataclass(frozen=True)
class Update:
    """The result of one optimizer step; `grad_norm` is the gradient's norm before clipping.

    `applied` is False if the gradient was not finite. The weights are then unchanged.
    """

    grad_norm: float
    applied: bool


@contextmanager
def sharded_loading(settings: DeepSpeedSettings, ranks: Ranks) -> Iterator[None]:
    """Makes transformers split each parameter over the ranks as it loads it (ZeRO-3 only).

    Raises `UserError` on all ranks if their groups of hierarchical partitioning do not match.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    if settings.sets_groups:
        _check_groups(settings.zero.secondary_partition, ranks)
    # transformers finds this object by a weak reference while it loads: keep it alive.
    keep = HfDeepSpeedConfig(settings.as_deepspeed()) if settings.stage == 3 else None
    try:
        yield
    finally:
        if keep is not None:
            unset_hf_deepspeed_config()


def _check_groups(size: int, ranks: Ranks) -> None:
    """Compares the ranks' sizes of hpZ groups; rank 0 warns if groups are not hosts."""
    warning = group_warning(ranks.gather(size), ranks.hosts)
    if warning and ranks.rank == 0:
        print(f"warning: {warning}.", flush=True)


def gather_parameters(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Makes sharded parameters whole on every rank; afterwards rank 0's values are kept."""
    return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)


class Engine:
    """The policy under DeepSpeed: scores micro-batches, accumulates gradients, updates weights.

    `reference` is DPO's frozen model from `model.load.load_reference`, None if there is no second
    model.
    """

    def __init__(
        self,
        policy: PolicyModel,
        config: Config,
        settings: DeepSpeedSettings,
        reference: PolicyModel | None = None,
    ) -> None:
        # The models, and the optimizer of the policy.
        if settings.stage == 3:
            _prepare_for_gathering(policy)
        self.policy = policy
        self._switches_adapter_off = config.loss.reads_reference_from("adapter")
        self.reference: Any = reference and frozen_forward(reference, settings)
        self.stage = settings.stage
        self.is_float16 = config.model.dtype == "float16"
        self._plain_norm: float | None = None
        self.optimizer = optimizer = make_optimizer(policy, config.optim)
        # DeepSpeed around them.
        for_deepspeed = settings.as_deepspeed()
        is_plain = self.stage == 0 and config.model.dtype == "float32"
        if is_plain:
            # DeepSpeed does not wrap the optimizer then, and its clipping reports no norm.
            for_deepspeed["gradient_clipping"] = 0.0
            optimizer.register_step_pre_hook(self._clip_plain_gradients)
        self._max_grad_norm = config.optim.max_grad_norm
        self._deepspeed, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=for_deepspeed, dist_init_required=False
        )
        # Mend what DeepSpeed would get wrong, or do without need.
        if settings.zero.quantized_weights:
            named: Iterable[tuple[str, Any]] = policy.named_parameters()
            gathered = {name: p.ds_numel for name, p in named if not p.ds_persist}
            check_int8_parts(gathered, self.world_size)
        if is_plain and self.world_size == 1:
            # DeepSpeed would copy all gradients, twice, to add them up over this one rank.
            self._deepspeed.enable_backward_allreduce = False
        # Rank 0 would copy recovery scripts into each checkpoint; `cpo-ds export` does their work.
        self._deepspeed._copy_recovery_script = lambda folder: None

    @property
    def world_size(self) -> int:
        """Number of ranks over all hosts."""
        return self._deepspeed.world_size

    def score(self, batch: PackedBatch) -> PairLogps:
        """Scores a micro-batch under the policy and, if the loss has one, the reference.

        Under ZeRO-3 a call is a collective: every rank must make equally many.
        """
        count_common_work()
        reference = self._reference_logps(batch)
        chosen, rejected = self._deepspeed(batch)
        return batch.logps(chosen, rejected, *reference)

    @torch.no_grad()
    def _reference_logps(self, batch: PackedBatch) -> Iterable[torch.Tensor]:
        """Log-probs of chosen and rejected under the reference, [P] and [P, K]; () without one."""
        if self.reference is not None:
            return self.reference(batch)
        if self._switches_adapter_off:
            with self.policy.language_model.disable_adapter():
                return self._deepspeed(batch)
        known = batch.reference_logps
        return () if known is None else (known[:, 0], known[:, 1:])

    def predict(self, batch: PackedBatch) -> torch.Tensor:
        """The logits at each scored position: [S, V], float32; a collective as `score` is."""
        count_common_work()
        logits: torch.Tensor = self._deepspeed(batch, predicts=True)
        return logits

    def accumulate(self, loss_share: torch.Tensor) -> None:
        """Adds the gradient of a micro-batch's share of the global batch's loss.

        Shares add up to the loss over micro-batches and ranks, but DeepSpeed takes the mean over
        ranks. This is the one place that undoes the mean.
        """
        count_common_work()
        finite = torch.isfinite(loss_share.detach())
        # A loss that is not finite may have a finite gradient. It becomes NaN here, which DeepSpeed
        # finds in the gradient's norm on all ranks before it touches the weights.
        poison = torch.where(finite, 1.0, torch.nan)
        self._deepspeed.backward(loss_share * poison * self.world_size, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> Update:
        """Makes one optimizer step with the accumulated gradients; all ranks get equal results."""
        count_common_work()
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            self._deepspeed.step()
        except _NonFiniteGradient:
            return Update(grad_norm=float("nan"), applied=False)
        applied = not getattr(self._deepspeed.optimizer, "overflow", False)
        norm = self._plain_norm
        if norm is None:
            norm = float(self._deepspeed.get_global_grad_norm())
        return Update(grad_norm=norm, applied=applied)

    def _clip_plain_gradients(self, optimizer: Any, *_: Any) -> None:
        """Clips gradients and keeps their norm, as a hook that torch calls before its step."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm or torch.inf)
        self._plain_norm = norm.item()
        if not torch.isfinite(norm):
            raise _NonFiniteGradient

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Puts the model in evaluation mode, without gradients, until the `with` block ends.

        Then, also after an error, the model is in training mode again.
        """
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._deepspeed.train()

    @property
    def sharded_optimizer(self) -> Any:
        """DeepSpeed's optimizer, which wraps `optimizer`, for measurements of its memory."""
        return self._deepspeed.optimizer

    def save_shards(
        self, folder: Path, writer: CheckpointEngine, *, without_frozen: bool = False
    ) -> None:
        """Saves this rank's part of weights and optimizer in `folder`; all ranks call it.

        DeepSpeed hands each file to `writer`. `without_frozen` leaves frozen weights out.
        """
        self._deepspeed.checkpoint_engine = writer
        self._deepspeed.save_checkpoint(
            str(folder.parent),
            tag=folder.name,
            save_latest=False,
            exclude_frozen_parameters=without_frozen,
        )

    def load_shards(self, folder: Path, *, without_frozen: bool = False) -> None:
        """Loads weights and optimizer that `save_shards` saved in `folder`; all ranks call it.

        The optimizer's settings (betas, weight decay...) stay those of this run. `without_frozen`
        is for a folder without frozen weights. Raises `UserError` if DeepSpeed finds nothing there.
        """
        settings = [_settings(group) for group in self._deepspeed.optimizer.param_groups]
        loaded, _ = self._deepspeed.load_checkpoint(
            str(folder.parent),
            tag=folder.name,
            load_module_strict=not without_frozen,
            load_lr_scheduler_states=False,
        )
        if loaded is None:
            raise UserError(f"DeepSpeed finds nothing in the checkpoint {folder}.")
        # At stage 3 DeepSpeed's universal loading gives all groups the first one's settings. It
        # also gives all states the same tensor, on the host, as their step counter, so that each
        # state would advance it.
        for group, before in zip(self._deepspeed.optimizer.param_groups, settings, strict=True):
            group.update(before)
        for parameter, state in self.optimizer.state.items():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].to(parameter.device, copy=True)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over ranks, in place, and returns it."""
        torch.distributed.all_reduce(values)
        return values

    def sums_and_largest(self, sums: torch.Tensor, value: float) -> tuple[list[float], float]:
        """Sums a vector over ranks, and finds the largest of their values, in one exchange."""
        # A vector with a place for each rank's value: the sum over ranks fills them all.
        values = torch.zeros(self.world_size, dtype=sums.dtype)
        values[torch.distributed.get_rank()] = value
        together = self.sum_over_ranks(torch.cat([sums, to_device(values, sums.device)])).tolist()
        return together[: len(sums)], max(together[len(sums) :])

    def whole_parameters(self, *, trained_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, whole tensor) of the language model, one at a time; all ranks iterate."""
        for name, parameter in self.policy.language_model.named_parameters():
            if parameter.requires_grad or not trained_only:
                count_common_work()
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    yield name, parameter.detach()

    def release(self) -> None:
        """Gives up models, gradients and optimizer for good, and their memory."""
        self._deepspeed.destroy()
        if self.reference is not None and self.stage == 3:
            self.reference.destroy()
        del self.policy, self.reference, self.optimizer, self._deepspeed
        free_models()


def _prepare_for_gathering(policy: PolicyModel) -> None:
    """Tells ZeRO-3 what to gather together, and that the scoring head uses the head's weight."""
    mark_leaf_layers(policy)
    deepspeed.zero.register_external_parameter(policy.scoring_head, policy.head_weight)


def frozen_forward(policy: PolicyModel, settings: DeepSpeedSettings) -> Any:
    """Returns a frozen policy as a callable: under ZeRO-3 an engine without optimizer around it."""
    if settings.stage < 3:
        return policy
    _prepare_for_gathering(policy)
    for_deepspeed = settings.as_deepspeed()
    for_deepspeed["zero_optimization"].pop("offload_optimizer", None)  # there is none
    engine, *_ = deepspeed.initialize(model=policy, config=for_deepspeed, dist_init_required=False)
    engine.eval()
    return engine


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer's parameter group."""
    return {name: value for name, value in group.items() if name != "params"}


class _NonFiniteGradient(Exception):
    """Raised inside torch's optimizer step, before it touches a weight."""
