"""Leaf modules of ZeRO-3: decoder layers that are gathered and released as a whole."""

from __future__ import annotations

from deepspeed.utils import set_z3_leaf_module

from cpo_ds.model.policy import PolicyModel


def mark_leaf_layers(policy: PolicyModel) -> None:
    """Makes ZeRO-3 treat each decoder layer as one module, which spares the host many small steps.

    One layer may be left out: a leaf's gradients are reduced when the gradient of its input is
    ready. The first layer that trains has no such gradient if all before it is frozen, as with
    LoRA, and its own gradients would be taken before they are there.
    """
    decoder = policy.causal_lm.get_decoder()
    trained = (name for name, weight in decoder.named_parameters() if weight.requires_grad)
    first_trained = next(trained, "")
    for number, layer in enumerate(decoder.layers):
        if not first_trained.startswith(f"layers.{number}."):
            set_z3_leaf_module(layer, True)
