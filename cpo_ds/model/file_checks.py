"""Refuses models that loading, merging or exporting would get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from cpo_ds.errors import UserError

_TIED = ("lm_head.weight", "embed_tokens.weight")  # how the names of tied weights end
_ROWS = 4096  # rows of a weight that are compared at a time, so that little is held in memory


def check_no_adapter(name_or_path: str) -> None:
    """Raises `UserError` if a model's folder, or its repository, holds an adapter too.

    transformers would apply it to the weights silently, even to weights that contain it already.
    """
    try:
        settings_file = find_adapter_config_file(name_or_path)
    except (OSError, ValueError):  # loading the model reports the wrong name
        return
    if settings_file is None:
        return
    if not (Path(settings_file).parent / "config.json").is_file():
        raise UserError(
            f"{name_or_path} is an adapter ({settings_file}), not a model; give it as "
            "model.adapter, and its base as model.name_or_path."
        )
    raise UserError(
        f"{name_or_path} holds an adapter beside its weights ({settings_file}), which transformers "
        "would apply to them, once more if it is merged into them already. Remove that file if the "
        "weights contain the adapter; else give the base alone, and the adapter as model.adapter."
    )


def check_tied_head(name_or_path: str, model_config: Any) -> None:
    """Raises `UserError` if the head is tied to the embeddings and yet has other weights.

    Some ways of loading would drop the head's weights and others would keep them. A head with
    weights equal to the embeddings is no contradiction.
    """
    if not model_config.tie_word_embeddings:
        return
    # Find both weights; most tied models store only one.
    file, index = _weight_files(name_or_path)
    head, embeddings = (next((n for n in index if n.endswith(end)), None) for end in _TIED)
    if head is None or embeddings is None:
        return
    # Compare them, some rows at a time.
    rows, other_rows = (_rows_of(index[name], name) for name in (head, embeddings))
    begin = 0
    while len(part := rows(begin, begin + _ROWS)):
        if not torch.equal(part, other_rows(begin, begin + _ROWS)):
            raise UserError(
                f"the model {name_or_path} contradicts itself: its config.json says "
                f"tie_word_embeddings: true, but {file} has a {head} that is not {embeddings}. If "
                f"the head is one of its own, set tie_word_embeddings to false; if not, remove "
                f"{head} from the file."
            )
        begin += _ROWS


def _weight_files(name_or_path: str) -> tuple[str, dict[str, Path]]:
    """Returns the file that transformers reads first, and the file of each weight by its name.

    The first file is an index if the model has several weight files. Then only the files of weights
    that may be tied are looked up.
    """

    def find(name: str) -> Path | None:
        options = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_gated_repo": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        path = cached_file(name_or_path, name, **options)
        return None if path is None else Path(path)

    for single in ("model.safetensors", "pytorch_model.bin"):
        if file := find(single):
            return str(file), dict.fromkeys(_names_in(file), file)
        if file := find(f"{single}.index.json"):
            files = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
            wanted = {name: part for name, part in files.items() if name.endswith(_TIED)}
            paths = {name: find(part) for name, part in wanted.items()}
            return str(file), {name: path for name, path in paths.items() if path is not None}
    return name_or_path, {}


def _names_in(file: Path) -> list[str]:
    if file.suffix == ".bin":
        return list(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
    with safe_open(file, "pt") as weights:
        return list(weights.keys())


def _rows_of(file: Path, name: str) -> Callable[[int, int], torch.Tensor]:
    """A function that reads rows of a stored matrix: (begin, end) -> tensor, empty past the end."""
    if file.suffix == ".bin":
        whole = torch.load(file, map_location="cpu", mmap=True, weights_only=True)[name]
        return lambda begin, end: whole[begin:end]

    def read(begin: int, end: int) -> torch.Tensor:
        with safe_open(file, "pt") as weights:
            part = weights.get_slice(name)
            rows = part.get_shape()[0]
            return part[begin : min(end, rows)] if begin < rows else torch.empty(0)

    return read
