"""A checkpoint of some number of ranks -> DeepSpeed's universal format, for any number of them.

It is made in the folder of the run that resumes, which may not be the one that saved.

checkpoints/universal-step-00000020/   made from step-00000020, removed with the next save
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cpo_ds.checkpoint.manifest import Manifest, inspect, read_entry, write_manifest
from cpo_ds.checkpoint.publish import publish_folder, unfinished_name
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import ByteWatch, count_work

_LOOK_SECONDS = 1.0  # between looks at whether the converter works


def needs_conversion(path: Path, manifest: Manifest, ranks: int, stage: int) -> bool:
    """Whether a checkpoint must be converted to be loaded on `ranks` ranks at a ZeRO stage.

    Raises `UserError` for another stage: DeepSpeed's universal format keeps what differs between
    stages. Stage 0 splits nothing, so its checkpoints fit any number of ranks.
    """
    if manifest.zero_stage != stage:
        raise UserError(
            f"the checkpoint {path} was saved at ZeRO stage {manifest.zero_stage}, and DeepSpeed "
            f"cannot load it at stage {stage}: go on with a deepspeed file of stage "
            f"{manifest.zero_stage} (on any number of ranks), or write the model by "
            f"`cpo-ds export {path.parent.parent} --merge` and start a new run from it, with a "
            "fresh optimizer."
        )
    return manifest.ranks != ranks and stage > 0


def convert(path: Path, manifest: Manifest, folder: Path) -> tuple[Path, float | None]:
    """Makes the universal form of a verified checkpoint in `folder`, unless it is there, intact.

    Returns its folder and the seconds that it took, None where it was there. Raises `UserError`
    where DeepSpeed's converter fails or the disk is full.
    """
    final = folder / f"universal-{path.name}"
    source = manifest.identity | {"made from": _digest(manifest)}
    if _is_intact(final, source):
        return final, None
    started = time.perf_counter()
    # A converter outlives a run that is killed meanwhile, so each has a folder of its own.
    unfinished = folder / unfinished_name(f"{final.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _run_converter(path, unfinished)
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
        raise UserError(
            f"{path} could not be converted: {error.filename}: {error.strerror}; it takes about "
            f"{3 * manifest.size / 2**30:.1f} GiB beside it while it is made."
        ) from None
    return final, time.perf_counter() - started


def _digest(manifest: Manifest) -> str:
    sums = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _is_intact(folder: Path, source: dict[str, Any]) -> bool:
    there, problems = inspect(folder)
    return there is not None and there.identity == source and not problems


def _run_converter(path: Path, unfinished: Path) -> None:
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal",
        "--input_folder", str(path), "--output_folder", str(unfinished),
        "--num_extract_workers", "1", "--num_merge_workers", "1",
        "--inject_missing_state",  # stages 1 and 2; nothing of tensor parallelism is missing here
    ]  # fmt: skip
    own = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = own | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    code, output = _run_counting(command, environment)
    (unfinished.parent / "latest_universal").unlink(missing_ok=True)  # the folder's name says it
    if code:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise UserError(
            f"{path} could not be converted for another number of ranks: {last[0]} (DeepSpeed's "
            f"converter; free disk: {shutil.disk_usage(path).free / 2**30:.1f} GiB). It resumes on "
            "the number of ranks that it was saved by."
        )


def _run_counting(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs a command to its end; returns exit code and output. The bytes it moves count as work."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    bytes_of_it = ByteWatch(process.pid)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=_LOOK_SECONDS)
                return process.returncode, output
            if bytes_of_it.has_moved(_LOOK_SECONDS):
                count_work()
    except BaseException:
        process.kill()
        raise
