"""The files of a model's weights: which of them transformers reads, and what they hold."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from cpo_ds.errors import UserError, one_line
from cpo_ds.model.hub import unavailable

# A file with all weights, or an index of several, in the order in which transformers looks.
_FIRST_FILES = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_POINTER = b"version https://git-lfs"  # how a file begins that git-lfs did not fetch
# Folders' files of other kinds, and how to make a model of them that transformers reads.
_OTHER_FORMATS = {
    "*.gguf": "a GGUF file, which is made for llama.cpp and mostly quantized",
    "consolidated*": "weights in the format of the model's makers",
    "*.distcp": "a checkpoint of torch.distributed",
    "flax_model*": "weights for Flax",
    "tf_model*": "weights for TensorFlow",
    "*model_states.pt": "a checkpoint of DeepSpeed",
    "global_step*": "a checkpoint of DeepSpeed",
    "model-*-of-*.safetensors": "shards without their index (model.safetensors.index.json)",
    "pytorch_model-*-of-*.bin": "shards without their index (pytorch_model.bin.index.json)",
}
SAMPLED_ROWS = 16  # of each weight of two copies
_BLOCK = 4096  # rows of a weight that are compared at a time, so that little is held in memory


@dataclass(frozen=True)
class WeightFiles:
    """The files of one copy of a model's weights.

    `first` is the file that names them: an index, or the only file of weights.
    """

    first: Path
    files: list[Path]


def find_file(name_or_path: str, name: str) -> Path | None:
    """A file of a model's folder or repository; None if it is not there, or not to be had."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / name
        return path if path.is_file() else None
    options = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    try:
        cached = cached_file(name_or_path, name, **options)
    except (OSError, ValueError):
        return None
    return None if cached is None else Path(cached)


def weight_files(name_or_path: str, named_by_config: str | None = None) -> WeightFiles:
    """The files that transformers reads; those of a model of the hub are downloaded.

    `named_by_config` is the first file if the model's configuration names it. Raises `UserError` if
    a file is missing or damaged.
    """
    for name in [named_by_config] if named_by_config else _FIRST_FILES:
        if (first := find_file(name_or_path, name)) is not None:
            copy = WeightFiles(first, _files_of(name_or_path, first))
            for file in copy.files:
                _check_whole(file)
            return copy
    if not Path(name_or_path).is_dir():
        raise unavailable("model", name_or_path, OSError())
    raise UserError(_no_weights(name_or_path))


def other_copies(read: WeightFiles) -> list[WeightFiles]:
    """Other whole copies of the weights beside those that transformers reads.

    A copy that lacks files, or that nobody could read, is none.
    """
    copies = []
    for name in _FIRST_FILES:
        first = read.first.with_name(name)
        if first == read.first or not first.is_file():
            continue
        try:
            copy = WeightFiles(first, _files_of(str(first.parent), first))
            for file in copy.files:
                _check_whole(file)
        except UserError:
            continue
        if copy.files != read.files:
            copies.append(copy)
    return copies


def _files_of(name_or_path: str, first: Path) -> list[Path]:
    """The files of weights, in transformers' order. Raises `UserError` for a broken index."""
    if not first.name.endswith(".index.json"):
        return [first]
    try:
        index = json.loads(first.read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        index["metadata"]  # transformers reads it
    except OSError as error:
        raise UserError(f"{first} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(
            f"{first} is no index of weights ({problem}); get that file again, or save the model "
            "anew by transformers (save_pretrained)."
        ) from None
    files = {name: find_file(name_or_path, name) for name in names}
    if missing := [name for name, file in files.items() if file is None]:
        if not Path(name_or_path).is_dir():
            raise unavailable("model", name_or_path, OSError())
        raise UserError(
            f"{first} names files of weights that are missing ({listed(missing)}); get the whole "
            "model."
        )
    return [file for file in files.values() if file is not None]


def _check_whole(file: Path) -> None:
    """Raises `UserError` for a file of weights that is empty or was never fetched."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(_POINTER))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    if begin == _POINTER:
        raise UserError(
            f"{file} holds no weights: it is a pointer of Git LFS to a file that was not fetched; "
            "fetch it (git lfs pull), or download the model with `hf download`."
        )
    if not begin:
        raise UserError(f"{file} is empty; get the whole model.")


def _no_weights(name_or_path: str) -> str:
    """The message for a folder without weights that transformers reads."""
    folder = Path(name_or_path)
    wanted = "model.safetensors, pytorch_model.bin or an index of shards (*.index.json)"
    message = f"the model {name_or_path} has no weights that transformers reads ({wanted})"
    for name in _FIRST_FILES:
        if (link := folder / name).is_symlink():
            return f"{message}: {link} is a link to {link.readlink()}, which is missing."
    for pattern, kind in _OTHER_FORMATS.items():
        if files := sorted(folder.glob(pattern)):
            return (
                f"{message}, but {files[0].name}: {kind}. Get or convert the model in the format "
                "of transformers, not quantized."
            )
    return f"{message}; get the whole model."


def stored_weights(copy: WeightFiles) -> dict[Path, dict[str, torch.Tensor]]:
    """Shapes and precisions of the weights by file and name, as tensors on the meta device.

    Nothing but the files' headers is read. Raises `UserError` for a file that cannot be read.
    """
    return {file: _read_file(file) for file in copy.files}


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        weights = load_state_dict(str(file), map_location="meta")
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        if "weights_only" in str(error) or "Weights only" in str(error):
            reason = "it holds more than weights, and code in it is never run"
        else:
            reason = f"it is cut short or damaged ({type(error).__name__}: {one_line(error, 120)})"
        raise UserError(f"{file} cannot be read: {reason}; get that file again.") from None
    others = [name for name, weight in weights.items() if not isinstance(weight, torch.Tensor)]
    if others:
        raise UserError(
            f"{file} holds {others[0]}, which is no weight: it was not saved by transformers "
            "(save_pretrained). Save the model in that way and give its folder."
        )
    return weights


def lazily(file: Path) -> Mapping[str, Any]:
    """The weights of a file by name; their rows are read when they are sliced."""
    if file.suffix == ".safetensors":
        opened = safe_open(file, "pt")
        return {name: opened.get_slice(name) for name in list(opened.keys())}
    return torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)


def shape_of(weight: Any) -> list[int]:
    """The shape of a weight from `lazily`."""
    return list(weight.shape if isinstance(weight, torch.Tensor) else weight.get_shape())


def differ(one: Any, other: Any, *, rows: int | None = SAMPLED_ROWS) -> bool:
    """Whether two weights from `lazily` are different, beyond the rounding of their precisions.

    At most `rows` rows are compared, evenly spread; None compares all.
    """
    shape = shape_of(one)
    if shape != shape_of(other):
        return True
    if not shape:
        return not _equal(one[...], other[...])
    step = max(1, shape[0] // rows) if rows else _BLOCK
    block = 1 if rows else _BLOCK
    begins = {*range(0, shape[0], step), max(0, shape[0] - block)}
    return any(
        not _equal(one[begin : begin + block], other[begin : begin + block]) for begin in begins
    )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    if not (one.is_floating_point() and other.is_floating_point()):
        return False
    coarser = max(torch.finfo(weight.dtype).eps for weight in (one, other))
    return torch.allclose(one.double(), other.double(), rtol=coarser, atol=1e-7)


def listed(names: Any, most: int = 3) -> str:
    """The first names of a message, in order."""
    names = sorted(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
