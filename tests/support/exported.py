"""Reads exported folders and compares them bit by bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cpo_ds.checkpoint.manifest import read_manifest, write_manifest
from cpo_ds.export.folder import Export, write_unfinished
from cpo_ds.export.publish import publish_export
from cpo_ds.export.shards import Named

Tensors = dict[str, torch.Tensor]


def write_export(folder: Path, export: Export, weights: Iterable[Named]) -> None:
    """Writes an export without loading it again."""
    write_unfinished(folder, export, weights)
    publish_export(folder)


def run_of(values: dict[str, Any]) -> Path:
    return Path(values["output_dir"])


def tensors_of(folder: Path) -> Tensors:
    named: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        named |= load_file(file)
    return named


def assert_same_bits(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def copy_run(values: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Copies a run and its base model, to be damaged by one test; returns both folders."""
    run = shutil.copytree(run_of(values), folder / "run")
    base = shutil.copytree(values["model"]["name_or_path"], folder / "base")
    change_model(run, name_or_path=str(base))
    return run, base


def change_model(run: Path, **settings: Any) -> None:
    """Changes settings of the model that the checkpoints of a run were made with."""
    for path in (run / "checkpoints").glob("step-*"):
        manifest = read_manifest(path)
        model = manifest.configuration["model"] | settings
        configuration = manifest.configuration | {"model": model}
        write_manifest(path, replace(manifest, configuration=configuration))
