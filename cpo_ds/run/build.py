"""Builds a run from its inputs: loads the policy, starts the engine, restores a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cpo_ds.checkpoint.identity import (
    BASE,
    PAIRS,
    SHAPE,
    changed_settings,
    check_identity,
    check_weights_before,
)
from cpo_ds.checkpoint.interval import SaveInterval
from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.checkpoint.reshard import convert, needs_conversion
from cpo_ds.checkpoint.resume import find_checkpoint, load
from cpo_ds.checkpoint.save import Saver
from cpo_ds.config import Config
from cpo_ds.data.pair_columns import count_directions, pairs_fingerprint
from cpo_ds.engine.engine import Engine, gather_parameters, sharded_loading
from cpo_ds.engine.rounding import rounding_line
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.model.adapter import gather_nothing
from cpo_ds.model.base_identity import base_settings
from cpo_ds.model.hub import adapter_fingerprint
from cpo_ds.model.load import load_policy, load_reference, model_shape
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.ranks.stopping import StopRequest
from cpo_ds.recipe import parse_config
from cpo_ds.run.monitor import Monitor, SilentMonitor
from cpo_ds.run.reference import with_reference_logps
from cpo_ds.run.samples import Sampler, read_samples
from cpo_ds.run.trackers import open_trackers
from cpo_ds.run.trainer import Run, planned_steps
from cpo_ds.schema import TokenizedPair
from cpo_ds.storage.metrics_file import cut_back_metrics


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a run goes on from."""

    manifest: Manifest
    saved: Path  # the folder as it was saved
    load_from: Path  # `saved`, or its universal form

    @property
    def is_converted(self) -> bool:
        """Whether another number of ranks saved the checkpoint."""
        return self.load_from != self.saved


@dataclass(frozen=True)
class RunInputs:
    """Everything that is known of a run before its model is loaded."""

    config: Config
    settings: DeepSpeedSettings
    ranks: Ranks
    train_pairs: Sequence[TokenizedPair]
    eval_pairs: Sequence[TokenizedPair] = ()  # held out
    identity: dict[str, Any] = field(default_factory=dict)  # see `run_identity`
    tokenizer: dict[str, str] = field(default_factory=dict)  # see `tokenizer_fingerprints`
    text_tokenizer: Any = None  # for `train.sample_translations`
    resume: Resume | None = None  # None for a new run
    is_measured: bool = False  # all steps are trained and all metrics written; the export is left
    stop: StopRequest = field(default_factory=StopRequest)


def find_resume(
    config: Config,
    settings: DeepSpeedSettings,
    ranks: Ranks,
    identity: dict[str, Any],
    tokenizer: dict[str, str],
) -> Resume | None:
    """Finds and verifies the checkpoint to go on from; None for a new run.

    Raises `UserError` for one that is damaged or of another run.
    """
    folder = Path(config.output_dir) / "checkpoints"
    is_local = settings.keeps_local_checkpoints
    checkpoint = find_checkpoint(config.checkpoint, folder, ranks, ranks.say, is_local=is_local)
    if checkpoint is None:
        return None
    path, manifest = checkpoint
    check_identity(path, manifest, identity, config, tokenizer)
    return Resume(manifest, path, path)


def say_changes(resume: Resume, config: Config, settings: DeepSpeedSettings, ranks: Ranks) -> None:
    """Prints settings that differ from those of the checkpoint, which a run may change."""
    for change in changed_settings(resume.manifest, config, settings):
        ranks.say(f"changed since {resume.saved.name} was saved: {change}")


def for_these_ranks(
    resume: Resume, config: Config, settings: DeepSpeedSettings, ranks: Ranks
) -> Resume:
    """The checkpoint in a form that these ranks can load, converted if others saved it.

    Raises `UserError` for a checkpoint of another ZeRO stage.
    """
    path, manifest = resume.saved, resume.manifest
    if not needs_conversion(path, manifest, ranks.world_size, settings.stage):
        return resume
    folder = Path(config.output_dir) / "checkpoints"
    ranks.say(
        f"{path} was saved by {manifest.ranks} rank(s), here are {ranks.world_size}: converting it "
        f"to DeepSpeed's universal format ({manifest.size / 2**30:.1f} GiB)"
    )
    in_folders = ranks.per_folder(is_local=settings.keeps_local_checkpoints)
    universal, seconds = in_folders(lambda: convert(path, manifest, folder))
    ranks.say(
        f"{universal} " + ("is there already" if seconds is None else f"took {seconds:.0f} s")
    )
    return Resume(manifest, path, universal)


def as_trained(config: Config, manifest: Manifest) -> Config:
    """The configuration of a run whose steps are all trained.

    Data, optimizer and training are as in the checkpoint. The rest, such as devices, checkpoints,
    logs and folders, is as in `config`.
    """
    before = parse_config(manifest.configuration, "the checkpoint's manifest")
    kept = {name: getattr(before, name) for name in ("data", "optim", "train")}
    return config.model_copy(update=kept)


def build_run(inputs: RunInputs) -> Run:
    """Loads the policy (sharded under ZeRO-3), starts the engine and opens the monitor.

    With `inputs.resume`, weights, optimizer and random states are those of that checkpoint. Raises
    `UserError`.
    """
    config, ranks, resume = inputs.config, inputs.ranks, inputs.resume
    settings = inputs.settings
    if resume and resume.is_converted:
        settings = settings.with_universal_loading()
    engine, attention = _start_engine(config, settings, ranks)
    # The reference is the policy as it is now, before a checkpoint is loaded into it.
    train_pairs, eval_pairs = inputs.train_pairs, inputs.eval_pairs
    if config.loss.reads_reference_from("precomputed"):
        train_pairs, eval_pairs = (
            with_reference_logps(engine, ranks, config, pairs) if pairs else pairs
            for pairs in (train_pairs, eval_pairs)
        )
    # Dropout differs between ranks. Resumed on as many ranks, the checkpoint's states win.
    first_step = resume.manifest.step if resume else 0
    torch.manual_seed(config.train.seed * 100_003 + first_step * 1009 + ranks.rank)
    if resume:
        check_weights_before(resume.saved, resume.manifest, engine.policy.fingerprint)
        load(
            engine,
            ranks,
            resume.load_from,
            adapter_only=config.trains_adapter,
            same_ranks=resume.manifest.ranks == ranks.world_size,
        )
    # Lines of steps that are trained again are dropped from the metrics before more are added.
    if not inputs.is_measured:
        ranks.on_first(lambda: cut_back_metrics(Path(config.output_dir), first_step))
    monitor = ranks.everywhere(lambda: _open_monitor(inputs, first_step))
    monitor.say(attention)
    monitor.say(
        f"training {'a LoRA adapter' if config.trains_adapter else 'all parameters'} with "
        f"{config.loss.name} in {config.model.dtype} on {ranks.world_size} rank(s) "
        f"({ranks.device.type}), ZeRO-{engine.stage}"
    )
    if config.optim.states == "bfloat16":
        monitor.say(rounding_line(engine.whole_parameters(trained_only=True), config.optim))
    manifest = _manifest(inputs, engine.policy.fingerprint)
    saver = Saver(engine, ranks, config, manifest, monitor.say)
    return Run(
        config,
        engine,
        ranks,
        monitor,
        saver,
        manifest,
        train_pairs=train_pairs,
        eval_pairs=eval_pairs,
        first_step=first_step,
        stop=inputs.stop,
        interval=SaveInterval(config.checkpoint),
        sampler=_sampler(inputs, engine, monitor),
    )


def _sampler(inputs: RunInputs, engine: Engine, monitor: SilentMonitor) -> Sampler | None:
    """Makes the translations of evaluations; None if the recipe asks for none."""
    config, ranks, tokenizer = inputs.config, inputs.ranks, inputs.text_tokenizer
    if inputs.is_measured or not config.train.sample_translations:
        return None
    texts = read_samples(config, ranks, inputs.eval_pairs, tokenizer)
    return Sampler(config, engine, ranks, monitor, inputs.stop, texts, tokenizer) if texts else None


def _start_engine(config: Config, settings: DeepSpeedSettings, ranks: Ranks) -> tuple[Engine, str]:
    """Loads the policy, and DPO's reference if it is a model; the text is a line for the log."""
    # ZeRO-3 splits each weight while it is read; else weights are read straight onto the GPU.
    is_sharded = settings.stage == 3
    gather = gather_parameters if is_sharded else gather_nothing
    on_gpu = not is_sharded and ranks.device.type == "cuda"
    with sharded_loading(settings, ranks):
        policy, attention = load_policy(
            config, device=ranks.device, gather=gather, place_on_device=on_gpu
        )
        reference = None
        if config.loss.reads_reference_from("model"):
            reference = load_reference(
                config, device=ranks.device, gather=gather, place_on_device=on_gpu
            )
        return Engine(policy, config, settings, reference), attention


def _open_monitor(inputs: RunInputs, first_step: int) -> SilentMonitor:
    config = inputs.config
    if inputs.ranks.rank > 0:
        return SilentMonitor()
    return Monitor(
        Path(config.output_dir),
        tensorboard=config.logging.tensorboard and not inputs.is_measured,
        first_step=first_step,
        total_steps=planned_steps(config, len(inputs.train_pairs)),
        trackers=[] if inputs.is_measured else open_trackers(config, resumes=first_step > 0),
    )


def _manifest(inputs: RunInputs, fingerprint: str) -> Manifest:
    """The manifest that all checkpoints of a run share; each adds its step and files.

    `fingerprint` is that of the weights before training.
    """
    settings, ranks = inputs.settings, inputs.ranks
    pairs = {"training pairs": inputs.train_pairs, "held-out pairs": inputs.eval_pairs}
    return Manifest(
        step=0,
        ranks=ranks.world_size,
        zero_stage=settings.stage,
        identity=inputs.identity,
        weights_before=fingerprint,
        configuration=inputs.config.model_dump(mode="json"),
        deepspeed=settings.file,
        data={name: _by_direction(of_kind) for name, of_kind in pairs.items()},
        tokenizer=inputs.tokenizer,
        hosts=list(ranks.hosts) if settings.keeps_local_checkpoints else [],
    )


def _by_direction(pairs: Sequence[TokenizedPair]) -> dict[str, int]:
    """Numbers of pairs by direction."""
    counts = count_directions(pairs)
    return dict(sorted((name or "unknown", count) for name, count in counts.items()))


def run_identity(config: Config, pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    """The values that a run must share with a checkpoint to resume from it; `pairs` are trained.

    Names are those that a message shows if one differs. Values are as JSON gives them back.
    """
    identity = {
        SHAPE: model_shape(config),  # for checkpoints of older versions
        BASE: base_settings(config.model.name_or_path),
        "starting adapter (fingerprint)": adapter_fingerprint(config.model.adapter)
        if config.model.adapter
        else None,
        "adapter mode": config.model.adapter_mode if config.model.adapter else None,
        "precision": config.model.dtype,
        "quantization": config.model.quantization,
        # None is float32: manifests of older versions lack it.
        "optimizer states": "bfloat16" if config.optim.states == "bfloat16" else None,
        "LoRA": config.lora.model_dump() if config.lora else None,
        "loss": config.loss.model_dump(exclude={"reference", "reference_cache"}),
        PAIRS: pairs_fingerprint(pairs),
        "pairs per step": config.batch.pairs,
        "seed": config.train.seed,
    }
    return json.loads(json.dumps(identity, default=str))
