"""Settings by the names that other trainers give them, and hints for unknown names.

The names are those of TRL, of ALMA's scripts, of transformers' `TrainingArguments`, of PEFT and of
LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from cpo_ds.errors import did_you_mean

_LIKE, _ALIKE = 0.5, 0.75  # likeness of names, as difflib measures it


class OtherName(NamedTuple):
    """The setting that another trainer's name stands for.

    A `note` says how the value changes; without one the value stays the same. `field` is None if
    no setting corresponds, and the note says why.
    """

    field: str | None  # a section, for names that stand for all of it
    note: str = ""


_STEP = (
    "the pairs of a whole step over all GPUs: "
    "per_device_train_batch_size x gradient_accumulation_steps x GPUs"
)
_MEMORY = "the most tokens that a GPU computes at once; it changes memory, not the result"
_LAUNCHER = "the launcher says how many: cpo-ds train --gpus N"
_NOTHING = "leave it out, since nothing corresponds to it"

OTHER_NAMES: dict[str, OtherName] = {
    # The model.
    "model": OtherName("model.name_or_path"),
    "model_name": OtherName("model.name_or_path"),
    "model_name_or_path": OtherName("model.name_or_path"),
    "model_id": OtherName("model.name_or_path"),
    "model_path": OtherName("model.name_or_path"),
    "base_model": OtherName("model.name_or_path"),
    "adapter_name_or_path": OtherName("model.adapter"),
    "peft_model_id": OtherName("model.adapter"),
    "peft_path": OtherName("model.adapter"),
    "torch_dtype": OtherName("model.dtype"),
    "precision": OtherName("model.dtype", "one of auto, float32, bfloat16, float16"),
    "bf16": OtherName("model.dtype", "as in model.dtype: bfloat16"),
    "pure_bf16": OtherName("model.dtype", "as in model.dtype: bfloat16"),
    "fp16": OtherName("model.dtype", "as in model.dtype: float16"),
    "fp32": OtherName("model.dtype", "as in model.dtype: float32"),
    "attn_implementation": OtherName("model.attention", "auto takes the fastest that fits"),
    "flash_attn": OtherName("model.attention", "auto takes the fastest that fits"),
    "use_flash_attention_2": OtherName("model.attention", "auto takes the fastest that fits"),
    "load_in_4bit": OtherName("model.quantization", "as in model.quantization: nf4"),
    "quantization_bit": OtherName("model.quantization", "as in model.quantization: nf4"),
    "bnb_4bit_quant_type": OtherName("model.quantization"),
    # The data.
    "dataset": OtherName("data.path", "with data.format"),
    "dataset_name": OtherName("data.path", "with data.format"),
    "dataset_path": OtherName("data.path", "with data.format"),
    "dataset_train_split": OtherName("data.split"),
    "data_file": OtherName("data.path", "with data.format"),
    "data_files": OtherName("data.path", "with data.format"),
    "train_file": OtherName("data.path", "with data.format"),
    "train_data": OtherName("data.path", "with data.format"),
    "train_path": OtherName("data.path", "with data.format"),
    "cpo_data_path": OtherName("data.path", "with data.format: alma-r"),
    "eval_dataset": OtherName("data.eval_path"),
    "validation_file": OtherName("data.eval_path"),
    "cpo_scorer": OtherName("data.scorer"),
    "language_pairs": OtherName("data.directions", "as in data.directions: [en-de, de-en]"),
    "max_length": OtherName("data.max_tokens"),
    "max_seq_length": OtherName("data.max_tokens"),
    "max_seq_len": OtherName("data.max_tokens"),
    "model_max_length": OtherName("data.max_tokens"),
    "cutoff_len": OtherName("data.max_tokens"),
    "max_prompt_length": OtherName("data.max_prompt_tokens"),
    "max_source_length": OtherName("data.max_prompt_tokens"),
    "max_completion_length": OtherName("data.max_tokens", "which counts the prompt too"),
    "max_new_tokens": OtherName("data.max_tokens", "which counts the prompt too"),
    "max_target_length": OtherName("data.max_tokens", "which counts the prompt too"),
    "val_size": OtherName("data.eval_fraction"),
    "validation_split_percentage": OtherName("data.eval_fraction", "as a share: 5 is 0.05"),
    "test_size": OtherName("data.eval_fraction"),
    "template": OtherName("data.prompt_style", "as in data.prompt_style: chat"),
    "chat_template": OtherName("data.chat_template_kwargs", "as in {chat_template: NAME}"),
    "chat_template_path": OtherName(None, "put the template into the tokenizer's folder"),
    # The objective.
    "cpo_alpha": OtherName("loss.alpha"),
    "pref_ftx": OtherName("loss.alpha", "with loss.name: dpo-nll"),
    "rpo_alpha": OtherName("loss.alpha", "with loss.name: dpo-nll"),
    "pref_beta": OtherName("loss.beta"),
    "cpo_beta": OtherName("loss.beta"),
    "dpo_beta": OtherName("loss.beta"),
    "simpo_gamma": OtherName("loss.gamma"),
    "loss_type": OtherName("loss.name", "cpo for sigmoid, else the same name"),
    "pref_loss": OtherName("loss.name", "cpo for sigmoid, else the same name"),
    "objective": OtherName("loss.name"),
    "ref_model": OtherName("loss.reference", "which dpo and dpo-nll alone use"),
    "precompute_ref_log_probs": OtherName("loss.reference", "as in loss.reference: precomputed"),
    # The adapter.
    "use_lora": OtherName("lora", "a section with rank and alpha"),
    "peft": OtherName("lora", "a section with rank and alpha"),
    "use_peft": OtherName("lora", "a section with rank and alpha"),
    "peft_config": OtherName("lora", "a section with rank and alpha"),
    "finetuning_type": OtherName("lora", "a section for LoRA, none for all parameters"),
    "r": OtherName("lora.rank"),
    "lora_r": OtherName("lora.rank"),
    "lora_rank": OtherName("lora.rank"),
    "lora_alpha": OtherName("lora.alpha"),
    "lora_dropout": OtherName("lora.dropout"),
    "lora_target": OtherName("lora.target_modules", "all is all-linear"),
    "lora_target_modules": OtherName("lora.target_modules"),
    # The optimizer.
    "lr": OtherName("optim.learning_rate"),
    "lr_scheduler": OtherName("optim.schedule"),
    "lr_scheduler_type": OtherName("optim.schedule"),
    "scheduler": OtherName("optim.schedule"),
    "warmup": OtherName("optim.warmup_ratio", "a share of all steps"),
    "warmup_steps": OtherName("optim.warmup_ratio", "a share of all steps: 10 of 100 are 0.1"),
    "adam_beta1": OtherName("optim.betas", "both in a list: [0.9, 0.999]"),
    "adam_beta2": OtherName("optim.betas", "both in a list: [0.9, 0.999]"),
    "adam_epsilon": OtherName("optim.eps"),
    "gradient_clipping": OtherName("optim.max_grad_norm"),
    "max_gradient_norm": OtherName("optim.max_grad_norm"),
    "optimizer": OtherName("optim", "the section of AdamW, which every run takes"),
    # The batch.
    "batch_size": OtherName("batch.pairs", "the pairs of a whole step over all GPUs"),
    "global_batch_size": OtherName("batch.pairs"),
    "train_batch_size": OtherName("batch.pairs", "the pairs of a whole step over all GPUs"),
    "per_device_train_batch_size": OtherName("batch.pairs", _STEP),
    "gradient_accumulation_steps": OtherName("batch.pairs", _STEP),
    "micro_batch_size": OtherName("batch.tokens_per_rank", _MEMORY),
    "train_micro_batch_size_per_gpu": OtherName("batch.tokens_per_rank", _MEMORY),
    "per_device_eval_batch_size": OtherName("batch.tokens_per_rank", _MEMORY),
    # The course of the run.
    "training": OtherName("train"),
    "trainer": OtherName("train"),
    "num_train_epochs": OtherName("train.epochs"),
    "num_epochs": OtherName("train.epochs"),
    "max_train_steps": OtherName("train.max_steps"),
    "data_seed": OtherName("train.seed"),
    "full_determinism": OtherName("train.deterministic"),
    "eval_steps": OtherName("train.eval_every_steps"),
    "eval_strategy": OtherName("train.eval_every_steps", "a number of steps"),
    "evaluation_strategy": OtherName("train.eval_every_steps", "a number of steps"),
    "save_steps": OtherName("checkpoint.every_steps"),
    "save_strategy": OtherName("checkpoint.every_steps", "a number of steps"),
    "save_total_limit": OtherName("checkpoint.keep_last"),
    "resume_from_checkpoint": OtherName("checkpoint.resume"),
    "overwrite_output_dir": OtherName("checkpoint.resume", "as in checkpoint.resume: restart"),
    "logging_steps": OtherName("logging.every_steps"),
    "report_to": OtherName("logging.trackers", "a list, such as [tensorboard, wandb]"),
    "output": OtherName("output_dir"),
    "out_dir": OtherName("output_dir"),
    "save_dir": OtherName("output_dir"),
    "logging_dir": OtherName("output_dir"),
    "run_name": OtherName("output_dir", "whose last part names the run"),
    "push_to_hub": OtherName(None, "give cpo-ds export --push REPO after the run"),
    "hub_model_id": OtherName(None, "give cpo-ds export --push REPO after the run"),
    "deepspeed_config": OtherName("deepspeed"),
    "ds_config": OtherName("deepspeed"),
    "zero_stage": OtherName("deepspeed", "as in deepspeed: zero3"),
    "fsdp": OtherName("deepspeed", "as in deepspeed: zero3"),
    # Settings that belong to other programs, or to none.
    "gpus": OtherName(None, _LAUNCHER),
    "num_gpus": OtherName(None, _LAUNCHER),
    "num_processes": OtherName(None, _LAUNCHER),
    "nproc_per_node": OtherName(None, _LAUNCHER),
    "hostfile": OtherName(None, "the launcher takes it: cpo-ds train --hostfile FILE"),
    "do_train": OtherName(None, _NOTHING),
    "do_eval": OtherName(None, _NOTHING),
    "remove_unused_columns": OtherName(None, _NOTHING),
    "dataloader_num_workers": OtherName(None, _NOTHING),
    "preprocessing_num_workers": OtherName(None, _NOTHING),
    "ddp_timeout": OtherName(None, _NOTHING),
    "packing": OtherName(None, "leave it out, since pairs are always packed"),
}


def meant_setting(name: str, near: Collection[str], settings: Collection[str], mark: str) -> str:
    """A hint for a message on an unknown name: the setting that it stands for; "" if none does.

    `near` are the names that are known in its place, `settings` the dotted names of all settings.
    `mark` is put before a dotted name: `--` for the command line.
    """
    if mark and not name.startswith("-"):  # a value without an option
        is_recipe = name.endswith((".yaml", ".yml"))
        return f" (did you mean {mark}config {name}?)" if is_recipe else ""
    dotted = name.lstrip("-").replace("-", "_").lower()
    leaf = dotted.rpartition(".")[2]

    # Another trainer's name, like model.name for model_name, or the same name elsewhere.
    if "." in dotted and (meaning := _meaning(dotted.replace(".", "_"), mark)):
        return meaning
    if same := [setting for setting in settings if setting.rpartition(".")[2] == leaf]:
        return f" (did you mean {' or '.join(mark + setting for setting in same)}?)"
    if meaning := _meaning(leaf, mark):
        return meaning
    fields = [setting for setting in settings if setting.startswith(f"{leaf}.")]
    if fields:
        return f" (it is a section; give its fields, like {mark}{fields[0]})"

    # A name that is written alike, in its place or elsewhere.
    written = name if mark else leaf
    if hint := did_you_mean(written, list(near), _ALIKE):
        return hint
    by_leaf = {setting.rpartition(".")[2]: setting for setting in reversed(list(settings))}
    if hint := did_you_mean(leaf, list(by_leaf), _ALIKE):
        alike = hint.removeprefix(" (did you mean ").removesuffix("?)")
        return f" (did you mean {mark}{by_leaf[alike]}?)"
    return did_you_mean(written, list(near), _LIKE)


def _meaning(name: str, mark: str) -> str:
    """The hint for another trainer's name; "" for any other."""
    if name not in OTHER_NAMES:
        return ""
    field, note = OTHER_NAMES[name]
    if field is None:
        return f" ({note})"
    return f" (it is {mark}{field} in cpo_ds{f', {note}' if note else ''})"
