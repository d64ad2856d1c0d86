"""Refuses base models whose files contradict themselves, before anything of them is loaded.

transformers takes one of two copies, drops weights without a use, and starts missing ones at
random, with a warning at most. The checks read the files' headers, and little else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from cpo_ds.errors import UserError, one_line
from cpo_ds.model.merging import whole_models
from cpo_ds.model.weight_files import (
    WeightFiles,
    differ,
    lazily,
    listed,
    other_copies,
    stored_weights,
    weight_files,
)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TIED = ("lm_head.weight", "embed_tokens.weight")  # how the names of tied weights end


def check_weights(name_or_path: str, model_config: Any) -> None:
    """Raises `UserError` unless a model's files give each of its weights one value, and no others.

    The weights of a model of the hub are downloaded, as loading does. Weights that transformers
    itself declares to be without a use, such as buffers of older versions, may be there.
    """
    # Which files are there, and what do they hold?
    read = weight_files(name_or_path, getattr(model_config, "transformers_weights", None))
    by_file = stored_weights(read)
    stored = _without_repetition(by_file)
    # Do they fit the model that the configuration describes?
    model = _skeleton(name_or_path, model_config)
    own_names = _own_names(stored, model)
    _check_names(read, own_names)
    _check_precisions(read, {name: stored[name] for name in own_names})
    check_report(read.first, _loading_report(model, stored))
    # Do weights that are there twice contradict each other?
    _check_tied_head(read, model_config, by_file)
    for other in other_copies(read):
        _check_copy(read, other, by_file)


def check_report(source: Path | str, report: Mapping[str, Any]) -> None:
    """Raises `UserError` if transformers' report on loading names weights.

    They are weights of the model without a value of their shape, and values in the files without a
    use. `source` is the folder or file that they were read from.
    """
    missing = report["missing_keys"]
    misshapen = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    kinds = (
        ("lacks", "of its weights", missing, "which would start at random"),
        ("has another shape of", "of its weights", misshapen, "which would start at random"),
        ("holds", "weights without a use", report["unexpected_keys"], "which would be dropped"),
    )
    problems = [
        f"{verb} {len(names)} {nouns} ({listed(names)}), {effect}"
        for verb, nouns, names, effect in kinds
        if names
    ]
    if problems:
        hint = " (tie_word_embeddings: true, if its head is its embeddings)"
        raise UserError(
            f"the model in {source} {', and '.join(problems)}; get the whole model, or mend its "
            f"config.json{hint if set(missing) == {'lm_head.weight'} else ''}."
        )


def _without_repetition(
    by_file: Mapping[Any, Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """All weights by name. Raises `UserError` if two files have different ones of a name."""
    stored: dict[str, torch.Tensor] = {}
    file_of: dict[str, Any] = {}
    for file, weights in by_file.items():
        for name, weight in weights.items():
            if name in stored and _differ_in(name, file_of[name], file):
                raise UserError(
                    f"{file_of[name]} and {file} hold different weights of the name {name}, of "
                    f"which transformers would take that of {file.name}. Remove the wrong one, or "
                    "get the model again."
                )
            stored[name], file_of[name] = weight, file
    return stored


def _differ_in(name: str, file: Path, other: Path) -> bool:
    return differ(lazily(file)[name], lazily(other)[name], rows=None)


def _skeleton(name_or_path: str, model_config: Any) -> Any:
    """The model without memory for its weights. Raises `UserError` for a bad configuration."""
    try:
        with whole_models(), torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(copy.deepcopy(model_config))
    except Exception as error:  # models raise many kinds for settings that they cannot work with
        raise UserError(
            f"transformers {transformers.__version__} cannot make the model that the config.json "
            f"of {name_or_path} describes ({type(error).__name__}: {one_line(error)}); get that "
            "file again, or mend it."
        ) from None


def _loading_report(model: Any, stored: dict[str, torch.Tensor]) -> dict[str, Any]:
    """transformers' own report on loading the stored weights, without reading them.

    It is the same at all ZeRO stages, while the report on sharded loading names no weights that are
    dropped.
    """
    with whole_models():
        _, report = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(stored),
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return report


def _own_names(stored: Mapping[str, Any], model: Any) -> dict[str, str]:
    """The model's name of each stored weight, if they differ by the base model's prefix at most."""
    names, prefix = model.state_dict().keys(), f"{model.base_model_prefix}."
    own_names: dict[str, str] = {}
    for name in stored:
        variants = (name.removeprefix(prefix), name, prefix + name)  # as transformers tries them
        if own := next((variant for variant in variants if variant in names), None):
            own_names[name] = own
    return own_names


def _check_names(read: WeightFiles, own_names: Mapping[str, str]) -> None:
    """Raises `UserError` if one weight of the model is stored under two names."""
    by_own: dict[str, str] = {}
    for name, own in own_names.items():
        if own in by_own:
            raise UserError(
                f"{read.first} has two weights that transformers reads as {own}: {by_own[own]} and "
                f"{name}. Remove the wrong one, or get the model again."
            )
        by_own[own] = name


def _check_precisions(read: WeightFiles, stored: Mapping[str, torch.Tensor]) -> None:
    """Raises `UserError` for weights in a precision that only quantized models have."""
    odd = {name: weight.dtype for name, weight in stored.items() if weight.dtype not in _FLOATS}
    if odd:
        name = min(odd)
        raise UserError(
            f"{read.first} holds weights as {str(odd[name]).removeprefix('torch.')} "
            f"({listed(odd)}), and its config.json names no quantization, so that transformers "
            "would take them without their scales. Give the model that is not quantized."
        )


def _check_tied_head(
    read: WeightFiles, model_config: Any, by_file: Mapping[Any, Mapping[str, torch.Tensor]]
) -> None:
    """Raises `UserError` if the head is tied to the embeddings and yet has other weights.

    Some ways of loading would drop the head's weights and others would keep them. A head with
    weights equal to the embeddings is no contradiction.
    """
    if not getattr(model_config, "tie_word_embeddings", False):
        return
    names = {name: file for file, weights in by_file.items() for name in weights}
    head, embeddings = (next((n for n in names if n.endswith(end)), None) for end in _TIED)
    if head is None or embeddings is None:
        return
    both = (lazily(names[name])[name] for name in (head, embeddings))
    if differ(*both, rows=None):
        raise UserError(
            f"the model {read.first.parent} contradicts itself: its config.json says "
            f"tie_word_embeddings: true, but {read.first} has a {head} that is not {embeddings}. "
            "If the head is one of its own, set tie_word_embeddings to false; if not, remove "
            f"{head} from the file."
        )


def _check_copy(
    read: WeightFiles, other: WeightFiles, by_file: Mapping[Any, Mapping[str, torch.Tensor]]
) -> None:
    """Raises `UserError` if another copy of the weights differs from the one that is read."""
    file_of = {name: file for file, weights in by_file.items() for name in weights}
    opened = {file: lazily(file) for file in read.files}
    others = {name: weight for file in other.files for name, weight in lazily(file).items()}
    common = [name for name in file_of if name in others]
    different = [name for name in common if differ(opened[file_of[name]][name], others[name])]
    if different or not common:
        raise UserError(
            f"the folder {read.first.parent} holds two models: transformers reads "
            f"{read.first.name}, beside which {other.first.name} holds other weights"
            f"{f' ({listed(different)})' if different else ''}. Remove the files of the one that "
            "is not wanted."
        )
