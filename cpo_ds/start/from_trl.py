"""Moves TRL's `CPOConfig`, and the arguments of its scripts, into a recipe."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.start.foreign_files import Source
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

TRL_DEFAULTS = DEFAULTS | {  # of CPOConfig, ModelConfig and ScriptArguments in TRL 1.16
    "learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True, "bf16": True,
    "max_length": 1024, "beta": 0.1, "label_smoothing": 0.0, "loss_type": "sigmoid",
    "disable_dropout": True, "cpo_alpha": 1.0, "simpo_gamma": 0.5, "alpha": 0.0,
    "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "dataset_train_split": "train",
}  # fmt: skip
_UNLIMITED = 4096  # tokens of a pair, if the other trainer sets no limit
_NLL = (
    "NLL term: a mean over the chosen tokens of the whole step; TRL's is a mean over each "
    "micro-batch, so it changes with the batch per device"
)
_TRUNCATION = "a longer pair is dropped and counted; TRL cuts its texts"


def move_trl(source: Source, script: Path, gpus: int | None, rows: int | None) -> Moving:
    """The settings of a file of TRL, moved. Raises `UserError` for wrong values."""
    m = Moving(source.settings, TRL_DEFAULTS, "TRL")
    _move_model(m)
    _move_data(m)
    move_lengths(m)
    move_objective(m)
    size = move_batch(m, source, gpus, rows)
    total = move_course(m, size)
    move_optimizer(m, total)
    move_precision(m, source)
    checkpointing = m.flag("gradient_checkpointing")
    move_recomputation(m, checkpointing, "gradient_checkpointing")
    move_evaluation(m, total, holds_out=False)
    move_saving(m, total)
    move_deepspeed(m, source, script)
    return m


def move_name_of_model(m: Moving) -> None:
    """The policy's folder or name."""
    name = "model" if m.has("model") else "model_name_or_path"
    if m.has(name):
        m.put("model.name_or_path", str(m.take(name)), name)
    else:
        m.assume("model.name_or_path", "/models/my-llm", "the file names no model; change this")


def _move_model(m: Moving) -> None:
    move_name_of_model(m)
    names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora")
    if m.flag("use_peft"):
        move_lora(m, "lora_r", "lora_target_modules", drops=not m.flag("disable_dropout"))
    else:
        for name in filter(m.has, names):
            m.tell(EQUAL, name, "without use_peft TRL trains all parameters")
        m.take("use_peft")
        m.differences[ASSUMED].append(
            "no LoRA, since use_peft is not set; if the script gives a peft_config, add a lora "
            "section"
        )
    if m.flag("load_in_4bit"):
        if str(m.take("bnb_4bit_quant_type", "nf4")) == "nf4" and "lora.rank" in m.values:
            m.put("model.quantization", "nf4", "load_in_4bit")
        else:
            m.tell(LOST, "load_in_4bit", "a base in 4 bits is nf4, under a LoRA adapter")


def _move_data(m: Moving) -> None:
    m.assume("data.format", "pairs", "rows of TRL have prompt, chosen and rejected")
    if m.has("dataset_name"):
        m.put("data.path", str(m.take("dataset_name")), "dataset_name")
        m.put("data.split", str(m.take("dataset_train_split")), "dataset_train_split")
    else:
        m.assume("data.path", "my_pairs.jsonl", "the file names no data; change this")
    if m.has("dataset_config"):
        m.tell(LOST, "dataset_config", "download that configuration, and give its folder")
    if m.has("dataset_test_split"):
        m.tell(LOST, "dataset_test_split", "set data.eval_fraction, or data.eval_path to a file")
    m.assume(
        "data.add_bos",
        "always",
        "TRL's CPO puts the token before every prompt; auto would follow the tokenizer",
    )


def move_lengths(m: Moving) -> None:
    """The most tokens of a pair and of a prompt."""
    if "max_length" in m.settings and m.settings["max_length"] is None:
        m.assume("data.max_tokens", _UNLIMITED, "max_length sets no limit")
        m.take("max_length")
    else:
        m.put("data.max_tokens", m.whole("max_length"), "max_length")
        m.tell(OTHERWISE, "max_length", _TRUNCATION)
    if m.has("max_prompt_length"):
        m.put("data.max_prompt_tokens", m.whole("max_prompt_length"), "max_prompt_length")
        m.tell(
            OTHERWISE,
            "max_prompt_length",
            "a pair with a longer prompt is dropped and counted;"
            " older TRL cut such prompts, and TRL 1.16 has no such setting",
        )
    else:
        most = m.values["data.max_tokens"].value
        m.assume("data.max_prompt_tokens", most, "no limit but that of the pair")
    if m.has("truncation_mode"):
        m.tell(OTHERWISE, "truncation_mode", _TRUNCATION)


def move_objective(m: Moving) -> None:
    """The objective, its parameters, and how the NLL term is averaged."""
    kind, weight = str(m.take("loss_type")), m.number("cpo_alpha")
    shape = m.number("alpha", 0.0)
    if kind == "alphapo":
        m.tell(LOST, "loss_type", "there is no AlphaPO; simpo is the closest objective here")
        kind, weight = "simpo", 0.0
    if shape:
        m.tell(
            LOST,
            "alpha",
            "there is no AlphaPO, whose reward it shapes; loss.alpha is the weight "
            "of the NLL term, TRL's cpo_alpha",
        )
    names = {"sigmoid": "cpo", "hinge": "hinge", "ipo": "ipo",
             "simpo": "cpo-simpo" if weight else "simpo"}  # fmt: skip
    relaxed = [name for name in ("relax_cofficient_1", "relax_cofficient_2") if m.has(name)]
    name = names.get(kind, "cpo")
    if kind not in names:
        m.tell(LOST, "loss_type", "there is no such objective here; the recipe takes cpo")
    if relaxed and name == "cpo":
        name = "arpo"
        m.put("loss.arpo_scale", m.number("relax_cofficient_1", 0.9), "relax_cofficient_1")
        m.put("loss.arpo_rate", m.number("relax_cofficient_2", 0.4), "relax_cofficient_2")
    m.put("loss.name", name, "loss_type")
    m.put("loss.beta", m.number("beta"), "beta")
    if name != "simpo":
        m.put("loss.alpha", weight, "cpo_alpha")
    if name in ("simpo", "cpo-simpo"):
        m.put("loss.gamma", m.number("simpo_gamma"), "simpo_gamma")
    elif m.has("simpo_gamma"):
        m.tell(EQUAL, "simpo_gamma", "TRL uses it with loss_type simpo alone")
    smoothing = m.number("label_smoothing")
    if smoothing and name in ("hinge", "ipo"):
        m.tell(EQUAL, "label_smoothing", f"{name} does not use it, in TRL and here")
    elif smoothing:
        m.put("loss.label_smoothing", smoothing, "label_smoothing")
    if weight:
        m.differences[OTHERWISE].append(_NLL)
    m.flag("disable_dropout")
