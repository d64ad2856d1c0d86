"""Moves the settings of a LoRA adapter from other trainers."""

from __future__ import annotations

import math

from cpo_ds.start.moving import OTHERWISE, Moving


def move_lora(m: Moving, rank_name: str, targets_name: str, drops: bool) -> None:
    """A new adapter. `drops` says whether the other trainer applies its dropout."""
    rank = m.whole(rank_name)
    m.put("lora.rank", rank, rank_name)
    alpha, comment = m.number("lora_alpha", 2.0 * rank), ""
    if not m.has("lora_alpha") and "lora_alpha" not in m.defaults:
        comment = f"twice {rank_name}"
    if m.flag("use_rslora"):
        alpha, comment = alpha * math.sqrt(rank), f"x sqrt({rank}) for use_rslora"
        m.tell(
            OTHERWISE,
            "use_rslora",
            "the scale there is lora_alpha / sqrt(rank), so lora.alpha "
            f"is lora_alpha x sqrt({rank})",
        )
    m.put("lora.alpha", alpha, "lora_alpha", comment)
    dropout = m.number("lora_dropout")
    if drops or not dropout:
        m.put("lora.dropout", dropout, "lora_dropout")
    else:
        m.put("lora.dropout", 0.0, "lora_dropout", f"{m.trainer} switches it off")
        m.tell(
            OTHERWISE,
            "lora_dropout",
            f"{m.trainer} switches all dropout off, that of LoRA too "
            "(disable_dropout), so lora.dropout is 0; ALMA-R's recipe here takes 0.05",
        )
    _move_targets(m, targets_name)


def _move_targets(m: Moving, name: str) -> None:
    targets = m.names(name)
    if targets in (["all"], ["all-linear"]):
        m.put("lora.target_modules", "all-linear", name)
    elif targets:
        m.put("lora.target_modules", targets, name)
    else:
        m.assume(
            "lora.target_modules",
            ["q_proj", "v_proj"],
            "PEFT's choice for Llama, Mistral, Qwen and Gemma; others have other names",
        )
