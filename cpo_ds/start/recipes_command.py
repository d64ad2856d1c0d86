"""`cpo-ds recipes`: lists the recipes that come with the package, prints or copies one."""

from __future__ import annotations

import argparse
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.shipped import RECIPES
from cpo_ds.storage.files import writing


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds recipes`."""
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="print this one (a list of all)")
    add("--copy", type=Path, metavar="FILE", help="write it to a new file, or into a folder")
    add("--force", action="store_true", help="let --copy replace a file")


def run(arguments: argparse.Namespace) -> int:
    """Lists, prints or copies; returns the exit code. Raises `UserError`."""
    if arguments.name is None:
        if arguments.copy is not None:
            raise UserError("--copy takes the name of a recipe: cpo-ds recipes NAME --copy FILE.")
        print(_listing())
        return 0
    if arguments.name not in (names := RECIPES.names()) and "/" not in arguments.name:
        arguments.name = arguments.name.removesuffix(".yaml")  # the name of the file is clear too
    path = RECIPES.find(arguments.name)
    if path.stem not in names:
        raise UserError(f"{arguments.name} is not shipped; shipped ones are {', '.join(names)}.")
    text = path.read_text(encoding="utf-8")
    if arguments.copy is None:
        print(text, end="")
        return 0
    target = arguments.copy / path.name if arguments.copy.is_dir() else arguments.copy
    write_new(target, text, replace=arguments.force)
    print(f"written to {target}; change what its comments name, then:")
    print(f"  cpo-ds plan --config {target} --device A100-80GB --gpus 1")
    print(f"  cpo-ds train --config {target} --gpus 1")
    return 0


def write_new(path: Path, text: str, *, replace: bool) -> None:
    """Writes a recipe to a YAML file, whole or not at all.

    Raises `UserError` for an existing file unless it may be replaced, and for a file that
    `--config` would not take.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path} must end in .yaml; give a name like {path.name or 'mine'}.yaml.")
    if path.exists() and (path.is_dir() or not replace):
        raise UserError(f"{path} exists already; name another file, or add --force to replace it.")
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def about(path: Path) -> str:
    """The first sentence of a recipe's comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").partition(". ")[0].rstrip(".")


def _listing() -> str:
    names = RECIPES.names()
    width = max(map(len, names))
    lines = [f"{name:{width}}  {about(RECIPES.find(name))}" for name in names]
    lines += [
        "",
        "cpo-ds recipes NAME prints one, and with --copy FILE writes it to a file of yours.",
    ]
    return "\n".join([*lines, "cpo-ds init writes one for your model and pairs."])
