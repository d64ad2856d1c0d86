"""Every setting of a run, with its type, default, limits and description.

`recipe.load_config` makes a `Config` from a YAML file and the command line, and validates it. The
rest of the program trusts its values. The descriptions below also make up `--help` and
docs/configuration.md.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from cpo_ds.settings.data import DataConfig
from cpo_ds.settings.objective import LossConfig
from cpo_ds.settings.section import Section


class ModelConfig(Section):
    """The policy: its weights, precision and attention."""

    name_or_path: str = Field(description="policy to train: a folder or a Hugging Face model name")
    adapter: str | None = Field(None, description="adapter to start from: a folder or a name")
    adapter_mode: Literal["continue", "merge"] = Field(
        "continue", description="continue to train that adapter, or merge it into the policy first"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "bfloat16",
        description="precision of weights and activations; auto: bfloat16 if the devices are "
        "faster in it, else float32",
    )
    quantization: Literal["nf4"] | None = Field(
        None,
        description="keep the frozen base of a LoRA adapter in 4 bits, by bitsandbytes (nf4); "
        "none: in model.dtype",
    )
    attention: Literal[
        "auto", "reference", "sdpa", "torch_varlen",
        "flash_attn", "flash_attn_3", "flash_attn_4", "flex", "blocks",
    ] = Field("auto", description="attention backend")  # fmt: skip
    kernels: Literal["auto", "compiled", "eager", "transformers"] = Field(
        "auto",
        description="norms, rotary positions, SwiGLU and LoRA in fewer passes over memory: "
        "compiled by torch (auto on a GPU), eager (auto on a CPU), or as transformers and PEFT "
        "write them",
    )
    gradient_checkpointing: bool | int | Literal["auto"] = Field(
        False,
        description="recompute activations to save memory: of all layers, of none, of as many from "
        "the first on, or auto, the fewest by the planner's estimate",
    )
    head_chunk_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="scored tokens per chunk of logits; auto: 512 to 2048, by the vocabulary and "
        "whether the head is trained",
    )

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _check_layers(cls, value: object) -> object:
        is_number = isinstance(value, int) and value >= 0  # true and false are numbers too
        if not is_number and value != "auto":
            raise ValueError(f"must be true, false, auto or a number of layers, but is {value!r}")
        return value


class LoraConfig(Section):
    """A new LoRA adapter."""

    rank: int = Field(16, gt=0, description="rank of the update")
    alpha: float = Field(32.0, gt=0.0, description="scale: the update is multiplied by alpha/rank")
    dropout: float = Field(0.05, ge=0.0, lt=1.0, description="dropout before the update")
    target_modules: list[str] | str = Field(
        ["down_proj"], description="names of the linear layers to adapt, or all-linear"
    )


class OptimConfig(Section):
    """AdamW and the learning rate."""

    learning_rate: float = Field(1e-4, gt=0.0, description="peak learning rate")
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = Field(
        "inverse_sqrt", description="course of the learning rate after the warm-up"
    )
    warmup_ratio: float = Field(
        0.01, ge=0.0, le=1.0, description="share of all steps that raise the learning rate linearly"
    )
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW's decoupled weight decay")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's betas")
    eps: float = Field(1e-8, gt=0.0, description="AdamW's epsilon")
    states: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of the master copy of the weights and of AdamW's moments; bfloat16 "
        "takes half the memory and loses small updates in rounding (see docs/numerics.md)",
    )
    max_grad_norm: float = Field(
        1.0, ge=0.0, description="gradient norm to clip at; 0: no clipping"
    )


class BatchConfig(Section):
    """The size of a step and of its micro-batches."""

    pairs: int = Field(128, gt=0, description="preference pairs per optimizer step, over all ranks")
    tokens_per_rank: int = Field(
        4096, gt=0, description="most unique tokens that a rank packs into one micro-batch"
    )
    share_prefix: Literal["common", "prompt", "none"] = Field(
        "common",
        description="computed once per pair: its longest common beginning, its prompt, or nothing",
    )


class TrainConfig(Section):
    """The course of a run: its length, evaluations and limits."""

    epochs: int = Field(1, gt=0, description="passes over the data")
    max_steps: int | None = Field(None, gt=0, description="stop after this step; none: no limit")
    seed: int = Field(42, ge=0, lt=2**32, description="seed of order, initialization and dropout")
    deterministic: bool = Field(
        False, description="give the same bits in every run on the same GPUs, at some cost of time"
    )
    eval_every_steps: int | None = Field(
        None, gt=0, description="steps between evaluations; none: only before and after training"
    )
    sample_translations: int = Field(
        0,
        ge=0,
        description="held-out sources to translate greedily at each evaluation, into samples.jsonl "
        "and TensorBoard; 0: none",
    )
    sample_max_tokens: int = Field(
        256, gt=0, description="most tokens of such a translation; each costs a pass of the model"
    )
    sample_metrics: list[Literal["chrf", "bleu"]] = Field(
        [],
        description="metrics of these translations, by sacreBLEU; without references in the data, "
        "against the chosen texts",
    )
    max_hours: float | None = Field(
        None, gt=0, description="save and stop after this time, with exit code 4; none: no limit"
    )
    stall_minutes: float | None = Field(
        30.0,
        gt=0,
        description="stop the run if no rank makes progress for this many minutes, and save stack "
        "traces; reading and writing files counts as progress; none: no limit",
    )


class CheckpointConfig(Section):
    """Checkpoints, resuming and the export."""

    every_steps: int | None = Field(
        None, gt=0, description="steps between checkpoints; none: only by time, and at the end"
    )
    every_minutes: float | None = Field(
        None,
        gt=0,
        description="save after the step that ends this long after the last checkpoint, or after "
        "the start; beside every_steps, whichever comes first",
    )
    keep_last: int = Field(2, gt=0, description="checkpoints to keep; older ones are deleted")
    resume: str = Field(
        "auto",
        description="auto: from the newest checkpoint, if any; never; restart: move an earlier run "
        "aside and begin anew; or a folder",
    )
    on_damage: Literal["fall_back", "stop"] = Field(
        "fall_back", description="if a checkpoint is damaged: resume from an older one, or stop"
    )
    on_save_error: Literal["go_on", "stop"] = Field(
        "go_on", description="if a checkpoint cannot be saved (full disk): train on, or stop"
    )
    in_background: bool = Field(
        False, description="write while training goes on; takes host memory for a copy of the state"
    )
    export: bool = Field(True, description="write the adapter or model to export/ at the end")
    verify_export: bool = Field(
        True, description="load the export again and compare its log-probs of a few pairs"
    )


class LoggingConfig(Section):
    """Metrics of a run."""

    every_steps: int = Field(1, gt=0, description="steps between two lines of metrics")
    tensorboard: bool = Field(True, description="also write the metrics as TensorBoard events")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [],
        description="also send the metrics to these trackers, which must be installed where rank 0 "
        "runs; see docs/trackers.md",
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _read_trackers(cls, value: object) -> object:
        """Takes one name for a list of one, and none for no trackers."""
        return [value] if isinstance(value, str) else value or []

    @model_validator(mode="after")
    def _check_trackers(self) -> LoggingConfig:
        if "tensorboard" in self.trackers and not self.tensorboard:
            raise ValueError(
                "logging.trackers names tensorboard, but logging.tensorboard is false; leave one "
                "of them out"
            )
        return self


class Config(Section):
    """All settings of a run."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    lora: LoraConfig | None = Field(
        None, description="new LoRA adapter; none: train all parameters, or continue model.adapter"
    )
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    deepspeed: str = Field(
        "zero3",
        description="DeepSpeed file: a shipped one's name, a path, or auto, the first of zero0 "
        "(adapters in half precision: zero1), zero2, zero3 and zero3-offload that fits by the "
        "planner's estimate",
    )
    output_dir: str = Field("runs/default", description="folder for everything that the run writes")

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.adapter_mode == "merge" and not self.model.adapter:
            raise ValueError("model.adapter_mode is merge, but model.adapter names no adapter")
        if self.model.quantization:
            self._check_quantization(self.model.quantization)
        if self.train.sample_translations and not (self.data.eval_fraction or self.data.eval_path):
            raise ValueError(
                "train.sample_translations translates held-out sources, and the recipe holds none "
                "out; set data.eval_fraction or data.eval_path"
            )
        if self.train.sample_metrics and not self.train.sample_translations:
            raise ValueError(
                "train.sample_metrics measures translations, and the recipe makes none; set "
                "train.sample_translations"
            )
        if self.loss.needs_scores and self.data.format in ("x-alma", "sample"):
            needs = "loss.score_margin" if self.loss.score_margin else "loss.name: plackett-luce"
            raise ValueError(
                f"{needs} needs the scores of texts, and rows of data.format: {self.data.format} "
                "have none; pairs (with chosen_score and rejected_score, as cpo-ds prepare select "
                "writes them), triplets and alma-r do"
            )
        makes_adapter = self.lora is not None and not self.continues_adapter
        if self.loss.reads_reference_from("adapter") and not makes_adapter:
            raise ValueError(
                "loss.reference: adapter switches a new LoRA adapter off, but the recipe "
                f"{'continues an old one' if self.continues_adapter else 'trains none'}; set "
                "loss.reference to model or precomputed"
            )
        return self

    def _check_quantization(self, kind: str) -> None:
        """Raises `ValueError` for anything that needs the base's weights as they were."""
        if not self.trains_adapter:
            raise ValueError(
                f"model.quantization: {kind} freezes the weights, and the recipe trains all of "
                "them; add a lora section, or leave model.quantization out"
            )
        if self.model.adapter_mode == "merge":
            raise ValueError(
                f"model.quantization: {kind} with model.adapter_mode: merge would merge into "
                "rounded weights; merge the adapter into its base first (peft's merge_and_unload, "
                "or cpo-ds export --merge) and give that model as model.name_or_path"
            )
        if self.loss.reads_reference_from("model"):
            raise ValueError(
                f"model.quantization: {kind} with loss.reference: model would hold a second model; "
                "set loss.reference to adapter or precomputed"
            )

    def with_model(self, **values: Any) -> Config:
        """The configuration with other values in its `model` section."""
        return self.model_copy(update={"model": self.model.model_copy(update=values)})

    @property
    def trains_adapter(self) -> bool:
        """Whether the run trains a LoRA adapter rather than all parameters."""
        return self.lora is not None or self.continues_adapter

    @property
    def continues_adapter(self) -> bool:
        """Whether the run continues to train the adapter that it starts from."""
        return self.model.adapter is not None and self.model.adapter_mode == "continue"
