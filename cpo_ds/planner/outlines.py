"""The recipe's model without weights, built from its configuration or from a named shape."""

from __future__ import annotations

import tempfile
from typing import Any

from cpo_ds.config import Config, LoraConfig
from cpo_ds.errors import UserError
from cpo_ds.model.flops import MatrixWeights, matrix_weights
from cpo_ds.model.offline import outline
from cpo_ds.model.shapes import SHAPES, shape_config
from cpo_ds.planner.activations import PassModel, pass_model
from cpo_ds.planner.states import Weights


class Outlines:
    """Builds a recipe's model without weights and measures it.

    `shape` names a model of `SHAPES` that stands in for the recipe's own; None takes the recipe's.
    """

    def __init__(self, shape: str | None) -> None:
        self._shape = shape
        self._passes: dict[tuple[Any, ...], PassModel] = {}  # by the settings that decide them

    def build(self, config: Config) -> Any:
        """Returns the language model on the meta device. Raises `UserError` if it is missing."""
        try:
            if self._shape is None:
                return outline(config)
            with tempfile.TemporaryDirectory() as folder:
                shape_config(self._shape).save_pretrained(folder)
                return outline(_with_model_folder(config, folder))
        except UserError as error:
            if self._shape is not None:
                raise
            names = ", ".join(SHAPES)
            raise UserError(
                f"{error} To plan without the model, give --shape, one of {names}."
            ) from None

    def weights(self, config: Config) -> Weights:
        """Numbers of weights by parameter, DPO's second model included."""
        model = self.build(config)
        sizes: dict[bool, list[int]] = {True: [], False: []}  # by whether they are trained
        for parameter in model.parameters():
            sizes[parameter.requires_grad].append(parameter.numel())
        reference: list[int] = []
        if config.loss.reads_reference_from("model"):
            # The second model has no new adapter. One that training continues is part of it.
            new_adapter = config.lora is not None and not config.continues_adapter
            plain = self.build(config.model_copy(update={"lora": None}) if new_adapter else config)
            reference = [parameter.numel() for parameter in plain.parameters()]
        return Weights(tuple(sizes[True]), tuple(sizes[False]), tuple(reference))

    def matrices(self, config: Config) -> MatrixWeights:
        """Weights in matrix products of the body and of the head."""
        model = self.build(config)
        return matrix_weights(getattr(model, "get_base_model", lambda: model)())

    def passes(self, config: Config, *, stage: int, gpu: bool = True) -> PassModel:
        """Memory of a forward and backward pass at a ZeRO stage."""
        saves_inputs = stage == 3 and config.trains_adapter
        key = (
            config.model.dtype, config.model.gradient_checkpointing,
            config.model.head_chunk_tokens, repr(config.lora), config.trains_adapter, saves_inputs,
        )  # fmt: skip
        if key not in self._passes:
            flash = gpu and config.model.dtype != "float32"
            self._passes[key] = pass_model(
                self.build(config), config, flash=flash, saves_inputs=saves_inputs
            )
        return self._passes[key]


def _with_model_folder(config: Config, folder: str) -> Config:
    """The recipe with a model folder that holds a configuration alone, and no adapter files."""
    if config.continues_adapter and config.lora is None:
        raise UserError(
            f"with --shape the settings of the adapter {config.model.adapter} are not known; "
            "give them in a lora section (--lora.rank 16, ...)."
        )
    model = config.model.model_copy(
        update={"name_or_path": folder, "adapter": None, "adapter_mode": "continue"}
    )
    return config.model_copy(update={"model": model})


def full_variant(config: Config) -> Config:
    """A recipe changed to train all parameters."""
    update: dict[str, Any] = {"lora": None}
    if config.continues_adapter:
        update["model"] = config.model.model_copy(update={"adapter_mode": "merge"})
    if config.loss.reads_reference_from("adapter"):
        update["loss"] = config.loss.model_copy(update={"reference": "model"})
    return config.model_copy(update=update)


def lora_variant(config: Config) -> Config:
    """A recipe changed to train a LoRA adapter: its own, else one of default settings."""
    return config if config.trains_adapter else config.model_copy(update={"lora": LoraConfig()})
