"""`cpo-ds import`: writes a recipe from another trainer's settings, and lists every difference."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import yaml

from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.settings.other_names import OTHER_NAMES
from cpo_ds.start.foreign_files import Source, read_source
from cpo_ds.start.from_alma import move_alma
from cpo_ds.start.from_llama_factory import move_llama_factory
from cpo_ds.start.from_trl import move_trl
from cpo_ds.start.machine_rules import tell_launcher
from cpo_ds.start.moving import KINDS, UNKNOWN, Moving
from cpo_ds.start.recipes_command import write_new
from cpo_ds.start.without_counterpart import EQUAL_SETTINGS, LOST_SETTINGS

_TRAINERS: dict[str, Callable[[Source, Path, int | None, int | None], Moving]] = {
    "trl": move_trl,
    "alma": move_alma,
    "llama-factory": move_llama_factory,
}
# Settings that only one trainer has, to tell whose a file is.
_MARKS = {
    "llama-factory": {"stage", "finetuning_type", "cutoff_len", "pref_loss", "pref_beta"},
    "alma": {"cpo_data_path", "mmt_data_path", "language_pairs", "oscar_data_path"},
    "trl": {"loss_type", "cpo_alpha", "max_completion_length", "lora_r", "dataset_train_split"},
}
_COMMON = {
    *OTHER_NAMES,
    *EQUAL_SETTINGS,
    *LOST_SETTINGS,
    "output_dir",
    "learning_rate",
    "max_steps",
    "beta",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds import`."""
    parser.description = (
        f"{parser.description} The file is read, never run: YAML or JSON of settings, or the shell "
        "script that starts the training."
    )
    add = parser.add_argument
    add("trainer", choices=tuple(_TRAINERS), help="whose file it is")
    add("file", type=Path, metavar="FILE", help="its YAML, JSON or shell file")
    add("--gpus", metavar="N", help="GPUs that it ran on, if the file does not say (1)")
    add("--rows", metavar="N", help="training pairs, to turn numbers of steps into shares")
    add("--output", type=Path, metavar="FILE", default=Path("recipe.yaml"), help="(recipe.yaml)")
    add("--force", action="store_true", help="replace the file if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Writes the recipe and prints the differences; returns 0. Raises `UserError`."""
    path, output = arguments.file, arguments.output
    source = read_source(path)
    _check_trainer(arguments.trainer, source, path)
    gpus = _positive(arguments.gpus, "--gpus")
    try:
        m = _TRAINERS[arguments.trainer](source, path, gpus, _positive(arguments.rows, "--rows"))
    except UserError as error:
        is_named = str(error).startswith(str(path))
        raise UserError(str(error) if is_named else f"{path}: {error}") from None
    tell_launcher(m, source)
    m.finish(LOST_SETTINGS, EQUAL_SETTINGS)
    m.differences[UNKNOWN] += [f"{name}: {reason}" for name, reason in source.notes.items()]

    # Write a recipe that training takes, with the differences in its comments.
    differences = _differences(m)
    head = f"From {path} of {m.trainer}, by cpo-ds import. Each comment names the setting that a "
    head += f"value comes from.\n  cpo-ds train --config {output}\nThe differences are at the end."
    text = m.recipe(head) + "".join(f"# {line}".rstrip() + "\n" for line in ["", *differences])
    parse_config(yaml.safe_load(text), str(path))
    write_new(output, text, replace=arguments.force)
    print("\n".join([*differences, "", *_next_commands(output, m)]))
    return 0


def _differences(m: Moving) -> list[str]:
    """Lines that list the differences by their kinds."""
    lines = []
    for kind in KINDS:
        if entries := m.differences[kind]:
            lines += [f"{kind}:", *(f"- {' '.join(entry.split())}" for entry in entries), ""]
    return lines[:-1]


def _next_commands(output: Path, m: Moving) -> list[str]:
    changes = [name for name, value in m.values.items() if "change this" in value.comment]
    wanted = f"set {' and '.join(changes)} in it" if changes else "read its comments"
    return [
        f"written to {output}, with this list at its end; {wanted}, then:",
        f"  cpo-ds plan --config {output} --device A100-80GB --gpus 1",
        f"  cpo-ds train --config {output} --gpus 1",
    ]


def _positive(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{option} {text} is no number from 1 on; give one.")
    return int(text)


def _check_trainer(trainer: str, source: Source, path: Path) -> None:
    """Raises `UserError` for a file of another trainer, and for one without training settings."""
    names = set(source.settings)
    if {"compute_environment", "deepspeed_config", "zero_optimization"} & names:
        raise UserError(
            f"{path} is a configuration of accelerate or DeepSpeed; give the script that names it, "
            "which holds the settings of the training."
        )
    marks = {name: len(names & mark) for name, mark in _MARKS.items()}
    likely = max(marks, key=lambda name: marks[name])
    if marks[likely] > marks[trainer] and not marks[trainer]:
        raise UserError(
            f"{path} looks like a file of {likely}, since it sets "
            f"{', '.join(sorted(names & _MARKS[likely])[:3])}; take cpo-ds import {likely} {path}."
        )
    if not names & (_COMMON | _MARKS[trainer]):
        raise UserError(
            f"{path} sets nothing that {trainer} knows, such as learning_rate; give the file with "
            "the settings of the training."
        )
