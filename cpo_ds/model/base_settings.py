"""Refuses folders that are no base model, and settings of a base that cannot be served exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils.peft_utils import find_adapter_config_file

from cpo_ds.errors import UserError, one_line
from cpo_ds.model.hub import unavailable
from cpo_ds.model.weight_files import find_file
from cpo_ds.storage.hub_names import check_folder_or_name

# Files in which tools name a quantization outside config.json.
_QUANTIZATION_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# Files that tokenizers are read from.
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
# Files that tell what a folder without a config.json is, and a message for each.
_NO_MODELS = {
    "checkpoints": (
        "is the folder of a run, whose trained model is in {folder}/export: give that folder. If "
        "it is not there, `cpo-ds export {folder}` writes it"
    ),
    "step-*": "holds checkpoints of a run, whose trained model is in the folder export beside it",
    "manifest.json": "is a checkpoint of a run: `cpo-ds export {folder}` makes a model of it",
    "global_step*": (
        "is a checkpoint of DeepSpeed, not a model: give the model that its zero_to_fp32.py makes "
        "of it (python zero_to_fp32.py . model --safe_serialization), with its config.json"
    ),
    "*model_states.pt": (
        "is a checkpoint of DeepSpeed, not a model: give the model that zero_to_fp32.py, in the "
        "folder above, makes of it"
    ),
    "*.distcp": "is a checkpoint of torch.distributed, not a model",
    "*.gguf": "holds a GGUF file, which is made for llama.cpp: get the model itself",
}
_ADVICE = "Give a folder that transformers loads."


def check_folder(name_or_path: str) -> None:
    """Raises `UserError` unless a folder or repository is one base model with readable settings.

    An adapter beside the weights is refused: transformers would apply it to them silently, even if
    they contain it already.
    """
    _check_no_adapter(name_or_path)
    file = find_file(name_or_path, "config.json")
    if file is not None:
        settings = _read_object(file)
        _check_type(name_or_path, file, settings)
    elif Path(name_or_path).is_dir():
        raise UserError(_no_model(Path(name_or_path)))
    if (file := find_file(name_or_path, "generation_config.json")) is not None:
        _read_object(file)


def read_settings(name_or_path: str) -> Any:
    """A model's transformers configuration. Raises `UserError` if it cannot be read.

    Code that a folder brings along is never run.
    """
    check_folder_or_name("model", name_or_path)
    check_folder(name_or_path)
    try:
        return transformers.AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for values that are wrong
        if (file := find_file(name_or_path, "config.json")) is None:
            raise unavailable("model", name_or_path, error) from None
        raise UserError(
            f"{file} describes no model that transformers {transformers.__version__} can make: "
            f"{one_line(error)}; get that file again, or mend it."
        ) from None


def check_tokenizer(name_or_path: str) -> None:
    """Raises `UserError` for a folder without a tokenizer, and for one that is code of its own."""
    folder = Path(name_or_path)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UserError(
            f"the folder {folder} has no tokenizer (tokenizer.json or tokenizer.model); copy the "
            "tokenizer's files of the model that it was made from into it."
        )
    file = find_file(name_or_path, "tokenizer_config.json")
    settings = {} if file is None else _read_object(file)
    name = str(settings.get("tokenizer_class") or "")
    if settings.get("auto_map") and not _is_known_tokenizer(name):
        raise UserError(
            f"the tokenizer of {name_or_path} is {name or 'one without a class'}, which only code "
            f"of its own knows (auto_map in {file}); such code is never run. Give a model with a "
            f"tokenizer that transformers {transformers.__version__} knows."
        )


def _is_known_tokenizer(name: str) -> bool:
    names = (name, f"{name.removesuffix('Fast')}", f"{name}Fast")
    return any(tokenizer_class_from_name(each) is not None for each in names)


def quantization_of(model_config: Any) -> dict[str, Any] | None:
    """The settings of a quantized model's quantization, None for a plain model."""
    for config in (model_config, model_config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            if settings := getattr(config, name, None):
                return settings if isinstance(settings, dict) else settings.to_dict()
    return None


def check_not_quantized(name_or_path: str, model_config: Any) -> None:
    """Raises `UserError` for a quantized model, which can neither be trained nor merged exactly."""
    settings = quantization_of(model_config)
    if settings is not None:
        method, file = settings.get("quant_method") or _old_method(settings), "config.json"
    else:
        file = next((n for n in _QUANTIZATION_FILES if find_file(name_or_path, n)), "")
        method = _QUANTIZATION_FILES.get(file, "")
    if method:
        raise UserError(
            f"the model {name_or_path} is quantized: its {file} names the method {method}. Give "
            "the model that it was made from; with model.quantization: nf4 a run quantizes that "
            "one itself, in 4 bits under a LoRA adapter. An adapter that was trained on a "
            "quantized model can be given as model.adapter."
        )


def _old_method(values: dict[str, Any]) -> str:
    """The method of settings that do not name it."""
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return "bitsandbytes"
    return str(values.get("format") or "unknown")


def own_code_line(name_or_path: str, model_config: Any) -> str | None:
    """A line for the log about code in a model's folder that is not run, None if there is none."""
    if not getattr(model_config, "auto_map", None):
        return None
    return (
        f"{name_or_path} names code of its own (auto_map in its config.json), which is not run: "
        f"transformers' own {model_config.model_type} is used."
    )


def _check_no_adapter(name_or_path: str) -> None:
    """Raises `UserError` if a model's folder, or its repository, holds an adapter too."""
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


def _read_object(file: Path) -> dict[str, Any]:
    """The settings in a JSON file. Raises `UserError` for a file that holds none."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}, not an object")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(
            f"{file} cannot be read as JSON: {one_line(error)}; get that file again, or mend it."
        ) from None
    return settings


def _check_type(name_or_path: str, file: Path, settings: dict[str, Any]) -> None:
    """Raises `UserError` for a type of model that this transformers does not know itself."""
    kind = settings.get("model_type")
    if not kind or not isinstance(kind, str):
        raise UserError(
            f"{file} has no model_type, which says what kind of model it is (as llama); get that "
            "file again, or mend it."
        )
    if kind in transformers.CONFIG_MAPPING:
        return
    if settings.get("auto_map"):
        raise UserError(
            f"the model {name_or_path} is of type {kind}, which only code of its own knows "
            f"(auto_map in {file}); such code is never run. Give a model of a type that "
            f"transformers {transformers.__version__} knows."
        )
    raise UserError(
        f"the model {name_or_path} is of type {kind} ({file}), which transformers "
        f"{transformers.__version__} does not know; a newer version may."
    )


def _no_model(folder: Path) -> str:
    """The message for a folder without a config.json."""
    for pattern, problem in _NO_MODELS.items():
        if any(folder.glob(pattern)):
            return f"{folder} {problem.format(folder=folder)}."
    if not any(folder.iterdir()):
        return f"the folder {folder} is empty, so that there is no model in it. {_ADVICE}"
    return f"the folder {folder} has no config.json, so that there is no model in it. {_ADVICE}"
