"""Makes a checked `Config` from a recipe (YAML) and `--section.field value` options."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.settings.other_names import meant_setting
from cpo_ds.settings.problems import value_problem
from cpo_ds.settings.yaml_file import read_yaml
from cpo_ds.shipped import DEEPSPEED_FILES, RECIPES

# What `deepspeed: auto` chooses from, the one that sends least first.
DEEPSPEED_CHOICES = ("zero0", "zero1", "zero2", "zero3", "zero3-offload")


def load_config(argv: list[str]) -> tuple[Config, argparse.Namespace]:
    """Reads `--config FILE` and overrides; returns the configuration and the other arguments.

    The namespace has `verbose` and `dry_run` (bool) and `config`, the recipe's file. Raises
    `UserError` for a missing file, an unknown key or a bad value; its message names the file and
    the closest known key.
    """
    # Read the command line.
    parser = _parser()
    arguments, unknown = parser.parse_known_args([_normalize(a) for a in argv])
    if unknown:
        known = [o for action in parser._actions for o in action.option_strings]
        raise UserError(
            f"unknown argument {unknown[0]} on the command line"
            + meant_setting(unknown[0].split("=")[0], known, SETTINGS, mark="--")
            + "; --help lists every option."
        )
    if arguments.config is None:
        raise UserError("no recipe given: add --config FILE, for example recipes/demo.yaml.")

    # Read the recipe, and let the command line override it.
    arguments.config = str(RECIPES.find(arguments.config))
    values = read_yaml(Path(arguments.config))
    check_keys(values, Config, arguments.config)
    overrides = {k: v for k, v in vars(arguments).items() if k in SETTINGS and v is not None}
    _check_contradiction(overrides)
    for dotted, text in overrides.items():
        _override(values, dotted, text)
    source = f"{arguments.config}{' and the command line' if overrides else ''}"
    return parse_config(values, source), arguments


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validates nested values. Raises `UserError`, with the name of their `source`."""
    if "\\u0000" in json.dumps(values, default=str, skipkeys=True):  # no path or name may hold it
        raise UserError(f"{source}: a value holds a character of code 0; remove it.")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {value_problem(error)}.") from None


def read_deepspeed_file(config: Config) -> tuple[Path, dict[str, Any]]:
    """Reads the DeepSpeed file that a recipe names; returns its path and its JSON object.

    A path is relative to the working directory or to the folder that holds the package. Raises
    `UserError` if the file does not exist, cannot be read or is not a JSON object. `engine`
    checks its contents.
    """
    try:
        named = DEEPSPEED_FILES.find(config.deepspeed)
    except UserError as error:
        raise UserError(f"deepspeed: {error}") from None
    candidates = [named, Path(__file__).resolve().parent.parent / named]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(f"deepspeed: there is no file {named}; see ds_configs/.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors add a mark
        settings = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} must be a JSON object; see ds_configs/.")
    return path, settings


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object. Raises `ValueError` for a key that is given twice."""
    counts = Counter(key for key, _ in pairs)
    if twice := next((key for key, count in counts.items() if count > 1), None):
        raise ValueError(f"{twice} is given twice in one part; keep one of them")
    return dict(pairs)


def read_deepspeed_files(config: Config) -> list[tuple[Path, dict[str, Any]]]:
    """Reads the DeepSpeed file that a recipe names, or all that `auto` chooses from."""
    names = DEEPSPEED_CHOICES if config.deepspeed == "auto" else (config.deepspeed,)
    return [read_deepspeed_file(config.model_copy(update={"deepspeed": name})) for name in names]


def keeps_local_checkpoints(settings: dict[str, Any]) -> bool:
    """Whether each host keeps its part of a checkpoint on a disk of its own."""
    checkpoint = settings.get("checkpoint")
    return isinstance(checkpoint, dict) and checkpoint.get("use_node_local_storage") is True


def flatten(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted name -> field, for every plain field and for each optional section as a whole."""
    flat: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        nested = section_of(field.annotation)
        if nested is None or type(None) in get_args(field.annotation):
            flat[prefix + name] = field
        if nested is not None:
            flat |= flatten(nested, f"{prefix}{name}.")
    return flat


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds; None for a plain field."""
    candidates = get_args(annotation) or (annotation,)
    classes = [c for c in candidates if isinstance(c, type) and get_origin(c) is None]
    sections = [c for c in classes if issubclass(c, BaseModel)]
    return sections[0] if sections else None


SETTINGS = flatten(Config)  # dotted name -> field, in the order of the recipe


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"on the command line: {message}; write --section.field=value.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cpo_ds/train.py",
        description="Trains a translator with Contrastive Preference Optimization.",
        epilog="On several GPUs or hosts: cpo-ds train --help",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="recipe: a YAML file, or a shipped one's name"
    )
    parser.add_argument("--verbose", action="store_true", help="show all library messages")
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything, show two pairs, write nothing"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    for dotted, field in SETTINGS.items():
        help_text = f"{field.description} [{type_name(field)}, {default_text(field)}]"
        parser.add_argument(
            f"--{dotted}", dest=dotted, metavar="X", help=help_text.replace("%", "%%")
        )
    return parser


def type_name(field: FieldInfo) -> str:
    """A field's type for `--help`: `int`, `auto|never`, `str or none`..."""
    return _type_text(field.annotation)


def _type_text(annotation: Any) -> str:
    choices = [c for c in get_args(annotation) if isinstance(c, str)]
    if choices:
        return "|".join(choices)
    if section_of(annotation):
        return "none, or the fields below"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type_text(part) for part in get_args(annotation))
    if get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is list:
        return f"list[{_type_text(get_args(annotation)[0])}]"
    if get_origin(annotation) is Annotated:  # with limits
        return _type_text(get_args(annotation)[0])
    text = annotation.__name__ if type(annotation) is type else str(annotation)
    return text.replace("NoneType", "none")


def default_text(field: FieldInfo) -> str:
    """A field's default for `--help`: `required`, `default none`, `default 16`..."""
    if field.is_required():
        return "required"
    return "default none" if field.default is None else f"default {field.default}"


def _normalize(argument: str) -> str:
    """`--output-dir=x` -> `--output_dir=x`; leaves values and other arguments unchanged."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value


def check_keys(values: dict[str, Any], section: type[BaseModel], file: str, path: str = "") -> None:
    """Raises `UserError` for a key of the recipe that the section does not have."""
    for key, value in values.items():
        if key not in section.model_fields:
            raise UserError(
                f"{file}: unknown key {path}{key}"
                + meant_setting(f"{path}{key}", section.model_fields, SETTINGS, mark="")
                + "; docs/configuration.md and --help list every key."
            )
        nested = section_of(section.model_fields[key].annotation)
        if nested and isinstance(value, dict):
            check_keys(value, nested, file, f"{path}{key}.")


def _check_contradiction(overrides: Collection[str]) -> None:
    """Raises `UserError` if both a whole section and a field of it are given, in any order."""
    for section in overrides:
        field = next((name for name in overrides if name.startswith(f"{section}.")), None)
        if field is not None:
            raise UserError(
                f"on the command line: --{section} sets the whole section, and --{field} sets a "
                "field of it; leave one of them out."
            )


def _override(values: dict[str, Any], dotted: str, text: str) -> None:
    """Sets one field of nested values from its text on the command line."""
    *sections, name = dotted.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    if SETTINGS[dotted].annotation in (str, str | None):
        values[name] = text  # a name may look like a number or a date
        return
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        values[name] = text
