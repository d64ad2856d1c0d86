"""Converts a checkpoint to DeepSpeed's universal format, which any number of ranks can load.

    checkpoints/universal-step-00000020/   made from step-00000020, removed with the next save

The result is in the folder of the run that resumes, which may be another one than the run that
saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cpo_ds.checkpoint.manifest import Manifest, inspect, read_entry, write_manifest
from cpo_ds.checkpoint.publish import publish_folder, unfinished_name
from cpo_ds.errors import EndedBySignal, UserError
from cpo_ds.ranks.liveness import ByteWatch, count_work

_LOOK_SECONDS = 1.0  # between looks at whether the converter makes progress


def needs_conversion(path: Path, manifest: Manifest, ranks: int, stage: int) -> bool:
    """Whether a checkpoint must be converted before `ranks` ranks load it at ZeRO stage `stage`.

    Stage 0 splits nothing, so its checkpoints fit any number of ranks. Raises `UserError` for a
    checkpoint of another stage: even DeepSpeed's universal format differs between stages.
    """
    if manifest.zero_stage != stage:
        raise UserError(
            f"the checkpoint {path} was saved at ZeRO stage {manifest.zero_stage}, and DeepSpeed "
            f"cannot load it at stage {stage}: resume with a deepspeed file of stage "
            f"{manifest.zero_stage} (on any number of ranks), or write the model with "
            f"`cpo-ds export {path.parent.parent} --merge` and start a new run from it, with a "
            "fresh optimizer."
        )
    return manifest.ranks != ranks and stage > 0


def convert(path: Path, manifest: Manifest, folder: Path) -> tuple[Path, float | None]:
    """Converts a verified checkpoint into `folder`, unless an intact conversion is there already.

    Returns the converted folder and the seconds that it took, None if it was there. Raises
    `UserError` if DeepSpeed's converter fails or the disk is full.
    """
    final = folder / f"universal-{path.name}"
    source = manifest.identity | {"made from": _digest(manifest)}
    if _is_intact(final, source):
        return final, None
    started = time.perf_counter()
    # A converter outlives a run that is killed meanwhile. So each conversion has its own folder.
    unfinished = folder / unfinished_name(f"{final.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _run_converter(path, unfinished)
        # The conversion gets its name when its manifest is on disk, like a checkpoint.
        files = {
            str(file.relative_to(unfinished)): read_entry(file)
            for file in sorted(unfinished.rglob("*"))
            if file.is_file()
        }
        write_manifest(
            unfinished, Manifest(**(vars(manifest) | {"identity": source, "files": files}))
        )
        publish_folder(unfinished, final)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        file = error.filename or unfinished
        raise UserError(
            f"{path} could not be converted: {file}: {error.strerror}. The conversion takes about "
            f"{3 * manifest.size / 2**30:.1f} GiB of disk while it runs: make room, "
            "and run the same command again."
        ) from None
    return final, time.perf_counter() - started


def _digest(manifest: Manifest) -> str:
    """A checksum of all files of a checkpoint."""
    sums = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _is_intact(folder: Path, source: Mapping[str, object]) -> bool:
    """Whether `folder` holds an undamaged conversion of the checkpoint that `source` identifies."""
    manifest, problems = inspect(folder)
    return manifest is not None and manifest.identity == source and not problems


def _run_converter(path: Path, unfinished: Path) -> None:
    """Runs DeepSpeed's converter as a process of its own.

    Raises `UserError` if it fails, and `EndedBySignal` if a signal ends it.
    """
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal",
        "--input_folder", str(path), "--output_folder", str(unfinished),
        "--num_extract_workers", "1", "--num_merge_workers", "1",
        "--inject_missing_state",  # stages 1 and 2; nothing of tensor parallelism is missing here
    ]  # fmt: skip
    # The converter is no rank of this run, and needs no GPU.
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    code, output = _run_counting(command, environment)
    (unfinished.parent / "latest_universal").unlink(missing_ok=True)  # the folder is named instead
    if code:
        shutil.rmtree(unfinished, ignore_errors=True)
        if code < 0:
            raise EndedBySignal(
                f"{path} was not converted for another number of ranks, because DeepSpeed's "
                f"converter was ended by signal {-code}, {signal.strsignal(-code)} (9 often "
                "means that the host ran out of memory). Start the run again, or resume on the "
                "number of ranks that it was saved by."
            )
        last = output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise UserError(
            f"{path} could not be converted for another number of ranks: {last[0]} (DeepSpeed's "
            f"converter; free disk: {shutil.disk_usage(path).free / 2**30:.1f} GiB). It resumes on "
            "the number of ranks that it was saved by."
        )


def _run_counting(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs a command; returns exit code and output. Bytes that it reads or writes count as work."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    progress = ByteWatch(process.pid)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=_LOOK_SECONDS)
                return process.returncode, output
            if progress.has_moved(_LOOK_SECONDS):
                count_work()
    except BaseException:  # also if this rank is interrupted
        process.kill()
        raise
