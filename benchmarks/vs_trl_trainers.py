"""One timed run of one trainer, in a process of its own: what `vs_trl.py --worker` does.

All three see the same pairs in the same order, `pairs_per_step` of them in each optimizer step,
with AdamW (torch's fused one), a constant learning rate, clipping at 1 and no dropout. In
bfloat16 all three compute in bfloat16 and keep what they train in float32: DeepSpeed holds a
float32 copy, TRL trains float32 weights under autocast (a frozen base model stays in bfloat16).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from probe import Probe

from cpo_ds.schema import PreferenceRow, TokenizedPair

METHODS = ("cpo-ds", "trl-cpo", "trl-dpo")
TRAININGS = ("lora", "full")

BETA, WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.01, 1.0
MAX_PROMPT_TOKENS, MAX_TOKENS = 256, 512  # TRL's own limit, 1024, then cuts nothing


@dataclass(frozen=True)
class Job:
    """What to run; the same for all methods but for the first three fields."""

    method: str
    training: str
    repeat: int
    model: str
    rows: str  # JSON file with the pairs of all steps
    dtype: str
    threads: int
    pairs_per_step: int
    warmup_steps: int
    timed_steps: int
    tokens_per_rank: int
    learning_rate: float
    lora_rank: int
    lora_targets: list[str]
    gradient_checkpointing: bool
    deepspeed: str
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps, timed or not."""
        return self.warmup_steps + self.timed_steps


def run_job(job: Job) -> dict[str, Any]:
    """Trains; returns seconds of the timed steps, each step's loss, and memory in GiB.

    `cpu_seconds` are those of all threads: less troubled than `seconds` by other programs on the
    machine, where the number of threads is one.
    """
    torch.set_num_threads(job.threads)
    probe = Probe(job.warmup_steps, job.timed_steps)
    with tempfile.TemporaryDirectory() as folder:
        if job.method == "cpo-ds":
            _run_ours(job, probe, folder)
        else:
            _run_trl(job, probe, folder)
    return probe.result()


def read_rows_file(path: str) -> list[PreferenceRow]:
    """The pairs that `vs_trl.py` selected."""
    return [PreferenceRow(**row) for row in json.loads(Path(path).read_text(encoding="utf-8"))]


def tokenize(rows: list[PreferenceRow], model: str) -> tuple[list[TokenizedPair], Any]:
    """The pairs in this trainer's tokens, without those over its limits; and the tokenizer."""
    from cpo_ds.data.tokenize import tokenize_rows
    from cpo_ds.model.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    pairs, _ = tokenize_rows(
        rows, tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS, max_tokens=MAX_TOKENS
    )
    return pairs, tokenizer


def _run_ours(job: Job, probe: Probe, folder: str) -> None:
    """The loop of `cpo_ds/trainer.py` as it stands, stopped before the checkpoint at its end."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from cpo_ds import engine
    from cpo_ds.deepspeed_config import read_deepspeed_config, zero_stage
    from cpo_ds.manifest import Manifest
    from cpo_ds.model.load import load_policy
    from cpo_ds.monitor import Monitor
    from cpo_ds.ranks import init_ranks
    from cpo_ds.saver import Saver
    from cpo_ds.trainer import Run, train

    class Finished(Exception):
        pass

    class StepMonitor(Monitor):
        def show(self, line: dict[str, Any]) -> None:
            probe.losses.append(line["loss"])
            if probe.step_is_done():
                raise Finished

    config = our_config(job, folder)
    pairs, _ = tokenize(read_rows_file(job.rows), job.model)
    settings = read_deepspeed_config(config)
    ranks = init_ranks()
    with engine.sharded_loading(settings):
        policy, _ = load_policy(
            config,
            device=ranks.device,
            gather=engine.gather_parameters,
            place_on_device=ranks.device.type == "cuda" and zero_stage(settings) < 3,
        )
        probe.model_is_loaded()
        started = engine.Engine(policy, config, settings)
    monitor = StepMonitor(
        Path(folder), is_writer=False, tensorboard=False, first_step=0, total_steps=job.steps
    )
    try:
        saver = Saver(started, ranks, config, Manifest(0, 1, 0), monitor.say)
        train(Run(config, started, ranks, monitor, pairs, [], saver))
    except Finished:
        torch.distributed.destroy_process_group()


def our_config(job: Job, folder: str) -> Any:
    """The recipe of this trainer's runs. Raises pydantic's error for a value it refuses."""
    from cpo_ds.config import Config

    lora = {
        "rank": job.lora_rank,
        "alpha": 2 * job.lora_rank,
        "dropout": 0.0,
        "target_modules": job.lora_targets,
    }
    return Config.model_validate(
        {
            "model": {
                "name_or_path": job.model,
                "dtype": job.dtype,
                "gradient_checkpointing": job.gradient_checkpointing,
            },
            "data": {"format": "pairs", "path": job.rows},
            "loss": {"name": "cpo", "beta": BETA},
            "lora": lora if job.training == "lora" else None,
            "optim": {
                "learning_rate": job.learning_rate,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "weight_decay": WEIGHT_DECAY,
                "max_grad_norm": MAX_GRAD_NORM,
            },
            "batch": {"pairs": job.pairs_per_step, "tokens_per_rank": job.tokens_per_rank},
            "train": {"seed": job.seed},
            "deepspeed": job.deepspeed,
            "output_dir": folder,
        }
    )


def _run_trl(job: Job, probe: Probe, folder: str) -> None:
    import datasets
    import peft
    import transformers
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from cpo_ds.data.plan import epoch_order
    from cpo_ds.model.load import load_tokenizer

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            probe.step_is_done()

    rows = read_rows_file(job.rows)
    ordered = [rows[i] for i in epoch_order(len(rows), job.seed, 0)]  # this trainer's order
    columns = {name: [getattr(row, name) for row in ordered] for name in _COLUMNS}
    model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=_trl_dtype(job))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    probe.model_is_loaded()
    adapter = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=job.lora_rank,
        lora_alpha=2 * job.lora_rank,
        lora_dropout=0.0,
        target_modules=job.lora_targets,
    )
    trainer_class, config_class, special = {
        "trl-cpo": (CPOTrainer, CPOConfig, {"cpo_alpha": 1.0}),
        "trl-dpo": (DPOTrainer, DPOConfig, {}),
    }[job.method]
    trainer = trainer_class(
        model=model,
        args=config_class(**_trl_arguments(job, folder), **special),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=load_tokenizer(job.model),
        peft_config=adapter if job.training == "lora" else None,
        callbacks=[Clock()],
    )
    training_step = trainer.training_step

    def keep_loss(*args: Any, **kwargs: Any) -> Any:
        probe.losses.append(training_step(*args, **kwargs))
        return probe.losses[-1]

    trainer.training_step = keep_loss
    trainer.train()


_COLUMNS = ("prompt", "chosen", "rejected")


def _trl_dtype(job: Job) -> torch.dtype:
    return torch.float32 if job.training == "full" else getattr(torch, job.dtype)


def _trl_arguments(job: Job, folder: str) -> dict[str, Any]:
    """TRL's defaults but for what makes the runs comparable; nothing logged, saved, evaluated."""
    return {
        "output_dir": folder,
        "max_steps": job.steps,
        "per_device_train_batch_size": job.pairs_per_step,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": job.gradient_checkpointing,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "beta": BETA,
        "disable_dropout": True,
        "seed": job.seed,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
