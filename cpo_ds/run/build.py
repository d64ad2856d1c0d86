"""What a run is made of: pairs read and tokenized, the policy loaded, the engine started."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.checkpoint.reshard import convert, needs_conversion
from cpo_ds.checkpoint.resume import (
    Say,
    changed_settings,
    check_identity,
    check_weights_before,
    find_checkpoint,
    load,
)
from cpo_ds.checkpoint.save import Saver
from cpo_ds.config import Config
from cpo_ds.data.plan import check_budget
from cpo_ds.data.rows import read_rows, split_held_out
from cpo_ds.data.tokenize import pairs_fingerprint, tokenize_rows
from cpo_ds.engine.engine import Engine, gather_parameters, sharded_loading
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.model.file_checks import check_plain_lora
from cpo_ds.model.hub import adapter_fingerprint
from cpo_ds.model.load import (
    check_token_ids,
    load_model_config,
    load_policy,
    load_reference,
    load_tokenizer,
    model_shape,
)
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run.monitor import Monitor, SilentMonitor
from cpo_ds.run.reference import with_reference_logps
from cpo_ds.run.trainer import Run, planned_steps
from cpo_ds.schema import PreferenceRow, TokenizedPair
from cpo_ds.storage.metrics_file import cut_back_metrics


def prepare_pairs(
    config: Config, *, tell: bool
) -> tuple[Any, list[TokenizedPair], list[TokenizedPair]]:
    """Reads, splits and tokenizes the data; returns tokenizer, training and held-out pairs."""
    model_config = load_model_config(config.model.name_or_path)
    if config.model.adapter:
        check_plain_lora(config.model.adapter)
    tokenizer = load_tokenizer(config.model.name_or_path)
    render_chat = chat_renderer(tokenizer)
    rows, row_report = read_rows(config.data, render_chat)

    def say(*lines: str) -> None:
        if tell:
            print("\n".join(lines), flush=True)

    say(*row_report.lines())
    held_out: list[PreferenceRow] = []
    if config.data.eval_path:
        held_out, eval_report = read_rows(config.data, render_chat, path=config.data.eval_path)
        say("held out:", *eval_report.lines())
    elif config.data.eval_fraction:
        rows, held_out = split_held_out(rows, config.data.eval_fraction, config.train.seed)
    pairs = []
    for name, some in (("training pairs", rows), ("held-out pairs", held_out)):
        tokenized: list[TokenizedPair] = []
        if some:
            tokenized, report = tokenize_rows(
                some,
                tokenizer,
                max_prompt_tokens=config.data.max_prompt_tokens,
                max_tokens=config.data.max_tokens,
                sharing=config.batch.share_prefix,
            )
            say(f"{name}: {len(tokenized)}", *report.lines())
            check_budget(tokenized, config.batch.tokens_per_rank)
            check_token_ids((pair.tokens for pair in tokenized), model_config)
        pairs.append(tokenized)
    return tokenizer, pairs[0], pairs[1]


def chat_renderer(tokenizer: Any) -> Any:
    """The tokenizer's chat template as a function of messages, or None where it has none."""
    if tokenizer.chat_template is None:
        return None
    return lambda messages, add_generation_prompt: tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a run goes on from."""

    manifest: Manifest
    found: Path
    load_from: Path  # `found`, or its universal form

    @property
    def is_converted(self) -> bool:
        """Whether it was saved by another number of ranks."""
        return self.load_from != self.found


def find_resume(
    config: Config, settings: DeepSpeedSettings, ranks: Ranks, identity: dict[str, Any], say: Say
) -> Resume | None:
    """The checkpoint to go on from, verified and, for another number of ranks, converted.

    Raises `UserError` for one that is damaged, of another run, or of another ZeRO stage.
    """
    folder = Path(config.output_dir) / "checkpoints"
    is_local = settings.keeps_local_checkpoints
    found = find_checkpoint(config.checkpoint, folder, ranks, say, is_local=is_local)
    if found is None:
        return None
    path, manifest = found
    check_identity(path, manifest, identity)
    for change in changed_settings(manifest, config, settings):
        say(f"changed since {path.name} was saved: {change}")
    if not needs_conversion(path, manifest, ranks.world_size, settings.stage):
        return Resume(manifest, path, path)
    say(
        f"{path} was saved by {manifest.ranks} rank(s), here are {ranks.world_size}: converting it "
        f"to DeepSpeed's universal format ({manifest.size / 2**30:.1f} GiB)"
    )
    in_folders = ranks.per_folder(is_local=is_local)
    universal, seconds = in_folders(lambda: convert(path, manifest, folder))
    say(f"{universal} " + ("is there already" if seconds is None else f"took {seconds:.0f} s"))
    return Resume(manifest, path, universal)


def as_trained(config: Config, manifest: Manifest) -> Config:
    """The configuration of a run whose steps are all trained, by the settings that trained them.

    What says how to go on (devices, checkpoints, logs, folders) is as it is now.
    """
    before = parse_config(manifest.configuration, "the checkpoint's manifest")
    kept = {name: getattr(before, name) for name in ("data", "optim", "train")}
    return config.model_copy(update=kept)


def build_run(
    config: Config,
    settings: DeepSpeedSettings,
    ranks: Ranks,
    train_pairs: list[TokenizedPair],
    eval_pairs: list[TokenizedPair],
    identity: dict[str, Any],
    resume: Resume | None = None,
) -> Run:
    """Loads the policy (sharded under ZeRO-3), starts the engine and the monitor.

    With `resume`, weights, optimizer and random states are those of that checkpoint.
    """
    if resume and resume.is_converted:
        settings = settings.with_universal_loading()
    engine, attention = start_engine(config, settings, ranks)
    if config.loss.takes_reference_from("precomputed"):
        say: Say = print if ranks.rank == 0 else lambda _: None
        train_pairs, eval_pairs = (
            with_reference_logps(engine, ranks, config, pairs, say) if pairs else pairs
            for pairs in (train_pairs, eval_pairs)
        )
    first_step = resume.manifest.step if resume else 0
    # Dropout differs between ranks.
    torch.manual_seed(config.train.seed * 100_003 + first_step * 1009 + ranks.rank)
    if resume:
        check_weights_before(resume.found, resume.manifest, engine.policy.fingerprint)
        load(
            engine,
            ranks,
            resume.load_from,
            adapter_only=config.trains_adapter,
            same_ranks=resume.manifest.ranks == ranks.world_size,
        )
    folder = Path(config.output_dir)
    ranks.on_first(lambda: cut_back_metrics(folder, first_step))
    total_steps = planned_steps(config, len(train_pairs))
    monitor = ranks.everywhere(lambda: _open_monitor(config, ranks, first_step, total_steps))
    monitor.say(attention)
    monitor.say(
        f"training {'a LoRA adapter' if config.trains_adapter else 'all parameters'} with "
        f"{config.loss.name} in {config.model.dtype} on {ranks.world_size} rank(s) "
        f"({ranks.device.type}), ZeRO-{engine.stage}"
    )
    fingerprint = engine.policy.fingerprint
    about = _about(config, settings, ranks, identity, fingerprint, train_pairs, eval_pairs)
    saver = Saver(engine, ranks, config, about, monitor.say)
    return Run(config, engine, ranks, monitor, train_pairs, eval_pairs, saver, first_step)


def _open_monitor(config: Config, ranks: Ranks, first_step: int, total_steps: int) -> SilentMonitor:
    if ranks.rank > 0:
        return SilentMonitor()
    return Monitor(
        Path(config.output_dir),
        tensorboard=config.logging.tensorboard,
        first_step=first_step,
        total_steps=total_steps,
    )


def start_engine(config: Config, settings: DeepSpeedSettings, ranks: Ranks) -> tuple[Engine, str]:
    """Loads policy and, where it is a model, DPO's reference; the text is a line for the log."""
    where: dict[str, Any] = {
        "device": ranks.device,
        "place_on_device": settings.stage < 3 and ranks.device.type == "cuda",
    }
    if settings.stage == 3:
        where["gather"] = gather_parameters
    with sharded_loading(settings, ranks):
        policy, attention = load_policy(config, **where)
        reference = None
        if config.loss.takes_reference_from("model"):
            reference = load_reference(config, **where)
        return Engine(policy, config, settings, reference), attention


def _about(
    config: Config,
    settings: DeepSpeedSettings,
    ranks: Ranks,
    identity: dict[str, Any],
    fingerprint: str,
    train_pairs: list[TokenizedPair],
    eval_pairs: list[TokenizedPair],
) -> Manifest:
    """What all checkpoints of a run have in common."""
    return Manifest(
        step=0,
        ranks=ranks.world_size,
        zero_stage=settings.stage,
        identity=identity,
        weights_before=fingerprint,
        configuration=config.model_dump(mode="json"),
        deepspeed=settings.file,
        data={"training pairs": _counts(train_pairs), "held-out pairs": _counts(eval_pairs)},
        hosts=list(ranks.hosts) if settings.keeps_local_checkpoints else [],
    )


def _counts(pairs: list[TokenizedPair]) -> dict[str, int]:
    """Pairs by direction."""
    return dict(sorted(Counter(pair.direction or "unknown" for pair in pairs).items()))


def run_identity(config: Config, pairs: list[TokenizedPair]) -> dict[str, Any]:
    """What a run must share with a checkpoint that it resumes from."""
    identity = {
        "model shape": model_shape(config),
        "starting adapter (fingerprint)": adapter_fingerprint(config.model.adapter)
        if config.model.adapter
        else None,
        "adapter mode": config.model.adapter_mode if config.model.adapter else None,
        "precision": config.model.dtype,
        "LoRA": config.lora.model_dump() if config.lora else None,
        "loss": config.loss.model_dump(exclude={"reference", "reference_cache"}),
        "training pairs (fingerprint)": pairs_fingerprint(pairs),
        "pairs per step": config.batch.pairs,
        "seed": config.train.seed,
    }
    return json.loads(json.dumps(identity))
