"""A dry run: everything that a run checks before its model is loaded, shown; nothing is written."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch

from cpo_ds.checkpoint.publish import resume_candidates
from cpo_ds.config import Config
from cpo_ds.data.pair_file import map_file, read_pairs
from cpo_ds.data.pair_inputs import Inputs
from cpo_ds.data.plan import steps_per_epoch
from cpo_ds.engine.settings import DeepSpeedSettings, read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.model.precision import device_precision
from cpo_ds.planner.estimate import GIB, memory_plan
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.row_shape import shape_of_rows
from cpo_ds.ranks.console import print_colored
from cpo_ds.ranks.place import Place
from cpo_ds.ranks.quiet import silence_after_import
from cpo_ds.run.anew import check_inputs_stay
from cpo_ds.run.folder import is_finished
from cpo_ds.run.pair_cache import keep_pairs
from cpo_ds.run.pairs import PreparedPairs, check_pairs, open_inputs, with_template_date
from cpo_ds.run.planned import memory_of, settled
from cpo_ds.run.shown_pairs import legend, pair_lines, two_of
from cpo_ds.run.tracker_kinds import check_trackers
from cpo_ds.run.trainer import planned_steps

_NO_LIMIT = 1e6  # GiB, for devices whose memory is not planned


def dry_run(config: Config, place: Place, *, verbose: bool = False) -> None:
    """Checks a recipe for the ranks of `place` and shows what they would train on.

    Raises `UserError` for everything that a run would refuse before it loads the model.
    """
    check_trackers(config.logging.trackers)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if config.model.dtype == "auto":
        dtype, reason = device_precision(device)
        config = config.with_model(dtype=dtype)
        print(f"model.dtype auto: {dtype} ({reason})")
    config, lines = settled(config, place.world_size, memory_of(device), place)
    for line in lines:
        print(line)
    is_here = place.world_size == place.local_world_size
    settings = read_deepspeed_settings(config, place, on_this_machine=is_here)
    if not verbose:
        silence_after_import()
    check_folder(config)

    # Model and tokenizer, then the data; the tokenized pairs go to a folder that is removed.
    config = with_template_date(config)
    with tempfile.TemporaryDirectory() as cache:
        data = config.data.model_copy(update={"cache": cache})
        inputs = open_inputs(config.model_copy(update={"data": data}), print)
        memory = _memory_line(config, settings, device, place.world_size)
        prepared = _pairs(inputs)
    colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    _show(prepared, colored=colored)

    # The run.
    num_pairs = len(prepared.train)
    folder = folder_line(config, planned_steps(config, num_pairs))
    print(f"\n{steps_line(config, num_pairs)}\n{memory}\n{folder}")
    print("dry run: nothing was trained or written. Without --dry-run this run starts.", flush=True)


def _pairs(inputs: Inputs) -> PreparedPairs:
    """The pairs of the recipe, made anew as a run makes them. Raises `UserError`."""
    kept = keep_pairs(inputs, print)
    file = map_file(kept.path) if kept.data is None else kept.data
    contents, train, held_out = read_pairs(file, inputs.places())
    check_pairs(inputs, contents, train, held_out, print)
    return PreparedPairs(inputs.tokenizer, train, held_out, contents.selected_by)


def _show(prepared: PreparedPairs, *, colored: bool) -> None:
    pairs = prepared.train
    for index in two_of(pairs):
        pair = pairs[index]
        print(
            f"\ntraining pair {index + 1} of {len(pairs)}, {pair.origin}"
            f"{', ' + pair.direction if pair.direction else ''}: {len(pair.tokens)} tokens, of "
            f"which {pair.num_prefix} are shared"
        )
        print_colored("\n".join(pair_lines(pair, prepared.tokenizer, colored=colored)))
    print_colored(f"  {legend(colored=colored)}")


def steps_line(config: Config, num_pairs: int) -> str:
    """How long the run is, in steps and epochs."""
    steps = planned_steps(config, num_pairs)
    per_epoch = steps_per_epoch(num_pairs, config.batch.pairs)
    limit = " (train.max_steps)" if steps == config.train.max_steps else ""
    return (
        f"steps: {steps}{limit}, {steps / per_epoch:.4g} epoch(s) of {per_epoch} steps of "
        f"{config.batch.pairs} pairs"
    )


def _memory_line(
    config: Config, settings: DeepSpeedSettings, device: torch.device, ranks: int
) -> str:
    """The planner's estimate of the memory of a device."""
    outlines = Outlines(None, shape_of_rows(config), suggests_shape=False)
    size = memory_of(device)
    memory = memory_plan(
        config,
        outlines.weights(config),
        settings.zero,
        outlines.passes(config, stage=settings.zero.stage),
        ranks=ranks,
        memory_gib=size or _NO_LIMIT,
    )
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {part / GIB:.1f}" for name, part in largest)
    need = f"{memory.total / GIB:.1f} GiB"
    host = f", and {memory.host / GIB:.1f} GiB of the host" if memory.host else ""
    if size is None:
        return (
            f"memory: {ranks} GPU(s) would need about {need} each ({parts} GiB, ...){host}; "
            "that of CPUs is not planned"
        )
    verdict = "" if memory.fits else "; this does not fit, and cpo-ds plan says how it would"
    return f"memory: about {need} of each GPU's {size:.1f} ({parts} GiB, ...){host}{verdict}"


def check_folder(config: Config) -> None:
    """Raises `UserError` if a run cannot write to its output folder; changes nothing there."""
    if config.checkpoint.resume == "restart":
        check_inputs_stay(config)
    folder = Path(config.output_dir)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "no permission to write" if nearest.is_dir() else "it is no folder"
        raise UserError(
            f"output_dir {folder} cannot be written: {nearest}: {reason}; mend the permissions, or "
            "choose another output_dir."
        )


def folder_line(config: Config, steps: int) -> str:
    """What a run of so many steps would do in its output folder; changes nothing there."""
    folder, resume = Path(config.output_dir), config.checkpoint.resume
    if resume not in ("auto", "restart", "never"):
        return f"output_dir: {folder}; the run would go on from {resume}"
    saved = resume_candidates(folder / "checkpoints")
    if not saved:
        return f"output_dir: {folder}; the run would begin anew"
    if resume == "restart":
        return f"output_dir: {folder}; the earlier run in it would be moved aside"
    if resume == "never":
        return f"output_dir: {folder}; the run would begin anew beside earlier checkpoints"
    if is_finished(config, steps):
        return f"output_dir: {folder}; the run in it is finished, so that nothing would be trained"
    return f"output_dir: {folder}; the run would go on from {saved[0].name}"
