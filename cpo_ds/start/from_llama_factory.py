"""Moves LLaMA-Factory's configurations of preference training into a recipe."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.start.foreign_files import Source
from cpo_ds.start.from_trl import move_name_of_model
from cpo_ds.start.imported_lora import move_lora
from cpo_ds.start.machine_rules import (
    move_deepspeed,
    move_evaluation,
    move_precision,
    move_recomputation,
    move_saving,
)
from cpo_ds.start.moving import ASSUMED, EQUAL, LOST, OTHERWISE, Moving
from cpo_ds.start.trainer_rules import DEFAULTS, move_batch, move_course, move_optimizer

_DEFAULTS = DEFAULTS | {
    "stage": "sft", "finetuning_type": "lora", "lora_rank": 8, "lora_dropout": 0.0,
    "lora_target": "all", "pref_beta": 0.1, "pref_ftx": 0.0, "pref_loss": "sigmoid",
    "dpo_label_smoothing": 0.0, "simpo_gamma": 0.5, "cutoff_len": 2048, "val_size": 0.0,
    "bf16": False, "disable_gradient_checkpointing": False,
}  # fmt: skip


def move_llama_factory(source: Source, script: Path, gpus: int | None, rows: int | None) -> Moving:
    """The settings of a configuration, moved. Raises `UserError` for other kinds of training."""
    m = Moving(source.settings, _DEFAULTS, "LLaMA-Factory")
    if (stage := m.take("stage")) != "dpo":
        raise UserError(
            f"{script}: stage is {stage}, which does not train on pairs of chosen and rejected "
            "texts; give a configuration with stage: dpo, or write a recipe by cpo-ds init."
        )
    move_name_of_model(m)
    _move_adapter(m)
    _move_data(m)
    _move_objective(m)
    size = move_batch(m, source, gpus, rows)
    total = move_course(m, size)
    move_optimizer(m, total)
    if m.has("pure_bf16") and m.flag("pure_bf16"):
        m.put("model.dtype", "bfloat16", "pure_bf16")
        m.put("optim.states", "bfloat16", "pure_bf16")
    else:
        m.take("pure_bf16")
        move_precision(m, source)
    checkpointing = not m.flag("disable_gradient_checkpointing")
    move_recomputation(m, checkpointing, "disable_gradient_checkpointing")
    move_evaluation(m, total, holds_out="data.eval_fraction" in m.values)
    move_saving(m, total)
    move_deepspeed(m, source, script)
    return m


def _move_adapter(m: Moving) -> None:
    """LoRA, a quantized base, or all parameters."""
    kind = m.take("finetuning_type")
    if kind in ("freeze", "oft"):
        raise UserError(
            f"finetuning_type: {kind} has no counterpart; cpo_ds trains a LoRA adapter or all "
            "parameters. Set finetuning_type to lora or full."
        )
    if kind == "lora" and m.has("adapter_name_or_path"):
        m.put("model.adapter", str(m.take("adapter_name_or_path")), "adapter_name_or_path")
        merges = m.flag("create_new_adapter")
        m.assume(
            "model.adapter_mode",
            "merge" if merges else "continue",
            "create_new_adapter" if merges else "LLaMA-Factory trains the last adapter on",
        )
        if not merges:
            for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
                if m.has(name):
                    m.tell(EQUAL, name, "the adapter's own values count")
    if kind == "lora" and m.values.get("model.adapter_mode", ("merge",))[0] == "merge":
        move_lora(m, "lora_rank", "lora_target", drops=False)
    if m.has("quantization_bit"):
        if m.whole("quantization_bit") == 4 and kind == "lora":
            m.put("model.quantization", "nf4", "quantization_bit")
            m.take("quantization_method")
        else:
            m.tell(LOST, "quantization_bit", "a base is quantized to 4 bits (nf4) under LoRA alone")


def _move_data(m: Moving) -> None:
    """The pairs, their lengths, and the held-out ones."""
    m.assume("data.format", "pairs", "write the rows as prompt, chosen and rejected")
    names = m.names("dataset")
    if names:
        m.put("data.path", f"{names[0]}.jsonl", "dataset", "change this to the file itself")
        folder = m.take("dataset_dir", "data")
        m.tell(
            OTHERWISE,
            "dataset",
            f"a name in {folder}/dataset_info.json there, a file, a folder "
            "or a dataset on the hub here; docs/data.md says which rows it may have",
        )
        if len(names) > 1:
            m.differences[LOST].append(f"dataset: {', '.join(names[1:])}: put all rows in one file")
    else:
        m.assume("data.path", "my_pairs.jsonl", "the file names no data; change this")
    for name in ("template", "default_system", "tool_format", "enable_thinking"):
        if m.has(name):
            m.tell(
                OTHERWISE,
                name,
                "prompts of the format pairs are taken as they are written, or, "
                "as lists of messages, by the tokenizer's own chat template",
            )
    m.put("data.max_tokens", m.whole("cutoff_len"), "cutoff_len")
    m.tell(
        OTHERWISE,
        "cutoff_len",
        "a longer pair is dropped and counted; LLaMA-Factory cuts prompt "
        "and completions in proportion",
    )
    m.assume("data.max_prompt_tokens", m.whole("cutoff_len"), "no limit but that of the pair")
    size = m.number("val_size")
    if 0 < size < 1:
        m.put("data.eval_fraction", size, "val_size")
    elif size:
        m.tell(OTHERWISE, "val_size", "a number of rows there; set data.eval_fraction to the share")
    if m.has("eval_dataset"):
        m.tell(LOST, "eval_dataset", "set data.eval_path to a file of held-out pairs")
    m.differences[ASSUMED].append("data.add_bos: auto, so that the tokenizer decides")


def _move_objective(m: Moving) -> None:
    """The objective, its parameters, and its reference."""
    kind, weight = str(m.take("pref_loss")), m.number("pref_ftx")
    names = {"sigmoid": "dpo", "simpo": "simpo", "hinge": "hinge", "ipo": "ipo"}
    if weight:
        names |= {"sigmoid": "dpo-nll", "simpo": "cpo-simpo"}
    name = names.get(kind, "cpo")
    m.put("loss.name", name, "pref_loss")
    m.put("loss.beta", m.number("pref_beta"), "pref_beta")
    if kind == "orpo":
        m.tell(
            LOST,
            "pref_loss",
            "there is no ORPO; the recipe takes cpo, which needs no reference "
            "either. Its beta is a temperature, and ORPO's is the weight of the odds ratio: "
            "choose loss.beta anew",
        )
    elif kind not in names:
        m.tell(LOST, "pref_loss", "there is no such objective here; the recipe takes cpo")
    elif kind in ("hinge", "ipo"):
        m.tell(OTHERWISE, "pref_loss", "compares the policy with a reference there, and not here")
    if name == "cpo":
        m.assume("loss.alpha", 1.0, "the weight of the NLL term in CPO")
    elif name in ("dpo-nll", "cpo-simpo", "hinge", "ipo"):
        m.put("loss.alpha", weight, "pref_ftx")
        m.assume("loss.nll_reduction", "pair", "LLaMA-Factory takes the mean of each pair")
    if name in ("simpo", "cpo-simpo"):
        m.put("loss.gamma", m.number("simpo_gamma"), "simpo_gamma")
    elif m.has("simpo_gamma"):
        m.tell(EQUAL, "simpo_gamma", "used with pref_loss simpo alone")
    smoothing = m.number("dpo_label_smoothing")
    if smoothing and kind == "sigmoid":
        m.put("loss.label_smoothing", smoothing, "dpo_label_smoothing")
    elif smoothing:
        m.tell(EQUAL, "dpo_label_smoothing", "used with pref_loss sigmoid alone")
    if name.startswith("dpo"):
        _move_reference(m)


def _move_reference(m: Moving) -> None:
    if "lora.rank" in m.values:
        m.assume("loss.reference", "adapter", "the policy without its adapter, as there")
        return
    m.assume("loss.reference", "precomputed", "the policy before training, in a pass before it")
    if "model.adapter" in m.values:
        m.differences[OTHERWISE].append(
            "reference: the policy with the adapter that it starts from; LLaMA-Factory compares "
            "with the base without it"
        )
