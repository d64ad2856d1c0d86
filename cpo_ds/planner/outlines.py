"""The recipe's model without weights, built from its configuration or from a named shape."""

from __future__ import annotations

import tempfile
from typing import Any

from cpo_ds.config import Config, LoraConfig
from cpo_ds.errors import UserError
from cpo_ds.model.flops import MatrixWeights, matrix_weights
from cpo_ds.model.offline import outline
from cpo_ds.model.quantization import quantized_names
from cpo_ds.model.recomputation import recomputed_layers
from cpo_ds.model.shapes import SHAPES, shape_config
from cpo_ds.planner.activations import measure_passes
from cpo_ds.planner.passes import DepthModel, PassModel
from cpo_ds.planner.row_shape import PAIR, RowShape
from cpo_ds.planner.states import Weights


class Outlines:
    """Builds a recipe's model without weights and measures it.

    `shape` names a model of `SHAPES` that stands in for the recipe's own; None takes the recipe's.
    `rows` are the rows that it trains on. `suggests_shape` is whether a message about a missing
    model names shapes.
    """

    def __init__(
        self, shape: str | None, rows: RowShape = PAIR, *, suggests_shape: bool = True
    ) -> None:
        self.rows = rows
        self._shape = shape
        self._suggests_shape = suggests_shape
        # By the settings that decide them.
        self._measured: dict[tuple[Any, ...], DepthModel] = {}
        self._weights: dict[str, Weights] = {}
        self._newest: tuple[str, Any] | None = None  # the outline that was built last, unchanged
        self._depth: int | None = None

    def build(self, config: Config) -> Any:
        """Returns the language model on the meta device, to change at will.

        Raises `UserError` if it is missing.
        """
        kept, self._newest = self._newest, None
        if kept is not None and kept[0] == _outline_key(config):
            return kept[1]
        try:
            if self._shape is None:
                return outline(config)
            with tempfile.TemporaryDirectory() as folder:
                shape_config(self._shape).save_pretrained(folder)
                return outline(_with_model_folder(config, folder))
        except UserError as error:
            if self._shape is not None or not self._suggests_shape:
                raise
            names = ", ".join(SHAPES)
            raise UserError(
                f"{error} To plan without the model, give --shape, one of {names}."
            ) from None

    def _to_read(self, config: Config) -> Any:
        """As `build`, of a model that is not changed: the next call may return the same one."""
        model = self.build(config)
        self._newest = _outline_key(config), model
        return model

    def weights(self, config: Config) -> Weights:
        """Numbers of weights by parameter, DPO's second model included."""
        model = config.model.model_copy(update={"gradient_checkpointing": False})
        key = repr((model, config.lora, config.loss))
        if key not in self._weights:
            self._weights[key] = self._count(config)
        return self._weights[key]

    def _count(self, config: Config) -> Weights:
        model = self._to_read(config)
        base = getattr(model, "get_base_model", lambda: model)()
        in_4_bits = quantized_names(base) if config.model.quantization else frozenset()
        sizes: dict[bool, list[int]] = {True: [], False: []}  # by whether they are trained
        quantized: list[int] = []
        for name, parameter in base.named_parameters():
            kind = quantized if name in in_4_bits else sizes[parameter.requires_grad]
            kind.append(parameter.numel())
        reference: list[int] = []
        if config.loss.reads_reference_from("model"):
            # The second model has no new adapter. One that training continues is part of it.
            new_adapter = config.lora is not None and not config.continues_adapter
            plain = self._to_read(
                config.model_copy(update={"lora": None}) if new_adapter else config
            )
            reference = [parameter.numel() for parameter in plain.parameters()]
        return Weights(tuple(sizes[True]), tuple(sizes[False]), tuple(reference), tuple(quantized))

    def matrices(self, config: Config) -> MatrixWeights:
        """Weights in matrix products of the body and of the head."""
        model = self._to_read(config)
        return matrix_weights(getattr(model, "get_base_model", lambda: model)())

    def depth(self, config: Config) -> int:
        """The number of decoder layers, which no other setting changes."""
        if self._depth is None:
            model = self._to_read(config)
            base = getattr(model, "get_base_model", lambda: model)()
            self._depth = len(base.get_decoder().layers)
        return self._depth

    def passes(
        self,
        config: Config,
        *,
        stage: int,
        gpu: bool = True,
        pair: tuple[int, ...] | None = None,
    ) -> PassModel:
        """Memory of a forward and backward pass at a ZeRO stage.

        `pair` gives tokens of (prefix, chosen, rejected, ...) in place of those of `rows`.
        """
        layers, lengths = self.depth(config), pair or self.rows.lengths
        count = recomputed_layers(config.model.gradient_checkpointing, layers)

        def measured(recomputes: bool) -> DepthModel:
            return self._depth_model(config, recomputes, stage, gpu, lengths)

        # Models with both kinds of layers are planned from those with one kind.
        if count in (0, layers):
            return measured(count > 0).at(layers)
        return measured(False).with_recomputed(measured(True), layers, count)

    def _depth_model(
        self, config: Config, recomputes: bool, stage: int, gpu: bool, pair: tuple[int, ...]
    ) -> DepthModel:
        """Measures passes, or looks them up if models with the same settings were measured."""
        saves_inputs = stage == 3 and config.trains_adapter
        key = (
            config.model.dtype, config.model.head_chunk_tokens, config.model.kernels,
            repr(config.lora), config.trains_adapter, saves_inputs, recomputes, gpu, pair,
        )  # fmt: skip
        if key not in self._measured:
            self._measured[key] = measure_passes(
                self.build(config),
                config,
                recomputes=recomputes,
                flash=gpu and config.model.dtype != "float32",
                saves_inputs=saves_inputs,
                pair=pair,
            )
        return self._measured[key]


def _outline_key(config: Config) -> str:
    """The settings that an outline is built from. Layers are recomputed by who runs it."""
    model = config.model.model_copy(update={"gradient_checkpointing": False})
    return repr((model, config.lora))


def _with_model_folder(config: Config, folder: str) -> Config:
    """The recipe with a model folder that holds a configuration alone, and no adapter files."""
    if config.continues_adapter and config.lora is None:
        raise UserError(
            f"with --shape the settings of the adapter {config.model.adapter} are not known; "
            "give them in a lora section (--lora.rank 16, ...)."
        )
    return config.with_model(name_or_path=folder, adapter=None, adapter_mode="continue")


def full_variant(config: Config) -> Config:
    """A recipe changed to train all parameters."""
    of_model = {"adapter": None} if config.continues_adapter else {}
    update: dict[str, Any] = {"lora": None}
    if config.loss.reads_reference_from("adapter"):
        update["loss"] = config.loss.model_copy(update={"reference": "model"})
    return config.with_model(quantization=None, **of_model).model_copy(update=update)


def lora_variant(config: Config) -> Config:
    """A recipe changed to train a LoRA adapter: its own, else one of default settings."""
    return config if config.trains_adapter else config.model_copy(update={"lora": LoraConfig()})
