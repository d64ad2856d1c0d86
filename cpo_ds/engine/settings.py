"""Reads the DeepSpeed JSON file, checks it and adds the settings that the recipe decides."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from cpo_ds.config import Config
from cpo_ds.engine.groups import HPZ, QWZ, group_size, why_no_quantizer
from cpo_ds.engine.zero import ZeroSettings, zero_settings
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.ranks.place import Place, place
from cpo_ds.recipe import keeps_local_checkpoints, read_deepspeed_file

# Keys that the recipe decides, and by which setting. A DeepSpeed file that has them too would be a
# second source of truth.
_RECIPE_KEYS = {
    "train_batch_size": "batch.pairs",
    "train_micro_batch_size_per_gpu": "batch.tokens_per_rank",
    "gradient_accumulation_steps": "batch.tokens_per_rank",
    "managed_gradient_accumulation": "batch.tokens_per_rank",
    "gradient_clipping": "optim.max_grad_norm",
    "optimizer": "the optim section",
    "scheduler": "optim.schedule",
    "bf16": "model.dtype and optim.states",
    "fp16": "model.dtype",
    "zero_force_ds_cpu_optimizer": "nothing: torch's fused AdamW is used on every device",
}

# Keys that a DeepSpeed file may have. DeepSpeed would ignore any other silently.
_KNOWN_KEYS = (
    "zero_optimization", "communication_data_type", "data_types", "activation_checkpointing", "aio",
    "prescale_gradients", "gradient_predivide_factor", "comms_logger", "flops_profiler",
    "wall_clock_breakdown", "memory_breakdown", "timers", "checkpoint",
)  # fmt: skip

# DeepSpeed's switches for optim.states: bfloat16. It refuses one without the other on a GPU.
_BFLOAT16_STATES = ("bf16_master_weights_and_grads", "bf16_optimizer_states")

# ZeRO options that a DeepSpeed file must not switch on; docs/configurations.md explains each.
_REFUSED = {
    "mics_shard_size": "DeepSpeed has no MiCS any more; ds_configs/zero3-hierarchical.json keeps a "
    "copy of the weights on each host",
    "mics_hierarchical_params_gather": "DeepSpeed has no MiCS any more",
    "zeropp_loco_param": "DeepSpeed has no LoCo any more",
    "zero_quantized_gradients": "DeepSpeed's kernel takes bfloat16 for float16, and its sums over "
    "a host are not divided like those of other gradients, so gradients would be wrong",
    "zero_quantized_nontrainable_weights": "DeepSpeed keeps frozen weights as int8 in float16 "
    "models only, and only if a program asks it to, which this one does not",
}


@dataclass(frozen=True)
class DeepSpeedSettings:
    """DeepSpeed's settings of a run: those of the JSON file, and those that the recipe decides.

    `file` is the content of the JSON file with hpZ's `auto` resolved; manifests keep it.
    """

    zero: ZeroSettings
    file: dict[str, Any]
    _from_recipe: dict[str, Any]  # DeepSpeed's keys that the recipe decides
    keeps_local_checkpoints: bool = False  # each host keeps its part on its own disk
    is_universal: bool = False  # the engine loads a universal checkpoint

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return self.zero.stage

    @property
    def sets_groups(self) -> bool:
        """Whether the file has a size for hpZ, hierarchical partitioning."""
        return HPZ in self.file["zero_optimization"]

    def as_deepspeed(self) -> dict[str, Any]:
        """Returns a new dictionary for `deepspeed.initialize`, which may change it."""
        settings = copy.deepcopy(self.file | self._from_recipe)
        if self.is_universal:
            settings.setdefault("checkpoint", {})["load_universal"] = True
        return settings

    def with_universal_loading(self) -> DeepSpeedSettings:
        """Returns these settings for an engine that loads a universal checkpoint."""
        return replace(self, is_universal=True)

    def without_groups(self) -> DeepSpeedSettings:
        """Returns these settings without hpZ, with which DeepSpeed loads no second model."""
        zero = {k: v for k, v in self.file["zero_optimization"].items() if k != HPZ}
        return replace(self, file=self.file | {"zero_optimization": zero})


def read_deepspeed_settings(
    config: Config, planned: Place | None = None, *, on_this_machine: bool = False
) -> DeepSpeedSettings:
    """Reads and checks the recipe's DeepSpeed file. Raises `UserError` for a bad one.

    `planned` is a cluster to plan for. Without it the settings are for the ranks of this run. In
    that case, or with `on_this_machine`, this machine must have the devices that they need.
    """
    path, file = read_deepspeed_file(config)
    _check_file(file, path)
    ranks = planned or place()
    # Check the file against the recipe and, unless it is for planning only, this machine.
    section = file["zero_optimization"]
    if config.model.dtype == "float16" and not section.get("stage"):
        raise UserError(
            f"model.dtype is float16 and {path} sets ZeRO stage 0, at which DeepSpeed divides "
            "gradients by a loss scale without having multiplied the loss by it; use bfloat16 or "
            "float32, or a file of stage 1, 2 or 3."
        )
    if HPZ in section:
        section = section | {HPZ: group_size(section[HPZ], ranks, path)}
    zero = zero_settings(section)
    if config.model.quantization and zero.stage == 3:
        raise UserError(
            f"model.quantization is {config.model.quantization} and {path} sets ZeRO stage 3, "
            "which cannot split weights of 4 bits over ranks; use a file of stage 0, 1 or 2, in "
            "which each rank holds the small base whole."
        )
    if config.optim.states == "bfloat16":
        _check_bfloat16_states(config, zero, file, path)
    if planned is None or on_this_machine:
        _check_devices(config, zero, path)
    if zero.secondary_partition > 1 and config.loss.reads_reference_from("model"):
        raise UserError(
            f"{path} sets {HPZ}, with which DeepSpeed loads no second model, and loss.reference is "
            "one; set loss.reference to precomputed, or to adapter with a lora section."
        )
    return DeepSpeedSettings(
        zero,
        file | {"zero_optimization": section},
        _settings_from_recipe(config, ranks.world_size),
        keeps_local_checkpoints=keeps_local_checkpoints(file),
    )


def _settings_from_recipe(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings that the recipe decides."""
    precision = {"bfloat16": "bf16", "float16": "fp16"}.get(config.model.dtype)
    states = dict.fromkeys(_BFLOAT16_STATES, True) if config.optim.states == "bfloat16" else {}
    return {
        # Micro-batches hold as many pairs as fit, so their number differs between steps. DeepSpeed
        # takes any number of backward passes, then one step. It trusts these counts of 1.
        "managed_gradient_accumulation": False,
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        "gradient_clipping": config.optim.max_grad_norm,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **({precision: {"enabled": True} | states} if precision else {}),
    }


def _check_bfloat16_states(
    config: Config, zero: ZeroSettings, file: dict[str, Any], path: Path
) -> None:
    """Raises `UserError` if DeepSpeed would refuse or ignore optimizer states in bfloat16."""
    reason = None
    if config.model.dtype != "bfloat16":
        reason = f"model.dtype is {config.model.dtype}: DeepSpeed has such states in bfloat16 only"
    elif zero.stage == 0:
        reason = f"{path} sets ZeRO stage 0, which has none; use a file of stage 1, 2 or 3"
    elif zero.offload_optimizer:
        reason = (
            f"{path} offloads the optimizer, which DeepSpeed then updates by an AdamW of its own "
            "only; use a file without offload_optimizer"
        )
    elif zero.stage == 1 and "grad_accum_dtype" in file.get("data_types", {}):
        reason = (
            f"{path} sets data_types.grad_accum_dtype at stage 1, where DeepSpeed may then keep "
            "the states in float32; remove it, or use stage 2 or 3"
        )
    if reason is not None:
        raise UserError(f"optim.states is bfloat16 and {reason}, or set optim.states to float32.")


def _check_devices(config: Config, zero: ZeroSettings, path: Path) -> None:
    """Raises `UserError` for settings that this machine has no device or compiler for."""
    if config.model.dtype == "float16" and not torch.cuda.is_available():
        raise UserError(
            "model.dtype is float16, in which DeepSpeed trains on a GPU only; on a CPU use float32."
        )
    reason = why_no_quantizer() if zero.quantized_weights else None
    if reason is not None:
        raise UserError(
            f"{path} sets {QWZ}, which needs CUDA kernels: {reason}; or use "
            "ds_configs/zero3-hierarchical.json, which is exact and needs no kernels."
        )


def _check_file(settings: dict[str, Any], path: Path) -> None:
    """Raises `UserError` for keys that DeepSpeed would ignore, or refuse after a long load."""
    # Keys.
    for key in settings:
        if key in _RECIPE_KEYS:
            raise UserError(
                f"{path} sets {key}, which the recipe decides ({_RECIPE_KEYS[key]}); remove it."
            )
        if "sequence_parallel" in key or "seq_parallel" in key or "ulysses" in key:
            raise UserError(
                f"{path} sets {key}, but cpo_ds has no sequence parallelism: a row is made of "
                "short pairs that do not see each other, and ranks already divide it between pairs "
                "(docs/configurations.md); remove it."
            )
        if key not in _KNOWN_KEYS:
            hint = did_you_mean(key, _KNOWN_KEYS, least_likeness=0.6)
            raise UserError(f"{path}: unknown key {key}{hint}; known are {', '.join(_KNOWN_KEYS)}.")
    # Sections.
    if not isinstance(settings.get("zero_optimization"), dict):
        raise UserError(f"{path}: zero_optimization must be a JSON object; see ds_configs/.")
    _check_zero(settings["zero_optimization"], path)
    checkpoint = settings.get("checkpoint", {"use_node_local_storage": False})
    if not isinstance(checkpoint, dict) or list(checkpoint) != ["use_node_local_storage"]:
        raise UserError(
            f"{path}: checkpoint takes one key, use_node_local_storage (true: checkpoints on "
            "each host's own disk); the rest belongs in the recipe's checkpoint section."
        )
    if not isinstance(checkpoint["use_node_local_storage"], bool):
        raise UserError(f"{path}: checkpoint.use_node_local_storage must be true or false.")


def _check_zero(section: dict[str, Any], path: Path) -> None:
    """Raises `UserError` for ZeRO options that DeepSpeed gets wrong, ignores or fails at late."""
    # Options that are refused by name, then those with values that DeepSpeed itself refuses.
    for key, reason in _REFUSED.items():
        if section.get(key):
            raise UserError(f"{path} sets zero_optimization.{key}: {reason}; remove it.")
    try:
        zero = DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: zero_optimization.{field}: {first['msg']}.") from None
    # Combinations that DeepSpeed accepts and gets wrong.
    for offload in ("offload_optimizer", "offload_param"):
        device = getattr(getattr(zero, offload), "device", None)
        if device == "nvme":
            raise UserError(
                f"{path}: zero_optimization.{offload}.device is nvme, from which runs do not "
                "resume correctly (docs/configurations.md); use cpu."
            )
    if zero.stage == 1 and zero.overlap_comm:
        raise UserError(
            f"{path}: DeepSpeed has no overlap_comm at stage 1 in this mode; set it to false."
        )
    hierarchical = section.get(HPZ, 1) not in (0, 1)
    for key, is_set in ((HPZ, hierarchical), (QWZ, zero.zero_quantized_weights)):
        if is_set and zero.stage != 3:
            raise UserError(
                f"{path} sets {key} at stage {int(zero.stage)}, where DeepSpeed ignores it; set "
                "stage to 3, or remove it."
            )
    if hierarchical and getattr(zero.offload_param, "device", "none") != "none":
        raise UserError(
            f"{path} sets {HPZ} and offload_param: the second copy would be in host memory too, "
            "and losses were wrong in tests (DeepSpeed's issue 6926); remove one of them."
        )
