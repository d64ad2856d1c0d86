"""Converts a sharded checkpoint into a model or adapter for transformers, peft and vLLM.

One process does it on the CPU, without a process group, with about one shard in memory.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cpo_ds.checkpoint.inventory import find_intact, newest
from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.checkpoint.publish import replaced_name, unfinished_name
from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.export.folder import (
    Written,
    exports_adapter,
    make_export,
    write_unfinished,
)
from cpo_ds.export.publish import publish_export, put_aside, unfinished_folder, unverified_name
from cpo_ds.export.read_back import difference, tokenizer_difference
from cpo_ds.export.shards import SHARD_BYTES
from cpo_ds.model.fingerprint import weights_fingerprint
from cpo_ds.model.offline import LazyMerge, load_base, outline
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.recipe import parse_config

_PREFIX = "language_model."  # the policy's name of the model that is exported

# Name -> a tensor, or DeepSpeed's stand-in for one, which `.contiguous()` reads from the files.
Weights = Mapping[str, Any]


def export(
    run: Path,
    checkpoint: str | None = None,
    output: Path | None = None,
    *,
    merge: bool = False,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    verify: bool = True,
    check_base: Callable[..., None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Exports a checkpoint as the run itself exports its last step; returns the new folder.

    `run` is a run's output_dir or a step-... folder. `checkpoint` is a step or a folder; without it
    the newest intact checkpoint is exported. `merge` adds a trained adapter to its base model.
    `dtype` is the precision to write in, else the run's. `verify` loads the export again and
    compares every weight. `check_base(config, as_adapter=...)` may refuse the export before weights
    are read. Raises `UserError` if the checkpoint is missing or damaged, if its base model is
    missing or changed, and if the export cannot be written or differs after loading.
    """
    # Find the checkpoint, and the folder to write to.
    path, manifest, _hold = find_intact(run, checkpoint, say)
    config = parse_config(manifest.configuration, f"{path}/manifest.json")
    config = config.model_copy(update={"output_dir": str(path.parent.parent)})
    merges = config.trains_adapter and (merge or not exports_adapter(config))
    folder = output or _default_folder(path, named_merged=merges and exports_adapter(config))
    if output and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already; give --output a new folder.")
    for name in (unfinished_name, replaced_name, unverified_name):  # writing would overwrite these
        if output and (taken := output.with_name(name(output.name))).exists():
            raise UserError(f"{taken} is in the way of --output {output}; give another name.")
    if check_base:
        check_base(config, as_adapter=config.trains_adapter and not merges)
    # Read the weights, each when it is needed, and merge them if asked to.
    tokenizer = load_tokenizer(config.model.name_or_path)
    model = outline(config)
    trained = read_weights(path, manifest, adapter_only=config.trains_adapter)
    names = _check_names(path, model, trained, adapter_only=config.trains_adapter)
    weights = _read(names, trained, getattr(torch, config.model.dtype))
    if merges:
        merged = LazyMerge(_checked_base(config, manifest), config, dict(weights))
        model, weights = merged.model, merged.parameters()
    # Write them in the precision that was asked for.
    contents = make_export(model, tokenizer, config, manifest, dtype)
    target = getattr(torch, contents.dtype)
    try:
        converted = ((name, weight.to(target)) for name, weight in weights)
        written = write_unfinished(folder, contents, converted, shard_bytes)
        if verify:
            _check(folder, written, config, tokenizer)
        publish_export(folder)
    except OSError as error:
        raise UserError(
            f"the export could not be written: {error.filename or folder}: {error.strerror}. "
            f"{path} was not touched; make room or give --output another folder, and export again."
        ) from None
    kind = "LoRA adapter" if config.trains_adapter and not merges else "full model"
    say(f"{kind} of step {manifest.step} ({contents.dtype}) written to {folder}")
    return folder


def _check(folder: Path, written: Written, config: Config, tokenizer: Any) -> None:
    """Loads a written export again. Raises `UserError` if it differs, and puts it aside."""
    unfinished = unfinished_folder(folder)
    problem = difference(unfinished, written, config)
    problem = problem or tokenizer_difference(unfinished, tokenizer)
    if problem:
        raise UserError(
            f"the export does not give what the checkpoint holds: {problem} It was put aside as "
            f"{put_aside(folder)}. The checkpoint was not touched. --no-verify leaves out this "
            "check."
        )


def _default_folder(path: Path, *, named_merged: bool) -> Path:
    """The folder for a checkpoint's export in its run, named by step unless it is the newest."""
    run = path.parent.parent
    if path.parent.name != "checkpoints":
        raise UserError(f"{path} is in no run's checkpoints folder; give --output a folder.")
    name = "export"
    if path.resolve() != (newest(run) or path).resolve():
        name += f"-{path.name}"
    return run / (name + ("-merged" if named_merged else ""))


def read_weights(path: Path, manifest: Manifest, *, adapter_only: bool) -> Weights:
    """Opens the weights of a verified checkpoint, by the language model's names.

    Files are mapped into memory: a weight is read, and put together from shards, when it is used.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if manifest.zero_stage == 3:
        # DeepSpeed prints a report.
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            named = get_fp32_state_dict_from_zero_checkpoint(
                str(path.parent), path.name, exclude_frozen_parameters=adapter_only, lazy_mode=True
            )
    else:
        file = path / "mp_rank_00_model_states.pt"
        named = torch.load(file, map_location="cpu", mmap=True, weights_only=False)["module"]
    return {name.removeprefix(_PREFIX): weight for name, weight in named.items()}


def _check_names(path: Path, model: Any, trained: Weights, *, adapter_only: bool) -> list[str]:
    """Returns the names to export, in order. Raises `UserError` if weights do not fit the model.

    `trained` may have a tied weight under both of its names; only the first is exported. DeepSpeed
    may keep the second name of a frozen tied weight too, which is not exported.
    """
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    needed = [name for name, p in model.named_parameters() if p.requires_grad or not adapter_only]
    missing, unknown = set(needed) - set(trained), set(trained) - set(shapes)
    differing = {n for n in set(trained) & set(shapes) if trained[n].shape != shapes[n]}
    for names, problem in (
        (missing, "lacks weights of the model"),
        (unknown, "holds weights that the model does not have"),
        (differing, "holds weights of another shape than the model's"),
    ):
        if names:
            raise UserError(
                f"{path} {problem}: {', '.join(sorted(names)[:3])}"
                f"{', ...' if len(names) > 3 else ''}; the model that model.name_or_path names is "
                "not what it was when the run began: put that one back."
            )
    return needed


def _read(
    names: list[str], trained: Weights, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields whole weights, one at a time, in the precision that the engine computed with."""
    for name in names:
        yield name, trained[name].contiguous().to(dtype)


def _checked_base(config: Config, manifest: Manifest) -> Any:
    """Loads the base model. Raises `UserError` if its weights have changed since the run began."""
    base = load_base(config)
    if weights_fingerprint(base, lambda sums: None) != manifest.weights_before:
        raise UserError(
            f"the weights of {config.model.name_or_path} are not those that the run began with, so "
            "its adapter does not belong to them; put that model back, or export without --merge."
        )
    return base
