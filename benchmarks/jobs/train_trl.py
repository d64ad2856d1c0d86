"""TRL's CPOTrainer and DPOTrainer on a job's pairs, in this trainer's order.

AdamW (torch's fused one), a constant learning rate, clipping at 1 and no dropout, as in the other
methods. With bfloat16 all methods compute in bfloat16 and keep trained weights in float32:
DeepSpeed holds a float32 copy, TRL trains float32 weights under autocast (a frozen base model stays
in bfloat16).
"""

from __future__ import annotations

from typing import Any

import torch
from measures.memory_split import plain_parts, states_gib
from measures.probe import Probe
from models.workload import read_rows_file

from jobs.job import BETA, MAX_GRAD_NORM, WEIGHT_DECAY, Job

_DEFAULT_LENGTH = 1024  # TRL's own limit


def run_trl(job: Job, probe: Probe, folder: str) -> dict[str, Any]:
    """Trains with TRL; returns the measurements."""
    import datasets
    import transformers

    from cpo_ds.data.plan import epoch_order
    from cpo_ds.model.tokenizer import load_tokenizer

    trainer_class, config_class, settings = _classes(job.method)
    special: dict[str, Any] = {}
    held: dict[str, float] = {}

    # TRL's callback takes the time of each step, and the states' sizes before the clock starts.
    class Clock(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if not held:  # after the first backward pass of the first step
                held.update(_states(trainer))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            probe.step_is_done()

    # The pairs in the order in which this trainer meets them.
    rows = read_rows_file(job.rows)
    ordered = [rows[i] for i in epoch_order(len(rows), job.seed, 0)]
    columns = {
        "prompt": [row.prompt for row in ordered],
        "chosen": [row.chosen for row in ordered],
        "rejected": [rejected for row in ordered for rejected in row.rejected],
    }
    # Model, reference and trainer.
    probe.libraries_are_loaded()
    model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=start_dtype(job))
    if job.method == "trl-dpo" and job.training == "full":  # with LoRA TRL switches the adapter off
        special["ref_model"] = transformers.AutoModelForCausalLM.from_pretrained(
            job.model, dtype=getattr(torch, job.dtype)
        )
    trainer = trainer_class(
        model=model.to("cuda" if torch.cuda.is_available() else "cpu"),
        args=config_class(**_arguments(job, folder), **settings),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=load_tokenizer(job.model),
        peft_config=lora_config(job) if job.training == "lora" else None,
        callbacks=[Clock()],
        **special,
    )
    # Keep each step's loss, which TRL only logs as a mean.
    training_step = trainer.training_step

    def keep_loss(*args: Any, **kwargs: Any) -> Any:
        probe.losses.append(training_step(*args, **kwargs))
        return probe.losses[-1]

    trainer.training_step = keep_loss
    trainer.train()
    held["optimizer"] = _states(trainer)["optimizer"]
    measured = probe.result()
    return measured | plain_parts(measured["peak_memory_gib"], probe.libraries_gib, held)


def _classes(method: str) -> tuple[Any, Any, dict[str, Any]]:
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    if method == "trl-cpo":
        return CPOTrainer, CPOConfig, {"cpo_alpha": 1.0}
    return DPOTrainer, DPOConfig, {}


def _states(trainer: Any) -> dict[str, float]:
    # The trainer's optimizer is wrapped by accelerate.
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return states_gib(trainer.model, getattr(trainer, "ref_model", None), optimizer)


def lora_config(job: Job) -> Any:
    """PEFT's configuration of the job's adapter."""
    import peft

    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=job.lora_rank,
        lora_alpha=2 * job.lora_rank,
        lora_dropout=0.0,
        target_modules=job.lora_targets,
    )


def start_dtype(job: Job) -> torch.dtype:
    """The dtype that holds the weights: float32 if all are trained."""
    return torch.float32 if job.training == "full" else getattr(torch, job.dtype)


def _arguments(job: Job, folder: str) -> dict[str, Any]:
    """TRL's defaults, changed to make runs comparable: no logs, checkpoints, evaluation."""
    micro_batch = job.micro_batch_pairs or job.pairs_per_step
    assert job.pairs_per_step % micro_batch == 0
    return {
        "output_dir": folder,
        "max_steps": job.steps,
        "max_length": max(_DEFAULT_LENGTH, job.max_tokens),  # nothing is cut
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": job.pairs_per_step // micro_batch,
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
