"""`cpo-ds init`: writes a recipe for a model and preference data, by options and by questions."""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml

from cpo_ds.devices import device_by_name, find_device
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.shipped import RECIPES
from cpo_ds.start.data_look import NEEDS, Look, look
from cpo_ds.start.recipe_text import Value, rewritten
from cpo_ds.start.recipes_command import write_new
from cpo_ds.storage.hub_names import check_folder_or_name

Answer = TypeVar("Answer")

_TEMPLATE = "own-pairs"
_NAME = "a folder or a Hugging Face name"
_LEARNING_RATES = {"lora": 1e-4, "full": 2e-6}  # of ALMA-R, and of recipes/alma-7b-r-full.yaml
_STEPS, _FEWEST, _MOST = 20, 8, 128  # steps to aim at; limits of batch.pairs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds init`."""
    parser.description = (
        f"{parser.description} On a terminal it asks for what no option says; elsewhere --model "
        "and --data are needed."
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="policy to train: a folder or a Hugging Face model name")
    add("--data", metavar="PATH", help="preference data: a file, a folder, or a dataset's name")
    add("--format", choices=tuple(NEEDS), help="format of the data (the one that fits its rows)")
    add(
        "--method", choices=tuple(_LEARNING_RATES), help="train an adapter or all parameters (lora)"
    )
    add("--gpus", metavar="N", help="GPUs to train on (those of this machine, or 1)")
    add("--device", metavar="NAME", help="kind of GPU, like A100-80GB (that of this machine)")
    add("--run", metavar="FOLDER", help="output_dir of the recipe (runs/ and the recipe's name)")
    add("--output", type=Path, metavar="FILE", default=Path("recipe.yaml"), help="(recipe.yaml)")
    add("--force", action="store_true", help="replace the file if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Writes the recipe and prints the next commands; returns 0. Raises `UserError`."""
    if arguments.output.exists() and not arguments.force:
        raise UserError(
            f"{arguments.output} exists already; name another file by --output, or add --force to "
            "replace it."
        )
    gpus, device = _gpus_here()
    if arguments.device is not None:
        device = device_by_name(arguments.device).name

    # Ask for what is missing, or take defaults.
    model = _answer(arguments.model, "--model", f"Model to train ({_NAME})", _checked_model)
    data, data_look = _answer(
        arguments.data,
        "--data",
        "Preference data (a file, a folder or a dataset)",
        lambda path: (path, look(path, arguments.format)),
    )
    print(_seen(data, data_look))
    question = "Train an adapter or all parameters (lora or full)"
    method = _answer(arguments.method, "--method", question, _checked_method, "lora")
    number = _answer(arguments.gpus, "--gpus", "GPUs to train on", _checked_gpus, str(gpus or 1))
    folder = arguments.run or f"runs/{arguments.output.stem}"

    # Write a recipe that training takes, and nothing else.
    text = recipe_for(model, data, data_look, method, folder, str(arguments.output))
    parse_config(yaml.safe_load(text), str(arguments.output))
    write_new(arguments.output, text, replace=arguments.force)
    print(_next_commands(arguments.output, number, device))
    return 0


def recipe_for(
    model: str, data: str, data_look: Look, method: str, folder: str, output: str
) -> str:
    """The text of a recipe: the shipped one for own pairs, with values that fit model and data."""
    rows = data_look.rows
    pairs = batch_pairs(rows) if rows else _MOST // 2
    steps = ""
    if rows and data_look.is_counted:
        steps = f", about {math.ceil(rows / pairs):,} steps an epoch"
    changes: dict[str, Value] = {
        "model.name_or_path": Value(model, _NAME),
        "data.format": Value(data_look.format, "docs/data.md describes all formats"),
        "data.path": Value(data, data_look.size if rows else "a file, a folder or a dataset"),
        "data.eval_fraction": Value(_eval_fraction(rows)),
        "optim.learning_rate": Value(
            _LEARNING_RATES[method],
            "that of ALMA-R" if method == "lora" else "much smaller than for LoRA",
        ),
        "batch.pairs": Value(pairs, f"of each step, over all GPUs{steps}"),
        "output_dir": Value(folder, "everything that the run writes"),
    }
    if data_look.scorer:
        changes["data.scorer"] = Value(data_look.scorer, "scores whose mean chooses the pair")
    if data_look.format != "pairs" and _has_chat_template(model):
        changes["data.prompt_style"] = Value("chat", "the model has a chat template; else alma")
    kind = "LoRA" if method == "lora" else "all parameters"
    head = f"CPO with {kind} on {data}.\n  cpo-ds train --config {output}\nWritten by cpo-ds init "
    head += f"from the recipe {_TEMPLATE}. docs/configuration.md has every field."
    template = RECIPES.find(_TEMPLATE).read_text(encoding="utf-8")
    return rewritten(template, head, changes, without=() if method == "lora" else ("lora",))


def batch_pairs(rows: int) -> int:
    """The pairs of a step: a power of two that gives at least 20 steps, from 8 to 128."""
    return min(_MOST, max(_FEWEST, 2 ** int(math.log2(max(rows / _STEPS, 1)))))


def _eval_fraction(rows: int | None) -> float:
    """The share to hold out: a tenth of few rows, less of many."""
    if rows is None or 1000 <= rows < 20_000:
        return 0.05
    return 0.1 if rows < 1000 else 0.02


def _answer(
    given: str | None,
    option: str,
    question: str,
    checked: Callable[[str], Answer],
    default: str | None = None,
) -> Answer:
    """The checked value of an option, else of an answer from the terminal, else of the default.

    A wrong answer is asked for again. Raises `UserError` for a wrong option, and if there is none.
    """
    if given is not None:
        return checked(given)
    while sys.stdin.isatty() and sys.stdout.isatty():
        try:
            answer = input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
        except EOFError:
            break
        if answer:
            try:
                return checked(answer)
            except UserError as error:
                print(error)
    if default is None:
        raise UserError(
            f"{option} is missing; give it, as in cpo-ds init --model NAME --data PATH."
        )
    return checked(default)


def _checked_model(model: str) -> str:
    """The model itself. Raises `UserError` for a path without a model."""
    check_folder_or_name("model", model)
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{model} holds no config.json, so it is no model; give the folder that transformers' "
            "save_pretrained wrote, or a Hugging Face name."
        )
    return model


def _checked_method(method: str) -> str:
    if method not in _LEARNING_RATES:
        raise UserError(f"there is no method {method}; give lora or full.")
    return method


def _checked_gpus(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"{number} is no number of GPUs; give 1 or more.")
    return int(number)


def _has_chat_template(model: str) -> bool:
    """Whether a model's folder comes with a chat template."""
    path = Path(model).expanduser()
    settings = path / "tokenizer_config.json"
    return (path / "chat_template.jinja").is_file() or (
        settings.is_file() and '"chat_template"' in settings.read_text("utf-8", errors="replace")
    )


def _gpus_here() -> tuple[int, str | None]:
    """The number of this machine's NVIDIA GPUs, and their kind if it is known."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return 0, None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        gpus = [line.rpartition(",") for line in done.stdout.splitlines() if line]
        device = find_device(gpus[0][0], float(gpus[0][2]) / 1024) if gpus else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0, None
    return len(gpus), device.name if device else None


def _seen(data: str, data_look: Look) -> str:
    """A sentence on the data."""
    if data_look.rows is None:
        return f"{data}: a dataset on the Hugging Face hub, data.format: {data_look.format}"
    directions = f", {', '.join(data_look.directions[:6])}" if data_look.directions else ""
    return f"{data}: {data_look.size}, data.format: {data_look.format}{directions}"


def _next_commands(output: Path, gpus: int, device: str | None) -> str:
    train = f"cpo-ds train --config {output} --gpus {gpus}"
    lines = [
        f"written to {output}. Next:",
        f"  cpo-ds plan --config {output} --device {device or 'A100-80GB'} --gpus {gpus}"
        "   # does it fit, and how long does it take",
        f"  {train} --dry-run   # checks everything, shows two pairs",
        f"  {train}",
    ]
    return "\n".join(lines)
