"""Changes to the folder of a tiny model, each of which makes another kind of folder of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import save_tiny_model
from model_files import change_json
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
Change = Callable[[Path], object]

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 13000000000\n"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
SHARD = "model-00002-of-00002.safetensors"  # of those that `shards` writes


def weights_of(folder: Path) -> Weights:
    return load_file(folder / FILE)


def save(weights: Weights, file: Path) -> None:
    if file.suffix == ".bin":
        torch.save(weights, file)
    else:
        save_file(weights, file, metadata={"format": "pt"})


def changed(change: Callable[[Weights], object]) -> Change:
    """Changes the weights of a folder with one file."""

    def apply(folder: Path) -> None:
        weights = weights_of(folder)
        change(weights)
        save({name: weight.contiguous() for name, weight in weights.items()}, folder / FILE)

    return apply


def shards(folder: Path, index: str = INDEX, *, scale: float = 1, keeps_file: bool = False) -> None:
    """Writes the weights, times `scale`, into two files with an index."""
    weights = weights_of(folder)
    stem, ending = ("model", "safetensors") if index == INDEX else ("pytorch_model", "bin")
    files = [f"{stem}-0000{n}-of-00002.{ending}" for n in (1, 2)]
    names = {name: files["layers.1" in name] for name in weights}
    for file in files:
        save({n: scale * weights[n] for n in weights if names[n] == file}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    if not keeps_file:
        (folder / FILE).unlink()


def second_shard(change: Callable[[Path], object]) -> Change:
    """Splits the weights, then changes the second file."""

    def apply(folder: Path) -> None:
        shards(folder)
        change(folder / "model-00002-of-00002.safetensors")

    return apply


def pickled(folder: Path, *, scale: float = 1, keeps_file: bool = False) -> None:
    save({name: scale * weight for name, weight in weights_of(folder).items()}, folder / BIN)
    if not keeps_file:
        (folder / FILE).unlink()


def old_pickle(folder: Path) -> None:
    torch.save(weights_of(folder), folder / BIN, _use_new_zipfile_serialization=False)
    (folder / FILE).unlink()


def nested_pickle(folder: Path) -> None:
    torch.save({"state_dict": weights_of(folder)}, folder / BIN)
    (folder / FILE).unlink()


def cut(name: str, kept: int) -> Change:
    """Keeps the first bytes of a file alone."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def after(*changes: Change) -> Change:
    """Makes several changes, one after the other."""
    return lambda folder: [change(folder) for change in changes]


def written(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def named_by_config(folder: Path) -> None:
    (folder / FILE).rename(folder / "other.safetensors")
    change_json(folder / "config.json", transformers_weights="other.safetensors")


def rename_all(weights: Weights, prefix: str, new: str) -> None:
    for name in list(weights):
        if name.startswith(prefix):
            weights[new + name.removeprefix(prefix)] = weights.pop(name)


def with_code(folder: Path) -> None:
    """Puts an object into the pickle that reading it would call."""
    (folder / FILE).unlink()
    (folder / BIN).write_bytes(pickle.dumps({HEAD: shutil.rmtree}))


def stored_twice(scale: float) -> Change:
    def change(shard: Path) -> None:
        first = shard.with_name("model-00001-of-00002.safetensors")
        save(load_file(shard) | {GATE: scale * load_file(first)[GATE]}, shard)

    return second_shard(change)


def unnamed_in_index(folder: Path) -> None:
    shards(folder)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][GATE]
    (folder / INDEX).write_text(json.dumps(index))


def tied(change: Change) -> Change:
    """Changes a model whose head is its embeddings."""

    def apply(folder: Path) -> None:
        save_tiny_model(folder, tie_word_embeddings=True)
        change(folder)

    return apply


def renamed(name: str, new: str) -> Change:
    return changed(lambda weights: weights.update({new: weights.pop(name)}))


def added(name: str, *shape: int) -> Change:
    return changed(lambda weights: weights.update({name: torch.ones(shape)}))


def configured(**values: Any) -> Change:
    return lambda folder: change_json(folder / "config.json", **values)


def quantized(**values: Any) -> Change:
    return configured(quantization_config=values)


def only(*names: str) -> Change:
    """Leaves a folder with empty files of these names alone."""

    def apply(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")

    return apply


def without_weights(name: str) -> Change:
    """Puts an empty file of another format in the place of the weights."""

    def apply(folder: Path) -> None:
        (folder / FILE).unlink()
        (folder / name).write_text("")

    return apply


def code_of_its_own(model_type: str) -> Change:
    """Names code in the folder, which tells by a file whether it was run."""

    def apply(folder: Path) -> None:
        names = {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"}
        change_json(folder / "config.json", model_type=model_type, auto_map=names)
        (folder / "own_code.py").write_text(f"open({str(folder / 'code-was-run')!r}, 'w')\n")

    return apply


def tokenizer_with_code(folder: Path) -> None:
    code_of_its_own("llama")(folder)
    names = {"AutoTokenizer": ["own_code.Tokenizer", None]}
    change_json(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
