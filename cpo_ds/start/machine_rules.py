"""Moves precision, memory, checkpoints, logs and DeepSpeed's settings from other trainers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cpo_ds.start.foreign_files import Source, read_deepspeed
from cpo_ds.start.moving import ASSUMED, EQUAL, LOST, OTHERWISE, Moving

_TRACKERS = ("wandb", "mlflow", "trackio")  # besides TensorBoard

_ATTENTION = {"sdpa": "sdpa", "flash_attention_3": "flash_attn_3", "flex_attention": "flex"}
_TOKENS = 8192  # of a micro-batch, as in the shipped recipe for own pairs


def move_precision(m: Moving, source: Source) -> None:
    """The type of the weights, quantization, attention and recomputation."""
    mixed = source.accelerate.get("mixed_precision") or source.launcher.get("mixed_precision")
    if m.has("fp16") and m.flag("fp16"):
        m.put("model.dtype", "float16", "fp16")
        m.flag("bf16")
    elif m.flag("bf16"):
        m.put("model.dtype", "bfloat16", "bf16")
    elif mixed in ("bf16", "fp16"):
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[mixed]
        m.assume("model.dtype", dtype, f"mixed_precision {mixed} of accelerate")
    else:
        m.put("model.dtype", "float32", "bf16")
    if mixed in ("bf16", "fp16") and mixed[0] != m.values["model.dtype"].value[0]:
        m.differences[OTHERWISE].append(
            f"mixed_precision: {mixed} in accelerate's file, but the command's own setting counts"
        )
    if m.values["model.dtype"].value != "float32":
        m.differences[OTHERWISE].append(
            "precision: weights are held in model.dtype beside a float32 copy for AdamW; other "
            "trainers may hold them in float32 and compute in bf16 or fp16"
        )
    for name in ("torch_dtype", "dtype"):
        if m.has(name):
            m.tell(
                OTHERWISE,
                name,
                "the type that the weights are loaded in; here model.dtype is "
                "that of the computation too",
            )
    attention = str(m.take("attn_implementation") or "")
    if attention in _ATTENTION:
        m.put("model.attention", _ATTENTION[attention], "attn_implementation")
    elif attention:
        m.tell(EQUAL, "attn_implementation", "model.attention: auto takes the fastest that fits")


def move_recomputation(m: Moving, is_on: bool, origin: str) -> None:
    """Gradient checkpointing, and the tokens of a micro-batch."""
    m.put(
        "model.gradient_checkpointing",
        "auto" if is_on else False,
        origin,
        "of as few layers as fit the GPU" if is_on else "",
    )
    most = m.values["data.max_tokens"].value
    tokens = max(_TOKENS, 2 * most)
    m.assume(
        "batch.tokens_per_rank",
        tokens,
        "a GPU computes at most so many at once; lower it if memory runs out",
    )


def move_saving(m: Moving, total: int | None) -> None:
    """Checkpoints, logs, trackers and the folder of the run."""
    strategy = str(m.take("save_strategy"))
    if strategy == "steps":
        steps = _steps(m, "save_steps", total, "checkpoint.every_steps")
        if steps:
            m.put("checkpoint.every_steps", steps, "save_steps")
    else:
        if m.has("save_steps"):
            m.tell(EQUAL, "save_steps", f"save_strategy is {strategy}, so it counts for nothing")
        m.tell(
            OTHERWISE,
            "save_strategy",
            "a checkpoint is saved at the end alone; set checkpoint.every_steps for others",
        )
    if m.has("save_total_limit"):
        m.put("checkpoint.keep_last", m.whole("save_total_limit"), "save_total_limit")
    else:
        m.differences[ASSUMED].append(
            f"checkpoint.keep_last: 2, the default here; {m.trainer} keeps all"
        )
    if m.has("resume_from_checkpoint"):
        m.tell(
            LOST,
            "resume_from_checkpoint",
            "checkpoints of other trainers are not read; a run resumes from its own by itself",
        )
    every = _steps(m, "logging_steps", total, "logging.every_steps")
    if (strategy := str(m.take("logging_strategy", "steps"))) != "steps":
        m.tell(OTHERWISE, "logging_strategy", f"a line is written every {every or 1} steps")
    if every:
        m.put("logging.every_steps", every, "logging_steps")
    trackers = m.names("report_to")
    if m.has("report_to"):
        shown = bool({"tensorboard", "all"} & set(trackers))
        m.put("logging.tensorboard", shown, "report_to")
        if known := [name for name in _TRACKERS if name in trackers]:
            m.put("logging.trackers", known, "report_to", "each must be installed")
        others = sorted(set(trackers) - {*_TRACKERS, "tensorboard", "all", "none"})
        if others:
            m.tell(EQUAL, "report_to", f"{', '.join(others)}: there is no such tracker here")
    folder = m.take("output_dir")
    if folder:
        m.put("output_dir", str(folder), "output_dir")
    else:
        m.assume("output_dir", "runs/imported", "the file names no folder")


def _steps(m: Moving, name: str, total: int | None, field: str) -> int | None:
    """A number of steps, or a share of all steps; None if the share cannot be turned into steps."""
    steps = m.number(name)
    if steps >= 1 or steps <= 0:
        return int(steps) or None
    if total:
        return max(1, math.ceil(steps * total))
    m.tell(OTHERWISE, name, f"a share of an unknown number of steps; set {field}, or give --rows N")
    return None


def move_evaluation(m: Moving, total: int | None, holds_out: bool) -> None:
    """The steps between evaluations, if pairs are held out."""
    name = "eval_strategy" if m.has("eval_strategy") else "evaluation_strategy"
    strategy = str(m.take(name, m.take("eval_strategy")))
    if strategy == "False":  # as YAML reads no
        strategy = "no"
    if strategy == "steps" and holds_out:
        origin = "eval_steps" if m.has("eval_steps") else "logging_steps"
        steps = _steps(m, origin, total, "train.eval_every_steps")
        if steps:
            m.put("train.eval_every_steps", steps, origin)
    elif strategy == "no":
        if m.has("eval_steps"):
            m.tell(EQUAL, "eval_steps", "no eval_strategy is set, so there are no evaluations")
    elif holds_out:
        m.tell(
            OTHERWISE,
            name,
            "evaluations come before and after training, and every train.eval_every_steps",
        )
    else:
        m.tell(
            LOST,
            name,
            "no pairs are held out; set data.eval_fraction, data.eval_path and "
            "train.eval_every_steps",
        )
        if m.has("eval_steps"):
            m.tell(LOST, "eval_steps", "see eval_strategy")


def move_deepspeed(m: Moving, source: Source, script: Path) -> None:
    """A shipped DeepSpeed file for the stage of the other trainer's configuration."""
    value, origin = m.take("deepspeed"), "deepspeed"
    problem = ""
    if value:
        settings, problem = read_deepspeed(value, script)
        settings = settings.get("zero_optimization") or {}
        stage = settings.get("stage")
        offload = "offload_optimizer" in settings or "offload_param" in settings
    else:
        settings = (source.accelerate.get("deepspeed_config") or {}) | source.launcher
        stage, origin = settings.get("zero_stage"), "zero_stage"
        offload = str(settings.get("offload_optimizer_device", "none")) not in ("none", "None")
        if str(settings.get("offload_param_device", "none")) not in ("none", "None"):
            m.differences[EQUAL].append(
                "offload_param_device: weights stay on the GPU; zero3-offload keeps AdamW's states "
                "in host memory"
            )
    if str(stage) not in ("0", "1", "2", "3"):
        reason = "the first of zero0 to zero3-offload that fits"
        m.assume("deepspeed", "auto", f"{reason}{f' ({problem})' if problem else ''}")
    else:
        name = "zero3-offload" if str(stage) == "3" and offload else f"zero{stage}"
        m.assume("deepspeed", name, f"stage {stage} of {origin}; all stages give the same numbers")
    for name in ("fsdp", "fsdp_config"):
        if m.take(name):
            m.tell(EQUAL, name, "DeepSpeed's zero3 splits the weights instead")


def tell_launcher(m: Moving, source: Source) -> None:
    """Names what the launcher was told that has no place in a recipe."""
    used = {"num_processes", "nproc_per_node", "nnodes", "num_nodes", "num_gpus", "config_file",
            "CUDA_VISIBLE_DEVICES", "zero_stage", "mixed_precision", "offload_optimizer_device",
            "offload_param_device"}  # fmt: skip
    settings: dict[str, Any] = source.launcher | source.accelerate
    rest = sorted(set(settings) - used - {"deepspeed_config"})
    deepspeed = source.accelerate.get("deepspeed_config") or {}
    rest += sorted(set(deepspeed) - used - {"gradient_accumulation_steps", "gradient_clipping"})
    if rest:
        m.differences[EQUAL].append(
            f"of the launcher: {', '.join(rest)}: cpo-ds train --gpus N, or --hostfile FILE, "
            "starts the ranks"
        )
    clipping = deepspeed.get("gradient_clipping")
    if clipping not in (None, "auto", m.values["optim.max_grad_norm"].value):
        m.differences[OTHERWISE].append(
            f"gradient_clipping {clipping} in accelerate's file: the recipe takes max_grad_norm"
        )
