"""Gradient checkpointing of the first layers: their activations are recomputed, not kept."""

from __future__ import annotations

from typing import Any

from cpo_ds.errors import UserError


def recomputed_layers(setting: bool | int | str, depth: int) -> int:
    """How many of `depth` layers `model.gradient_checkpointing` recomputes, from the first on.

    `auto` must have been resolved. Raises `UserError` for more layers than the model has.
    """
    if isinstance(setting, bool):
        return depth if setting else 0
    assert isinstance(setting, int), "auto is resolved before a model is built"
    if setting > depth:
        raise UserError(
            f"model.gradient_checkpointing is {setting}, but the model has {depth} layers; give at "
            "most as many, or true for all."
        )
    return setting


def recompute_layers(causal_lm: Any, setting: bool | int | str) -> None:
    """Makes the first layers keep only their inputs, as `model.gradient_checkpointing` says."""
    layers = causal_lm.get_decoder().layers
    count = recomputed_layers(setting, len(layers))
    if count == 0:
        return
    causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number < count
