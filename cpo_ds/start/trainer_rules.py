"""Moves the settings of transformers' `TrainingArguments`, which TRL, ALMA and others share."""

from __future__ import annotations

import math

from cpo_ds.start.foreign_files import Source
from cpo_ds.start.moving import ASSUMED, EQUAL, LOST, OTHERWISE, Moving
from cpo_ds.start.recipe_text import Value

DEFAULTS = {  # of TrainingArguments in transformers 4 and 5
    "learning_rate": 5e-5, "lr_scheduler_type": "linear", "weight_decay": 0.0,
    "warmup_steps": 0, "warmup_ratio": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "num_train_epochs": 3.0, "max_steps": -1, "seed": 42,
    "save_strategy": "steps", "save_steps": 500, "logging_steps": 500, "eval_strategy": "no",
}  # fmt: skip
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "inverse_sqrt": "inverse_sqrt",
}
_ADAMW = ("adamw_torch", "adamw_hf", "adamw_torch_fused", "adamw_apex_fused", "adamw")


class Size:
    """The numbers by which steps are counted: pairs of a step, and rows of the data if known."""

    def __init__(self, pairs: int, rows: int | None):
        self.pairs, self.rows = pairs, rows

    def total_steps(self, epochs: float, max_steps: int) -> int | None:
        """Optimizer steps of the run; None if only the data says."""
        if max_steps > 0:
            return max_steps
        return None if self.rows is None else math.ceil(epochs * math.ceil(self.rows / self.pairs))


def move_batch(m: Moving, source: Source, gpus: int | None, rows: int | None) -> Size:
    """The pairs of a step: per device, times accumulation, times devices."""
    each, times = m.whole("per_device_train_batch_size"), m.whole("gradient_accumulation_steps")
    number, origin = _devices(m, source, gpus)
    pairs = each * times * number
    product = f"{each} per device x {times} accumulated x {number} ({origin})"
    m.values["batch.pairs"] = Value(pairs, product)
    m.tell(
        OTHERWISE, "per_device_train_batch_size",
        f"batch.pairs is {each} x {times} x {number} = {pairs} on any number of GPUs; memory "
        "depends on batch.tokens_per_rank alone",
    )  # fmt: skip
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if not m.has(name):
            m.differences[ASSUMED].append(f"{name}: {m.take(name)}, {m.trainer}'s default")
    accelerate = source.accelerate.get("deepspeed_config") or {}
    accumulation = accelerate.get("gradient_accumulation_steps", times)
    if accumulation not in (times, "auto"):
        m.differences[OTHERWISE].append(
            f"gradient_accumulation_steps: {accumulation} in accelerate's file, {times} for the "
            "trainer, which counts"
        )
    return Size(pairs, rows)


def _devices(m: Moving, source: Source, gpus: int | None) -> tuple[int, str]:
    """The number of devices that the other trainer ran on, and its origin."""
    if gpus is not None:
        return gpus, "--gpus"
    launcher = source.launcher
    nodes = launcher.get("nnodes", launcher.get("num_nodes", 1))
    for name, per_node in (("num_processes", 1), ("nproc_per_node", nodes), ("num_gpus", nodes)):
        value = str(launcher.get(name))
        if value.isdecimal() and str(per_node).isdecimal():
            return int(value) * int(per_node), f"{name} of the launcher"
    if str(source.accelerate.get("num_processes")).isdecimal():
        return int(source.accelerate["num_processes"]), "num_processes of accelerate's file"
    if visible := launcher.get("CUDA_VISIBLE_DEVICES"):
        return len(str(visible).split(",")), "CUDA_VISIBLE_DEVICES"
    m.differences[ASSUMED].append(
        "1 GPU, since the file names no number; if there were more, say so by --gpus N, because "
        "batch.pairs is multiplied by it"
    )
    return 1, "GPU, assumed"


def move_course(m: Moving, size: Size) -> int | None:
    """Epochs, steps, seed and order; returns the total number of steps if it is known."""
    epochs, max_steps = m.number("num_train_epochs"), m.whole("max_steps")
    total = size.total_steps(epochs, max_steps)
    if max_steps > 0:
        m.put("train.max_steps", max_steps, "max_steps")
        passes = math.ceil(max_steps * size.pairs / size.rows) + 1 if size.rows else 1000
        m.assume("train.epochs", passes, "enough, since train.max_steps ends the run")
        if m.has("num_train_epochs"):
            m.tell(EQUAL, "num_train_epochs", f"{m.trainer} ignores it beside max_steps")
    elif epochs == int(epochs):
        m.put("train.epochs", int(epochs), "num_train_epochs")
    else:
        m.put("train.epochs", math.ceil(epochs), "num_train_epochs")
        if total:
            m.assume("train.max_steps", total, f"{epochs} epochs of {size.rows} rows")
        else:
            m.tell(
                OTHERWISE,
                "num_train_epochs",
                "epochs are whole here, so it is rounded up; "
                "with --rows N, import sets train.max_steps too",
            )
    m.put("train.seed", m.whole("seed"), "seed")
    m.tell(OTHERWISE, "seed", "the order of the pairs is another one than the other trainer's")
    return total


def move_optimizer(m: Moving, total: int | None) -> None:
    """AdamW, the learning rate and its course."""
    m.put("optim.learning_rate", m.number("learning_rate"), "learning_rate")
    name = str(m.take("lr_scheduler_type"))
    close = "cosine" if name.startswith("cosine") else "linear"
    m.put("optim.schedule", _SCHEDULES.get(name, close), "lr_scheduler_type")
    if name not in _SCHEDULES:
        m.tell(LOST, "lr_scheduler_type", f"{close} is the closest schedule here")
    _move_warmup(m, name, total)
    m.put("optim.weight_decay", m.number("weight_decay"), "weight_decay")
    betas = [m.number("adam_beta1"), m.number("adam_beta2")]
    m.put("optim.betas", betas, "adam_beta2" if m.has("adam_beta2") else "adam_beta1")
    m.put("optim.eps", m.number("adam_epsilon"), "adam_epsilon")
    m.put("optim.max_grad_norm", m.number("max_grad_norm"), "max_grad_norm")
    optimizer = m.take("optim")
    if optimizer is not None:
        if optimizer in _ADAMW:
            m.tell(EQUAL, "optim", "AdamW, as in every run here")
        else:
            m.tell(LOST, "optim", "every run here takes AdamW")
    m.differences[OTHERWISE].append(
        "learning rate: the course is shifted by one step, so neither the first step of the "
        "warm-up nor the last of a decay has a rate of zero"
    )


def _move_warmup(m: Moving, schedule: str, total: int | None) -> None:
    """The share of steps that raise the learning rate; a number of steps comes before a share."""
    steps, ratio = m.number("warmup_steps"), m.number("warmup_ratio")
    origin = "warmup_steps" if steps else "warmup_ratio"
    if schedule == "constant":
        m.put("optim.warmup_ratio", 0.0, origin)
        if steps or ratio:
            m.tell(
                OTHERWISE,
                origin,
                "the schedule constant of transformers has no warm-up, so none is here",
            )
    elif steps < 1:  # transformers 5 takes a share here too
        m.put("optim.warmup_ratio", steps or ratio, origin)
    elif total:
        m.put("optim.warmup_ratio", warmup_share(int(steps), total), origin, f"of {total} steps")
    else:
        m.assume(
            "optim.warmup_ratio",
            0.1,
            f"warmup_steps is {int(steps)} of an unknown number "
            "of steps; set the share, or give --rows N",
        )


def warmup_share(steps: int, total: int) -> float:
    """The share of all steps that is rounded up to exactly so many steps."""
    steps = min(steps, total)
    share = round(steps / total, 6)
    return share if math.ceil(share * total) == steps else (steps - 0.5) / total
