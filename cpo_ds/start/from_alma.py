"""Moves the scripts of ALMA, which start its `run_cpo_llmmt.py`, into a recipe."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.start.foreign_files import Source
from cpo_ds.start.from_trl import TRL_DEFAULTS, move_lengths, move_name_of_model, move_objective
from cpo_ds.start.imported_lora import move_lora
from cpo_ds.start.machine_rules import (
    move_deepspeed,
    move_evaluation,
    move_precision,
    move_recomputation,
    move_saving,
)
from cpo_ds.start.moving import ASSUMED, LOST, OTHERWISE, Moving
from cpo_ds.start.trainer_rules import DEFAULTS, move_batch, move_course, move_optimizer

_DEFAULTS = TRL_DEFAULTS | DEFAULTS | {  # those of TRL's CPOConfig at the time of the scripts
    "bf16": False, "gradient_checkpointing": False, "max_length": 512, "max_prompt_length": 128,
    "lora_rank": 16, "lora_dropout": 0.05, "lora_target_modules": "all-linear",
    "cpo_scorer": "xcomet_kiwi",
}  # fmt: skip


def move_alma(source: Source, script: Path, gpus: int | None, rows: int | None) -> Moving:
    """The settings of a script of ALMA, moved. Raises `UserError` for other kinds of training."""
    defaults = {name: value for name, value in _DEFAULTS.items() if name != "lora_alpha"}
    m = Moving(source.settings, defaults, "ALMA")  # its lora_alpha is twice the rank
    if not m.has("cpo_data_path"):
        raise UserError(
            f"{script} has no cpo_data_path, so it trains without preference pairs; give a script "
            "that starts run_cpo_llmmt.py, like runs/cpo_ft.sh."
        )
    _move_model(m)
    _move_data(m)
    move_lengths(m)
    move_objective(m)
    size = move_batch(m, source, gpus, rows)
    if size.pairs == 16:
        m.differences[OTHERWISE].append(
            "batch.pairs: 16 is that of ALMA's script; the paper and recipes/alma-13b-r-lora.yaml "
            "take 128"
        )
    total = move_course(m, size)
    move_optimizer(m, total)
    move_precision(m, source)
    move_recomputation(m, m.flag("gradient_checkpointing"), "gradient_checkpointing")
    move_evaluation(m, total, holds_out=False)
    move_saving(m, total)
    move_deepspeed(m, source, script)
    return m


def _move_model(m: Moving) -> None:
    move_name_of_model(m)
    if m.has("tokenizer_name") and m.settings["tokenizer_name"] == m.take("model_name_or_path"):
        m.take("tokenizer_name")
    if not m.flag("use_peft"):
        if m.has("peft_model_id"):
            m.tell(LOST, "peft_model_id", "without use_peft ALMA does not load it")
        return
    if m.has("peft_model_id"):
        m.put("model.adapter", str(m.take("peft_model_id")), "peft_model_id")
        m.assume("model.adapter_mode", "continue", "ALMA trains that adapter on")
        m.differences[OTHERWISE].append(
            "LoRA: rank, alpha and target modules are those of the adapter's files, in ALMA and "
            "here, and its dropout is in use here; ALMA's trainer switches all dropout off "
            "(add a lora section with dropout: 0.0 and the adapter's other values for that)"
        )
        if m.has("lora_rank"):
            m.tell(OTHERWISE, "lora_rank", "the adapter's own rank counts, in ALMA and here")
        return
    move_lora(m, "lora_rank", "lora_target_modules", drops=not m.flag("disable_dropout"))
    m.differences[OTHERWISE].append(
        "lora.target_modules: all-linear is in ALMA's code; ALMA-R itself adapts down_proj alone"
    )


def _move_data(m: Moving) -> None:
    m.assume("data.format", "alma-r", "cpo_data_path holds triplets of ALMA-R's form")
    m.put("data.path", str(m.take("cpo_data_path")), "cpo_data_path")
    directions = m.names("language_pairs")
    if directions:
        m.put("data.directions", directions, "language_pairs")
    scorer = str(m.take("cpo_scorer"))
    if scorer in ("kiwi", "xcomet", "kiwi_xcomet"):
        m.put("data.scorer", scorer, "cpo_scorer")
    else:
        m.assume("data.scorer", "kiwi_xcomet", f"no column of the data is named {scorer}")
        if m.has("cpo_scorer"):
            m.tell(OTHERWISE, "cpo_scorer", "ALMA-R's columns are kiwi, xcomet and kiwi_xcomet")
    if m.flag("chat_style"):
        m.put("data.prompt_style", "chat", "chat_style")
    m.assume("data.add_bos", "always", "ALMA's trainer puts the token before every prompt")
    if m.has("max_source_length"):
        m.tell(
            OTHERWISE,
            "max_source_length",
            "ALMA cuts longer prompts to it; the recipe drops prompts by max_prompt_length",
        )
    m.differences[OTHERWISE].append(
        "pairs: one of equal texts, as equal scores give, is dropped and counted; ALMA keeps it"
    )
    m.differences[ASSUMED].append(
        "data.eval_fraction: 0, as in the script; 0.02 would show whether the model learns"
    )
